//! Real cores on modelled devices, for throughput: a closed loop of decoding sequences, a network of fixed latency and
//! limited links, steps that take the time of a cost file. No values, no gateways: see [`crate::world`] for those.

pub mod cost;
pub mod ideal;
pub mod pace;
pub mod skew;

use crate::heap::Heap;
use crate::rng::{Rng, mix};
use crate::wire::{Wire, WireConfig};
use cost::CostModel;
use pace::Pace;
use skew::Skew;
use sluice_core::config::{HostConfig, Policy, RankConfig, Shape, WorkerConfig};
use sluice_core::event::{Action, Event, PeerUp};
use sluice_core::frame::{Body, Frame};
use sluice_core::ids::{GatewayId, Nanos, SeqKey, WorkerId};
use sluice_core::placement::PlacementSlice;
use sluice_core::sequence::{Bind, RankEvent, StopRule};
use sluice_core::slab::SlabLayout;
use sluice_core::step::{Outcome, Sample, Step};
use sluice_core::worker::Worker;
use sluice_planner::{Load, Plan, Replicas, Request};
use std::sync::Arc;

/// What is measured.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The costs.
    pub costs: CostModel,
    /// Blocks of the model: fewer than it has only shorten a pass.
    pub blocks: u16,
    /// Devices.
    pub devices: u32,
    /// Attention ranks among them; all of them are ranks and hosts if 0.
    pub ranks: u32,
    /// Sequences that decode at all times.
    pub tokens: u32,
    /// Positions that each of them attends to.
    pub context: f64,
    /// The hottest expert's part of all assignments.
    pub share: f64,
    /// Each expert's part of each block's assignments, where it is not to follow from `share` and `seed`.
    pub shares: Option<Vec<Vec<f64>>>,
    /// Each step takes 1 + Exp(this) times as long.
    pub jitter: f64,
    /// Slices an expert is held in.
    pub slices: u8,
    /// Replicas an expert may have.
    pub replicas: u32,
    /// Decode waves.
    pub waves: u8,
    /// The scheduler.
    pub policy: Policy,
    /// Latency of a hop.
    pub hop: Nanos,
    /// Bytes per nanosecond of a link.
    pub bandwidth: f64,
    /// Decides the draws.
    pub seed: u64,
}

/// Segments of an expert's inner dimension.
pub const SEGMENTS: u8 = 8;

impl Setting {
    /// Workers with the expert role.
    pub fn hosts(&self) -> std::ops::Range<u32> {
        self.ranks..self.devices
    }

    /// Attention ranks.
    pub fn all_ranks(&self) -> u32 {
        if self.ranks == 0 { self.devices } else { self.ranks }
    }

    /// Where tokens go.
    pub fn skew(&self) -> Skew {
        let m = &self.costs.model;
        match &self.shares {
            Some(shares) => Skew::of_shares(shares.clone(), m.top_k, self.seed),
            None => Skew::new(self.share, self.blocks, m.experts, m.top_k, self.seed),
        }
    }

    /// The placement of the planner, which knows the load.
    ///
    /// # Errors
    /// It finds none.
    pub fn plan(&self, skew: &Skew) -> Result<Plan, String> {
        let m = &self.costs.model;
        let units = u32::from(self.blocks) * u32::from(m.experts) * u32::from(self.slices);
        let slots = (units * self.replicas).div_ceil(self.hosts().len() as u32);
        let worker = |id: u32| sluice_planner::Worker { id: WorkerId(id), slots };
        let moe = vec![true; self.blocks as usize];
        let mut request = Request::new(moe, m.experts, self.hosts().map(worker).collect());
        (request.segments, request.slices) = (SEGMENTS, self.slices);
        request.replicas = Replicas::exactly(self.replicas);
        let assignments = f64::from(self.tokens) * f64::from(m.top_k) / f64::from(self.waves);
        let rows = (0..self.blocks).map(|b| skew.shares(b).iter().map(|s| s * assignments).collect());
        request.load = Some(Load { rows: rows.collect() });
        request.cost = self.costs.curves(1.0 / f64::from(self.slices), self.context).unit;
        sluice_planner::plan(&request).map_err(|e| e.to_string())
    }

