//! What one seed stands for: a deployment, a network, a load, and what goes on meanwhile.

use crate::faults::Fault;
use crate::link::LinkConfig;
use crate::operator::Operation;
use crate::rng::Rng;
use crate::symbol::{Request, VOCABULARY};
use crate::timing::Timing;
use crate::wire::WireConfig;
use sluice_core::config::{HostConfig, Policy, RankConfig, Shape, WorkerConfig};
use sluice_core::front::FrontConfig;
use sluice_core::ids::{GatewayId, MICRO, Nanos, SeqKey, Slice, Unit, WorkerId};
use sluice_core::placement::{PlacementSlice, Replica, ReplicaState};
use sluice_core::sequence::StopRule;
use sluice_core::session::SessionLimits;
use sluice_core::slab::SlabLayout;
use std::sync::Arc;

/// A client's request: one or more choices of one prompt.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// When.
    pub at: Nanos,
    /// At which gateway.
    pub gateway: usize,
    /// Its choices.
    pub choices: Vec<Arc<Request>>,
    /// When it is given up, by its deadline.
    pub deadline: Option<Nanos>,
    /// When its client goes.
    pub cancel: Option<Nanos>,
}

/// All that a run is made of.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The model.
    pub shape: Shape,
    /// Of 8 first choices, so many fall on expert 0.
    pub hot: u64,
    /// The workers, by id.
    pub workers: Vec<WorkerConfig>,
    /// How long steps take.
    pub timing: Timing,
    /// How frames travel.
    pub wire: WireConfig,
    /// Percent of frames after which a worker looks for others before it decides what follows.
    pub gather: u64,
    /// Mean of a gateway's, or the operator's, way to a worker.
    pub hop: f64,
    /// The placement at the start.
    pub tables: Vec<PlacementSlice>,
    /// What the operator changes, in order of time.
    pub operations: Vec<(Nanos, Operation)>,
    /// Percent of slot loads that fail.
    pub load_failures: u64,
    /// The gateways.
    pub gateways: Vec<FrontConfig>,
    /// The links between them and the ranks.
    pub link: LinkConfig,
    /// What clients ask, in order of time.
    pub arrivals: Vec<Arrival>,
    /// What goes wrong, and when.
    pub faults: Vec<(Nanos, Fault)>,
    /// More events than this without a token for any client are taken for a livelock.
    pub max_quiet: u64,
}

/// Slots kept free for experts that have lost all their holders.
pub const SPARE_SLOTS: u32 = 8;

/// Rows the slab of any worker holds at most: keeps a seed cheap.
const OUTPUTS: u64 = 96;

/// What a test holds fast of a scenario; the seed decides the rest.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fixed {
    /// So many hybrid workers.
    pub hybrid: Option<u64>,
    /// The scheduler of all workers.
    pub policy: Option<Policy>,
    /// Most tokens of a prefill segment.
    pub chunk: Option<u64>,
    /// Decode waves.
    pub waves: Option<u8>,
    /// Landing rows of a rank at a host.
    pub ring: Option<u64>,
    /// Row budget of an expert step.
    pub rows: Option<u32>,
    /// Sequences at one time, with KV pages for only one of them.
    pub tight: Option<u32>,
    /// Percent of requests that are cancelled, and that the sampler ends early.
    pub cut_short: Option<u64>,
    /// The placement changes so many times.
    pub operations: Option<u64>,
    /// So many faults of workers.
    pub faults: Option<u64>,
    /// So many faults of gateways and their links.
    pub gateway_faults: Option<u64>,
}

impl Scenario {
    /// Draws the scenario of a seed.
    pub fn draw(seed: u64) -> Self {
        Self::with(seed, &Fixed::default())
    }

