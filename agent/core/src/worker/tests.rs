//! A worker driven by hand: one event at a time, and what it decides on each.

use super::*;
use crate::config::{HostConfig, Policy, RankConfig, Shape};
use crate::cost::Costs;
use crate::frame::{Channel, ReturnBatch, ReturnItem, ReturnTo, RowMove, TokenBatch, TokenItem};
use crate::ids::{Attempt, Class, GatewayId, MICRO, Progress, SeqKey, Slice, Unit, WorkerId};
use crate::link::Link;
use crate::placement::{PlacementSlice, Replica, ReplicaState};
use crate::sequence::{Abort, Bind, Finish, RankEvent, Refusal, StopRule};
use crate::slab::SlabLayout;
use crate::step::{AttentionStep, ExpertStep, HeadStep, Sample, Step};
use std::sync::Arc;

mod admission;
mod asking;
mod books;
mod config;
mod failure;
mod hosting;
mod in_step;
mod marks;
mod pace;
mod prompts;
mod scheduling;
mod spans;
mod waiting;

const ME: WorkerId = WorkerId(0);
const CYCLE: Nanos = 1_000 * MICRO;
const PATIENCE: Nanos = 1000 * CYCLE;
const PROBE_EVERY: Nanos = 20 * CYCLE;

/// A rank of two dense blocks: all that a token needs is here. Pages of four tokens.
fn dense() -> WorkerConfig {
    WorkerConfig {
        id: ME,
        shape: Shape { moe: vec![false; 2], experts: 4, top_k: 2, segments: 2 },
        slab: SlabLayout { tokens: 32, groups: 32, top_k: 2, parts: 2, landing: 16, outputs: 16 },
        rank: Some(RankConfig {
            pages: 16,
            page_size: 4,
            prefix_reuse: false,
            watermark: 0,
            max_sequences: 8,
            prefill_chunk: 8,
            prefill_tokens: 16,
            probe_every: Some(PROBE_EVERY),
        }),
        host: None,
        waves: 2,
        policy: Policy::Flfs,
        max_step_rows: 32,
        max_expert_rows: 16,
        spans: false,
        costs: Costs::default(),
        release_cycles: 4,
        initial_cycle: CYCLE,
        patience: PATIENCE,
    }
}

/// The same with other numbers at the rank.
fn dense_with(change: impl FnOnce(&mut RankConfig)) -> Bench {
    let mut config = dense();
    change(config.rank.as_mut().unwrap());
    Bench::new(config)
}

/// The first attempt of a request whose age is its number.
fn bind(request: u64, prompt: u32, max_tokens: u32) -> Bind {
    Bind {
        seq: SeqKey { request, choice: 0 },
        attempt: 1,
        gateway: GatewayId(0),
        ids: (0..prompt).collect(),
        produced: 0,
        stop: StopRule { ids: vec![], min_tokens: 0, max_tokens },
        deadline: None,
        salt: 0,
        age: request,
        replay: false,
    }
}

fn replay(bind: Bind) -> Bind {
    Bind { replay: true, ..bind }
}

/// The connection pair of a peer, as that peer has it.
struct Peer {
    id: WorkerId,
    link: Link,
}

/// An expert held whole.
fn unit(block: u16, expert: u16) -> Unit {
    Unit { block, expert, slice: Slice::whole(2) }
}

/// An active replica.
fn held(worker: WorkerId, unit: Unit) -> Replica {
    Replica { worker, unit, state: ReplicaState::Active, fraction: 1.0 }
}

/// A worker, its clock, and the step that its device runs.
struct Bench {
    worker: Worker,
    now: Nanos,
    running: Option<Step>,
    /// Steps that were run: no test runs many.
    steps: u32,
    /// Routers choose by it; the first experts if it is 0.
    random: Random,
}

/// A generator of numbers, the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 >> 33) % n
    }
}

/// What a rank told about (request, attempt).
type Told = Vec<(u64, Attempt, RankEvent)>;

impl Bench {
    fn new(config: WorkerConfig) -> Self {
        Self { worker: Worker::new(config).unwrap(), now: 0, running: None, steps: 0, random: Random(0) }
    }

    /// What the worker has decided by now. Its books agree whenever it is asked.
    fn actions(&mut self) -> Vec<Action> {
        self.worker.check().unwrap();
        let mut all: Vec<Action> = self.worker.actions().collect();
        for step in all.extract_if(.., |a| matches!(a, Action::Run(_))) {
            let Action::Run(step) = step else { unreachable!() };
            assert!(self.running.replace(step).is_none(), "one step at a time");
        }
        all
    }

    fn handle(&mut self, event: Event) -> Vec<Action> {
        self.worker.handle(self.now, event);
        self.actions()
    }

    fn bind(&mut self, bind: Bind) -> Told {
        told(&self.handle(Event::Bind(bind)))
    }