    /// What a worker with so many slots is told.
    pub fn config(&self, id: u32, slots: u32) -> WorkerConfig {
        let m = &self.costs.model;
        let (is_rank, is_host) = (id < self.all_ranks(), self.hosts().contains(&id));
        let own = self.tokens.div_ceil(self.all_ranks());
        let rows = own + 64;
        let rank = RankConfig {
            pages: rows * 2,
            page_size: 1024,
            prefix_reuse: false,
            watermark: 0,
            max_sequences: own,
            prefill_chunk: 64,
            prefill_tokens: rows,
            probe_every: None,
        };
        let slab = SlabLayout {
            tokens: if is_rank { rows } else { 0 },
            groups: if is_rank { rows } else { 0 },
            top_k: m.top_k.into(),
            parts: self.slices.into(),
            landing: if is_host { rows * self.all_ranks() } else { 0 },
            outputs: rows * self.all_ranks() * u32::from(m.top_k) * u32::from(self.slices),
        };
        let cycle = self.pass_estimate() / f64::from(self.blocks);
        WorkerConfig {
            id: WorkerId(id),
            shape: Shape {
                moe: vec![true; self.blocks as usize],
                experts: m.experts,
                top_k: m.top_k,
                segments: SEGMENTS,
            },
            slab,
            rank: is_rank.then_some(rank),
            host: is_host.then_some(HostConfig { slots, ring: rows, linger: 0 }),
            waves: self.waves,
            policy: self.policy,
            max_step_rows: rows,
            max_expert_rows: slab.outputs,
            spans: false,
            costs: self.costs.curves(1.0 / f64::from(self.slices), self.context),
            release_cycles: 4,
            initial_cycle: (cycle * 1e9) as Nanos,
            patience: Nanos::MAX / 2,
        }
    }

    /// About the seconds of a pass: what the busiest device would take alone.
    fn pass_estimate(&self) -> f64 {
        let m = &self.costs.model;
        let rows = f64::from(self.tokens) * f64::from(m.top_k) * self.share.max(1.0 / f64::from(m.experts));
        let own = f64::from(self.tokens) / f64::from(self.all_ranks());
        f64::from(self.blocks) * (self.costs.attention(own, self.context) + self.costs.unit(rows, 1.0))
    }
}

/// What came out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Measured {
    /// Tokens per second.
    pub throughput: f64,
    /// Mean rows of an expert step, per unit.
    pub rows_per_unit: f64,
    /// Mean rows of an expert step.
    pub rows_per_step: f64,
    /// Median time between two tokens of a sequence, in seconds.
    pub itl_p50: f64,
    /// 99th percentile of it.
    pub itl_p99: f64,
    /// The busiest device's and the mean part of the time that a device runs.
    pub busy: (f64, f64),
    /// Events handled.
    pub events: u64,
    /// μ-queues released because a token waited too long.
    pub urgent: u64,
}

enum Ev {
    Enter { flight: u32 },
    Arrive { flight: u32 },
    Done { worker: u32 },
    Tick { worker: u32 },
}

struct Node {
    core: Worker,
    running: Option<Step>,
    tick: Option<Nanos>,
    worked: Nanos,
    sequences: Vec<u32>,
}

struct Flight {
    from: u32,
    to: u32,
    frame: Frame,
    rows: usize,
}

/// A run.
pub struct Fleet<'a> {
    setting: &'a Setting,
    skew: Skew,
    now: Nanos,
    heap: Heap<Ev>,
    nodes: Vec<Node>,
    wire: Wire,
    flights: Vec<Option<Flight>>,
    free: Vec<u32>,
    rng: Rng,
    pace: Pace,
    delivered: u64,
    failure: Option<String>,
    trace: bool,
    actions: Vec<Action>,
}

impl<'a> Fleet<'a> {
    /// Runs `warm` passes unmeasured, then `passes` measured.
    ///
    /// # Errors
    /// What could not go on.
    pub fn run(setting: &'a Setting, warm: u64, passes: u64, trace: bool) -> Result<Measured, String> {
        let skew = setting.skew();
        let plan = setting.plan(&skew)?;
        let held = |w: u32| plan.held().filter(|(_, h)| h.0 == w).count() as u32;
        let nodes: Result<Vec<Node>, String> = (0..setting.devices)
            .map(|id| {
                let core = Worker::new(setting.config(id, held(id).max(1))).map_err(|e| e.to_string())?;
                Ok(Node { core, running: None, tick: None, worked: 0, sequences: vec![] })
            })
            .collect();
        let wire = WireConfig {
            latency: setting.hop,
            bandwidth: setting.bandwidth,
            row_bytes: setting.costs.model.hidden * setting.costs.model.activation_bytes,
            ..WireConfig::default()
        };
        let mut fleet = Self {
            skew,
            now: 0,
            heap: Heap::new(),
            nodes: nodes?,
            wire: Wire::new(wire, setting.devices as usize, Rng::new(0)),
            flights: vec![],
            free: vec![],
            rng: Rng::new(setting.seed ^ 0x7177),
            pace: Pace::new(setting.tokens as usize),
            delivered: 0,
            failure: None,
            trace,
            actions: vec![],
            setting,
        };
        fleet.start(&plan);
        fleet.drive(warm, passes)
    }