    /// Draws the scenario of a seed, with some of it held fast.
    pub fn with(seed: u64, fixed: &Fixed) -> Self {
        let mut r = Rng::new(seed);
        let shape = shape(&mut r);
        let hybrid = r.chance(40) || fixed.hybrid.is_some();
        let policy = if r.chance(45) { Policy::Frontier } else { r.pick(&Policy::ALL) };
        let policy = fixed.policy.unwrap_or(policy);
        // Every step of the barrier costs a message for each pair of workers.
        let (most_ranks, most_hosts) = if policy == Policy::Sync { (2, 3) } else { (4, 6) };
        let (ranks, hosts) = (r.range(1, most_ranks), if hybrid { 0 } else { r.range(1, most_hosts) });
        let ranks = fixed.hybrid.unwrap_or(ranks);
        let hosts: Vec<u32> = if hybrid {
            (0..ranks as u32).collect()
        } else {
            (ranks as u32..(ranks + hosts) as u32).collect()
        };
        let tables = tables(&mut r, &shape, &hosts);
        let timing = Timing::draw(&mut r, hosts.len().max(ranks as usize) + ranks as usize);
        let room = Room::draw(&mut r);
        let workers = workers(&mut r, fixed, &shape, policy, ranks as u32, &hosts, &tables, &timing, &room);
        let latency = r.spread(1, 200) * MICRO;
        let wire = WireConfig {
            latency,
            jitter: if r.chance(70) { latency as f64 * r.unit() * 3.0 } else { 0.0 },
            reorder: if r.chance(50) { r.range(1, 40) } else { 0 },
            duplicate: if r.chance(50) { r.range(1, 20) } else { 0 },
            ..WireConfig::default()
        };
        let cycle = timing.cycle(&shape) + 2 * latency;
        let gateways: Vec<FrontConfig> = (0..r.range(1, 2) as u32)
            .map(|g| FrontConfig {
                queue: if r.chance(20) { r.range(1, 6) as usize } else { 1024 },
                busy_hold: cycle * r.spread(8, 200),
                prefixes: 64,
                ..FrontConfig::new(GatewayId(g))
            })
            .collect();
        let (arrivals, span) = arrivals(&mut r, fixed, &room, gateways.len(), cycle);
        let changes = if r.chance(45) { r.range(1, 8) } else { 0 };
        let operations = {
            let n = fixed.operations.unwrap_or(changes);
            let mut all: Vec<_> = (0..n).map(|_| (r.below(span), Operation::draw(&mut r, cycle))).collect();
            all.sort_by_key(|o| o.0);
            all
        };
        // The barrier is a baseline: it does not outlive a worker.
        let outlives = policy != Policy::Sync && workers.len() > 1;
        let mut faults = drains(&mut r, ranks as u32, span, outlives);
        let wrong = if r.chance(40) { r.range(1, 6) } else { 0 };
        let wrong = if outlives { fixed.faults.unwrap_or(wrong) } else { 0 };
        faults.extend((0..wrong).map(|_| (r.below(span), Fault::of_worker(&mut r, workers.len(), cycle))));
        let link = link(&mut r, cycle, latency);
        let gateways: Vec<FrontConfig> =
            gateways.into_iter().map(|g| FrontConfig { lease: link.lease, ..g }).collect();
        let those = (gateways.len(), ranks as usize);
        faults.extend(gateway_faults(&mut r, fixed, those, span, link.patience, outlives));
        if !operations.is_empty() && r.chance(50) {
            faults.extend((0..r.range(1, 4)).map(|_| (r.below(span), Fault::OldTable)));
        }
        let mut scenario = Self {
            faults,
            hot: if r.chance(40) { r.range(1, 7) } else { 0 },
            gather: if r.chance(50) { r.range(1, 60) } else { 0 },
            hop: latency as f64,
            load_failures: if r.chance(20) { 30 } else { 0 },
            max_quiet: 400_000,
            shape,
            workers,
            timing,
            wire,
            tables,
            operations,
            gateways,
            link,
            arrivals,
        };
        let probe_every = r.chance(70).then(|| cycle * r.spread(1, 100));
        for rank in scenario.workers.iter_mut().filter_map(|w| w.rank.as_mut()) {
            rank.probe_every = probe_every;
        }
        let linger = if r.chance(50) { cycle * r.spread(1, 100) } else { 0 };
        for host in scenario.workers.iter_mut().filter_map(|w| w.host.as_mut()) {
            host.linger = linger;
        }
        if outlives && r.chance(20) {
            let (worker, length) = (r.pick(&hosts) as usize, cycle * r.spread(100, 2000));
            let fault = Fault::SlowDevice { worker, length, factor: r.spread(10, 200) };
            scenario.faults.push((r.below(span / 4 + 1), fault));
        }
        scenario
    }
}