    fn cancel(&mut self, request: u64, attempt: Attempt) -> Told {
        told(&self.handle(Event::Cancel { seq: SeqKey { request, choice: 0 }, attempt }))
    }

    fn tick(&mut self, now: Nanos) -> Told {
        self.now = now;
        told(&self.handle(Event::Tick))
    }

    fn attention(&self) -> &AttentionStep {
        let Some(Step::Attention(step)) = &self.running else { panic!("runs {:?}", self.running) };
        step
    }

    fn experts(&self) -> &ExpertStep {
        let Some(Step::Experts(step)) = &self.running else { panic!("runs {:?}", self.running) };
        step
    }

    fn head(&self) -> &HeadStep {
        let Some(Step::Head(step)) = &self.running else { panic!("runs {:?}", self.running) };
        step
    }

    /// The running step is over. Samplers draw 100.
    fn done(&mut self) -> Vec<Action> {
        self.steps += 1;
        assert!(self.steps < 1_000, "it goes on for ever");
        let config = &self.worker.config;
        let outcome = match self.running.take().unwrap() {
            Step::Attention(s) if s.span => Outcome::Spanned(vec![]),
            Step::Attention(s) if config.shape.moe[s.blocks.start as usize] => {
                let k = u16::from(config.shape.top_k);
                let (random, experts) = (&mut self.random, u64::from(config.shape.experts));
                let mut first = || if random.0 == 0 { 0 } else { random.below(experts) as u16 };
                let row = |first: u16| (0..k).map(move |i| (first + i) % experts as u16);
                Outcome::Routed(s.rows.iter().flat_map(|_| row(first())).collect())
            }
            Step::Attention(_) => Outcome::Routed(vec![]),
            Step::Experts(_) => Outcome::Experts,
            Step::Head(s) => Outcome::Sampled(vec![Sample::Token(100); s.rows.len()]),
        };
        self.handle(Event::Done(outcome))
    }

    /// Runs steps until one that `stop` wants is running, or none is.
    fn run_until(&mut self, stop: impl Fn(&Step) -> bool) -> Vec<Action> {
        let mut all = vec![];
        while self.running.as_ref().is_some_and(|s| !stop(s)) {
            all.extend(self.done());
        }
        all
    }

    /// A peer's hello. `ring`: it holds experts and gives so many landing rows.
    fn meet(&mut self, peer: u32, is_rank: bool, host_ring: Option<u32>) -> Peer {
        let is_host = host_ring.is_some();
        self.handle(Event::PeerUp(PeerUp { worker: WorkerId(peer), epoch: 1, is_rank, is_host }));
        let mut peer = Peer { id: WorkerId(peer), link: Link::new(1, 3) };
        if let Some(rows) = host_ring {
            self.hear(&mut peer, Body::Credit((0..rows).rev().collect()));
        }
        peer
    }

    /// The next frame of a peer. Nothing follows from it before the worker settles.
    fn receive(&mut self, from: &mut Peer, body: Body) -> Landing {
        let channel = match body {
            Body::Tokens(_) | Body::Returns(_) => Channel::Data,
            _ => Channel::Control,
        };
        let frame = from.link.send(channel, body);
        self.worker.receive(self.now, from.id, frame)
    }

    fn settle(&mut self) -> Vec<Action> {
        self.worker.settle(self.now);
        self.actions()
    }

    fn hear(&mut self, from: &mut Peer, body: Body) -> Vec<Action> {
        self.receive(from, body);
        self.settle()
    }

    /// A generation of the placement of all blocks.
    fn place(&mut self, generation: u64, replicas: Vec<Replica>) -> Vec<Action> {
        let blocks = 0..self.worker.config.shape.blocks();
        self.handle(Event::Placement(Arc::new(PlacementSlice { blocks, generation, replicas })))
    }

    /// Loads all slots that the actions ask for.
    fn load(&mut self, actions: &[Action]) {
        for a in actions {
            if let &Action::LoadSlot { slot, unit } = a {
                self.handle(Event::SlotLoaded { slot, unit, ok: true });
            }
        }
    }

    /// Runs until nothing is left to run.
    fn run(&mut self) -> Told {
        told(&self.run_until(|_| false))
    }
}

fn told(actions: &[Action]) -> Told {
    actions
        .iter()
        .filter_map(|a| match a {
            Action::Tell { seq, attempt, event, .. } => Some((seq.request, *attempt, *event)),
            _ => None,
        })
        .collect()
}

/// What goes to peers.
fn sent(actions: &[Action]) -> Vec<(WorkerId, &Body)> {
    actions
        .iter()
        .filter_map(|a| match a {
            Action::Send { to, frame } => Some((*to, &frame.body)),
            _ => None,
        })
        .collect()
}