    fn start(&mut self, plan: &Plan) {
        let n = self.nodes.len();
        for a in 0..n {
            for b in (0..n).filter(|b| *b != a) {
                let config = self.setting.config(b as u32, 1);
                let up = PeerUp {
                    worker: config.id,
                    epoch: 1,
                    is_rank: config.rank.is_some(),
                    is_host: config.host.is_some(),
                };
                self.handle(a, Event::PeerUp(up));
            }
        }
        let (blocks, slices) = (self.setting.blocks, self.setting.blocks);
        let tables: Vec<Arc<PlacementSlice>> =
            plan.placement(blocks, slices, 1).into_iter().map(Arc::new).collect();
        for w in 0..n {
            for t in &tables {
                self.handle(w, Event::Placement(Arc::clone(t)));
            }
        }
        for i in 0..self.setting.tokens {
            let bind = Bind {
                seq: SeqKey { request: u64::from(i), choice: 0 },
                attempt: 1,
                gateway: GatewayId(0),
                ids: Arc::from([0u32]),
                produced: 0,
                stop: StopRule { max_tokens: u32::from(u16::MAX).min(1000), ..StopRule::default() },
                deadline: None,
                salt: 0,
                age: u64::from(i) + 1,
                replay: false,
            };
            self.handle((i % self.setting.all_ranks()) as usize, Event::Bind(bind));
        }
    }

    fn drive(mut self, warm: u64, passes: u64) -> Result<Measured, String> {
        let per_pass = u64::from(self.setting.tokens);
        let (mut events, mut start, mut before) = (0, 0, vec![]);
        while let Some((at, ev)) = self.heap.pop() {
            self.now = at;
            events += 1;
            match ev {
                Ev::Enter { flight } => {
                    let Some(f) = &self.flights[flight as usize] else { continue };
                    let at = self.wire.enter(self.now, f.to as usize, f.rows);
                    self.heap.push(at, Ev::Arrive { flight });
                }
                Ev::Arrive { flight } => {
                    let Some(f) = self.flights[flight as usize].take() else { continue };
                    self.free.push(flight);
                    let core = &mut self.nodes[f.to as usize].core;
                    core.receive(self.now, WorkerId(f.from), f.frame);
                    core.settle(self.now);
                    self.drain(f.to as usize);
                }
                Ev::Done { worker } => self.done(worker as usize),
                Ev::Tick { worker } => {
                    let node = &mut self.nodes[worker as usize];
                    if node.tick == Some(self.now) {
                        node.tick = None;
                        self.handle(worker as usize, Event::Tick);
                    }
                }
            }
            if let Some(why) = self.failure.take() {
                return Err(why);
            }
            if !self.pace.is_measuring() && self.delivered >= warm * per_pass {
                self.pace.measure();
                (start, self.delivered) = (self.now, 0);
                before = self.nodes.iter().map(|n| (*n.core.counters(), n.worked)).collect();
                events = 0;
            }
            if self.pace.is_measuring() && self.delivered >= passes * per_pass {
                break;
            }
        }
        if !self.pace.is_measuring() || self.delivered == 0 {
            return Err(format!("stopped after {} tokens: nothing is left to happen", self.delivered));
        }
        let span = (self.now - start) as f64 / 1e9;
        let (mut rows, mut steps, mut units, mut urgent) = (0, 0, 0, 0);
        let mut busy: Vec<f64> = vec![];
        for (node, (old, worked)) in self.nodes.iter().zip(&before) {
            let c = node.core.counters();
            rows += c.expert_rows - old.expert_rows;
            steps += c.expert_steps - old.expert_steps;
            units += c.expert_units - old.expert_units;
            urgent += c.urgent - old.urgent;
            busy.push((node.worked - worked) as f64 / 1e9 / span);
        }
        Ok(Measured {
            throughput: self.pace.throughput(),
            rows_per_unit: rows as f64 / units.max(1) as f64,
            rows_per_step: rows as f64 / steps.max(1) as f64,
            itl_p50: self.pace.gap(0.5),
            itl_p99: self.pace.gap(0.99),
            busy: (busy.iter().copied().fold(0.0, f64::max), busy.iter().sum::<f64>() / busy.len() as f64),
            events,
            urgent,
        })
    }