fn shape(r: &mut Rng) -> Shape {
    let blocks = r.range(1, 6);
    let dense = if r.chance(30) { 40 } else { 0 };
    let mut moe: Vec<bool> = (0..blocks).map(|_| !r.chance(dense)).collect();
    let some = r.below(blocks) as usize;
    moe[some] = true;
    let experts = r.range(2, 16) as u16;
    Shape {
        moe,
        experts,
        top_k: r.range(1, 4).min(u64::from(experts)) as u8,
        segments: r.pick(&[1, 2, 4, 8]),
    }
}

/// How long sequences are and how much of them fits.
struct Room {
    prompt: u64,
    tokens: u64,
    page_size: u64,
    sequences: u64,
}

impl Room {
    fn draw(r: &mut Rng) -> Self {
        Self {
            prompt: r.spread(1, 40),
            tokens: r.spread(2, 16),
            page_size: r.pick(&[1, 2, 4, 8, 16]),
            sequences: r.spread(5, 28),
        }
    }

    /// KV pages of the longest sequence.
    fn pages(&self) -> u64 {
        (self.prompt + self.tokens).div_ceil(self.page_size)
    }
}

/// Every unit of every block has a holder; some experts are sliced, some have replicas.
fn tables(r: &mut Rng, shape: &Shape, hosts: &[u32]) -> Vec<PlacementSlice> {
    let (slicing, copies, uneven) =
        (r.chance(50), if r.chance(50) { r.range(1, 40) } else { 0 }, r.chance(50));
    let span = r.range(1, u64::from(shape.blocks())) as u16;
    // One worker may hold whole blocks alone, so that spans can run.
    let alone = r.chance(25).then(|| r.pick(hosts));
    let mut tables = vec![];
    let mut start = 0;
    while start < shape.blocks() {
        let end = (start + span).min(shape.blocks());
        let mut replicas = vec![];
        for block in start..end {
            if !shape.moe[block as usize] {
                continue;
            }
            let alone = alone.filter(|_| r.chance(70));
            for expert in 0..shape.experts {
                for copy in 0..=u32::from(r.chance(copies)) {
                    let slices =
                        if slicing { 1 << r.below(u64::from(shape.segments.ilog2()) + 1) } else { 1 };
                    let width = shape.segments / slices;
                    let first = r.below(hosts.len() as u64) as usize;
                    for s in 0..slices {
                        // Two replicas of one unit on one worker would be one slot.
                        let host = hosts[(first + s as usize + copy as usize) % hosts.len()];
                        let unit =
                            Unit { block, expert, slice: Slice { lo: s * width, hi: (s + 1) * width } };
                        let worker = WorkerId(alone.filter(|_| copy == 0).unwrap_or(host));
                        if replicas.iter().any(|x: &Replica| x.worker == worker && x.unit == unit) {
                            continue;
                        }
                        let fraction = if uneven { r.unit() as f32 } else { 1.0 };
                        replicas.push(Replica { worker, unit, state: ReplicaState::Active, fraction });
                    }
                }
            }
        }
        tables.push(PlacementSlice { blocks: start..end, generation: 1, replicas });
        start = end;
    }
    tables
}

#[allow(clippy::too_many_arguments)]
fn workers(
    r: &mut Rng,
    fixed: &Fixed,
    shape: &Shape,
    policy: Policy,
    ranks: u32,
    hosts: &[u32],
    tables: &[PlacementSlice],
    timing: &Timing,
    room: &Room,
) -> Vec<WorkerConfig> {
    let count = hosts.iter().copied().max().unwrap_or(0).max(ranks - 1) + 1;
    let chunk = r.spread(1, 32);
    let chunk = fixed.chunk.unwrap_or(chunk);
    let few = if r.chance(30) { r.range(1, 3) } else { r.range(4, 16) };
    let sequences = fixed.tight.map_or(few, u64::from);
    let pages = if r.chance(40) { room.pages() + r.below(4) } else { room.pages() * r.range(2, 8) };
    let rank = RankConfig {
        pages: if fixed.tight.is_some() { room.pages() as u32 } else { pages as u32 },
        page_size: room.page_size as u32,
        prefix_reuse: r.chance(60),
        watermark: if r.chance(50) { r.below(4) as u32 } else { 0 },
        max_sequences: sequences as u32,
        prefill_chunk: chunk as u32,
        prefill_tokens: (chunk * r.range(1, 4)) as u32,
        probe_every: None,
    };
    let waves = if r.chance(60) { 1 } else { r.range(2, 3) as u8 };
    let waves = fixed.waves.unwrap_or(waves);
    let rings = if r.chance(40) { r.range(1, 3) } else { r.range(4, 40) };
    let rings = fixed.ring.unwrap_or(rings);
    let max_expert_rows = if r.chance(30) { r.range(1, 4) } else { r.range(8, OUTPUTS) } as u32;
    let max_expert_rows = fixed.rows.unwrap_or(max_expert_rows);
    let max_step_rows = if r.chance(30) { r.range(1, 4) } else { r.range(8, 128) } as u32;
    let tokens = (chunk + sequences + if r.chance(40) { 0 } else { r.range(1, 40) }) as u32;
    let parts = tables.iter().flat_map(|t| &t.replicas).map(|x| x.unit.slice.count(shape.segments)).max();
    let spare = if r.chance(50) { 0 } else { r.range(1, 10) as u32 };
    let free_slots = r.range(0, 4) as u32;
    let (spans, release_cycles) = (r.chance(70), r.range(1, 8) as u32);
    let initial_cycle = timing.cycle(shape);
    let patience = initial_cycle * r.spread(1, 200);
    // The roles may have schedulers of their own; the barrier needs all workers.
    let other = r.pick(&Policy::ALL);
    let mixed = r.chance(30) && fixed.policy.is_none() && policy != Policy::Sync && other != Policy::Sync;
    let expert_policy = if mixed { other } else { policy };
    (0..count)
        .map(|id| {
            let held = tables.iter().flat_map(|t| &t.replicas).filter(|x| x.worker.0 == id).count() as u32;
            let host = hosts.contains(&id).then_some(HostConfig {
                slots: held + free_slots + SPARE_SLOTS,
                ring: rings as u32,
                linger: 0,
            });
            let slab = SlabLayout {
                tokens: if id < ranks { tokens } else { 0 },
                groups: if id < ranks { tokens + spare } else { 0 },
                top_k: u32::from(shape.top_k),
                // Operations may add slices of any width.
                parts: u32::from(parts.unwrap_or(1).max(shape.segments)),
                landing: if host.is_some() { ranks * rings as u32 } else { 0 },
                outputs: if host.is_some() { max_expert_rows } else { 0 },
            };
            WorkerConfig {
                id: WorkerId(id),
                shape: shape.clone(),
                slab,
                rank: (id < ranks).then(|| rank.clone()),
                host,
                waves,
                policy: if id < ranks { policy } else { expert_policy },
                max_step_rows,
                max_expert_rows,
                spans,
                costs: timing.costs(),
                release_cycles,
                initial_cycle,
                patience,
            }
        })
        .collect()
}