    fn handle(&mut self, worker: usize, event: Event) {
        self.nodes[worker].core.handle(self.now, event);
        self.drain(worker);
    }

    fn note(&self, text: impl FnOnce() -> String) {
        if self.trace && self.pace.is_measuring() {
            crate::say!("{:>12.1} {}", self.now as f64 / 1e3, text());
        }
    }

    fn done(&mut self, worker: usize) {
        let Some(step) = self.nodes[worker].running.take() else { return };
        let outcome = match &step {
            Step::Attention(a) => {
                let mut experts = vec![];
                let node = &self.nodes[worker];
                let tokens = a.segments.iter().flat_map(|s| (s.start..s.start + s.len).map(|p| (s.seq.0, p)));
                for (seq, position) in tokens {
                    let key = mix(u64::from(node.sequences[seq as usize]), u64::from(position));
                    self.skew.draw(key, a.blocks.start, &mut experts);
                }
                Outcome::Routed(experts)
            }
            Step::Experts(_) => Outcome::Experts,
            Step::Head(h) => Outcome::Sampled(vec![Sample::Token(1); h.rows.len()]),
        };
        self.handle(worker, Event::Done(outcome));
    }

    fn drain(&mut self, worker: usize) {
        let mut actions = std::mem::take(&mut self.actions);
        actions.extend(self.nodes[worker].core.actions());
        let mut loads = vec![];
        for action in actions.drain(..) {
            match action {
                Action::Run(step) => self.launch(worker, step),
                Action::Send { to, frame } => self.send(worker, to, frame),
                Action::Tell { seq, event: RankEvent::Token { .. }, .. } => self.token(seq),
                Action::Tell { seq, event: RankEvent::Accepted, .. } => {
                    self.note(|| format!("{seq} accepted"));
                }
                Action::Tell { seq, event, .. } => self.failure = Some(format!("{seq}: {event:?}")),
                Action::Open { handle, seq, .. } => {
                    let all = &mut self.nodes[worker].sequences;
                    if all.len() <= handle.0 as usize {
                        all.resize(handle.0 as usize + 1, 0);
                    }
                    all[handle.0 as usize] = seq.request as u32;
                }
                Action::LoadSlot { slot, unit } => loads.push((slot, unit)),
                Action::Close { .. }
                | Action::FreeSlot { .. }
                | Action::Sever { .. }
                | Action::NoRing { .. } => {}
            }
        }
        self.actions = actions;
        for (slot, unit) in loads {
            self.handle(worker, Event::SlotLoaded { slot, unit, ok: true });
        }
        let node = &mut self.nodes[worker];
        if let Some(at) = node.core.wake() {
            let at = at.max(self.now + 1);
            if node.tick.is_none_or(|t| at < t) {
                node.tick = Some(at);
                self.heap.push(at, Ev::Tick { worker: worker as u32 });
            }
        }
    }

    fn launch(&mut self, worker: usize, step: Step) {
        let s = self.setting;
        let mut t = s.costs.step(&step, SEGMENTS, s.context) * 1e9;
        if s.jitter > 0.0 {
            t *= 1.0 + self.rng.exp(s.jitter);
        }
        let t = (t as Nanos).max(1);
        self.note(|| match &step {
            Step::Attention(a) => format!("{worker} attention {} rows {} {t}", a.blocks.start, a.rows.len()),
            Step::Experts(e) => {
                format!("{worker} experts {} rows {} units {} {t}", e.block, e.items.len(), e.units.len())
            }
            Step::Head(h) => format!("{worker} head rows {}", h.rows.len()),
        });
        let node = &mut self.nodes[worker];
        node.worked += t;
        node.running = Some(step);
        self.heap.push(self.now + t, Ev::Done { worker: worker as u32 });
    }

    fn send(&mut self, from: usize, to: WorkerId, frame: Frame) {
        let rows = match &frame.body {
            Body::Tokens(b) => b.rows.len(),
            Body::Returns(b) => b.rows.len(),
            _ => 0,
        };
        let at = self.wire.leave(self.now, from, to.0 as usize, frame.channel, rows);
        let limited = self.wire.is_limited() && rows > 0;
        let id = self.free.pop().unwrap_or_else(|| {
            self.flights.push(None);
            self.flights.len() as u32 - 1
        });
        self.flights[id as usize] = Some(Flight { from: from as u32, to: to.0, frame, rows });
        self.heap.push(at, if limited { Ev::Enter { flight: id } } else { Ev::Arrive { flight: id } });
    }

    fn token(&mut self, seq: SeqKey) {
        self.delivered += 1;
        self.pace.token(seq.request as usize, self.now);
    }
}