fn arrivals(r: &mut Rng, fixed: &Fixed, room: &Room, gateways: usize, cycle: Nanos) -> (Vec<Arrival>, Nanos) {
    let span = if r.chance(30) { 1 } else { cycle * r.range(1, room.tokens * 3) };
    let (cancels, deadlines) =
        (if r.chance(40) { r.range(5, 50) } else { 0 }, if r.chance(30) { r.range(5, 60) } else { 0 });
    let (shared, stops) = (r.chance(60), r.chance(40));
    let prefix: Vec<u32> = (0..room.prompt).map(|_| r.below(VOCABULARY) as u32).collect();
    let mut all: Vec<Arrival> = (0..room.sequences)
        .map(|i| {
            let at = r.below(span);
            let length = if r.chance(3) { room.prompt * 4 } else { r.range(1, room.prompt) } as usize;
            let common = if shared && r.chance(70) { r.below(length as u64 + 1) as usize } else { 0 };
            let prompt: Arc<[u32]> = (0..length)
                .map(|p| match prefix.get(p).filter(|_| p < common) {
                    Some(id) => *id,
                    None => r.below(VOCABULARY) as u32,
                })
                .collect();
            let mut ids: Vec<u32> = (0..r.range(1, 3)).map(|_| r.below(VOCABULARY) as u32).collect();
            ids.sort_unstable();
            ids.dedup();
            let max_tokens = if r.chance(2) { 0 } else { r.range(1, room.tokens) as u32 };
            let stop = StopRule {
                ids: if stops { ids } else { vec![] },
                min_tokens: if r.chance(30) { r.below(u64::from(max_tokens) + 1) as u32 } else { 0 },
                max_tokens,
            };
            let salt = u64::from(r.chance(25));
            let early = fixed.cut_short;
            let (done, abort) = (r.chance(early.unwrap_or(5)), r.chance(early.unwrap_or(3)));
            let choices = (0..if r.chance(10) { 2 } else { 1 })
                .map(|choice| {
                    Arc::new(Request {
                        key: SeqKey { request: i + 1, choice },
                        prompt: Arc::clone(&prompt),
                        stop: stop.clone(),
                        salt,
                        done_at: done.then(|| r.below(room.tokens) as u32),
                        abort_at: abort.then(|| r.below(room.tokens) as u32),
                    })
                })
                .collect();
            Arrival {
                at,
                gateway: r.below(gateways as u64) as usize,
                choices,
                deadline: r.chance(deadlines).then(|| at + r.below(cycle * room.tokens * 4)),
                cancel: r.chance(early.unwrap_or(cancels)).then(|| at + r.below(cycle * room.tokens * 2)),
            }
        })
        .collect();
    all.sort_by_key(|a| a.at);
    let span = span.max(cycle * room.tokens * 2);
    (all, span)
}

/// Ranks that are drained. One of them at most, so that there is another.
fn drains(r: &mut Rng, ranks: u32, span: Nanos, workers_die: bool) -> Vec<(Nanos, Fault)> {
    if ranks < 2 || !r.chance(15) {
        return vec![];
    }
    let rank = r.below(u64::from(ranks)) as usize;
    let (at, hand_back, goes, after) = (r.below(span), r.chance(60), r.chance(70), 1 + r.below(span));
    vec![(at, Fault::Drain { rank, hand_back, leaves: (goes && workers_die).then_some(after) })]
}

fn link(r: &mut Rng, cycle: Nanos, latency: Nanos) -> LinkConfig {
    let patience = (cycle * r.spread(1, 40)).max(16 * latency);
    LinkConfig {
        patience,
        lease: patience * r.range(2, 10),
        beat: patience / 8,
        limits: SessionLimits { messages: r.spread(64, 1 << 12) as usize, bytes: usize::MAX },
    }
}

/// Gateways die, stall, drain and lose their ranks, which die too while they are to be resumed.
fn gateway_faults(
    r: &mut Rng,
    fixed: &Fixed,
    (gateways, ranks): (usize, usize),
    span: Nanos,
    patience: Nanos,
    workers_die: bool,
) -> Vec<(Nanos, Fault)> {
    let wrong = if r.chance(35) { r.range(1, 4) } else { 0 };
    let mut all = vec![];
    for _ in 0..fixed.gateway_faults.unwrap_or(wrong) {
        let (at, fault) = (r.below(span), Fault::of_gateway(r, (gateways, ranks), patience));
        all.push((at, fault));
        if workers_die && r.chance(30) {
            let worker = match fault {
                Fault::CutLink { rank, .. } => rank,
                _ => r.below(ranks as u64) as usize,
            };
            let later = r.below(2 * patience);
            all.push((at + later, Fault::Kill { worker, away: 1 + r.below(patience) }));
        }
    }
    all
}
