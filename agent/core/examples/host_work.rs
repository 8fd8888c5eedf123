//! Host work per layer step: receptor, pool, scheduler, dispatcher; no compute, no transport.
//!
//! `cargo run --release -p sluice-core --example host_work`
//!
//! Attention ranks and expert workers in one thread hand each other frames directly; router choices are drawn before
//! the clock runs. Printed: microseconds of core time per step, by role, at several sizes and numbers of μ-queues: the
//! best of fifteen runs of 400 attention steps. `-- --one` is one row of it, for a profiler.

use sluice_core::config::{HostConfig, Policy, RankConfig, Shape, WorkerConfig};
use sluice_core::cost::{Costs, Curve};
use sluice_core::event::{Action, Event, PeerUp};
use sluice_core::frame::Frame;
use sluice_core::ids::{GatewayId, MICRO, SECOND, SeqKey, Slice, Unit, WorkerId};
use sluice_core::placement::{PlacementSlice, Replica, ReplicaState};
use sluice_core::sequence::{Bind, StopRule};
use sluice_core::slab::SlabLayout;
use sluice_core::step::{Outcome, Sample, Step};
use sluice_core::worker::Worker;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The agent's: batches are made and freed with each step.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const RANKS: u32 = 4;
const HOSTS: u32 = 8;
const TOP_K: u8 = 8;

struct Bench {
    workers: Vec<Worker>,
    experts: u16,
    frames: VecDeque<(WorkerId, WorkerId, Frame)>,
    steps: VecDeque<(usize, Step)>,
    spent: [Duration; 2],
    ran: [u64; 2],
    rows: [u64; 2],
    now: u64,
    random: u64,
}

fn config(id: u32, blocks: u16, experts: u16, tokens: u32, policy: Policy) -> WorkerConfig {
    let is_rank = id < RANKS;
    let rows = tokens + 64;
    let slab = SlabLayout {
        tokens: rows,
        groups: rows,
        top_k: TOP_K.into(),
        parts: 1,
        landing: rows * RANKS,
        outputs: 4096,
    };
    let flat = |t: f64| Curve::new(vec![(1.0, t), (64.0, t), (128.0, 2.0 * t)]);
    WorkerConfig {
        id: WorkerId(id),
        shape: Shape { moe: vec![true; blocks as usize], experts, top_k: TOP_K, segments: 1 },
        slab,
        rank: is_rank.then_some(RankConfig {
            pages: rows * 64,
            page_size: 16,
            prefix_reuse: false,
            watermark: 0,
            max_sequences: tokens,
            prefill_chunk: 64,
            prefill_tokens: 64,
            probe_every: Some(SECOND),
        }),
        host: (!is_rank).then_some(HostConfig {
            slots: u32::from(blocks) * u32::from(experts),
            ring: rows,
            linger: SECOND,
        }),
        waves: 1,
        policy,
        max_step_rows: 4096,
        max_expert_rows: 4096,
        spans: false,
        costs: Costs { attention: flat(20_000.0), unit: flat(5_000.0), launch: 5_000 },
        release_cycles: 4,
        initial_cycle: 50_000 * MICRO,
        patience: 3600 * SECOND,
    }
}

impl Bench {
    fn new(blocks: u16, experts: u16, tokens: u32, policy: Policy) -> Self {
        let all = RANKS + HOSTS;
        let mut b = Self {
            workers: (0..all)
                .map(|i| Worker::new(config(i, blocks, experts, tokens, policy)).expect("it works"))
                .collect(),
            experts,
            frames: VecDeque::new(),
            steps: VecDeque::new(),
            spent: [Duration::ZERO; 2],
            ran: [0; 2],
            rows: [0; 2],
            now: 1,
            random: 0x9e37_79b9_7f4a_7c15,
        };
        let replicas = (0..blocks).flat_map(|block| {
            (0..experts).map(move |expert| Replica {
                worker: WorkerId(RANKS + u32::from(expert) % HOSTS),
                unit: Unit { block, expert, slice: Slice::whole(1) },
                state: ReplicaState::Active,
                fraction: 1.0,
            })
        });
        let slice =
            Arc::new(PlacementSlice { blocks: 0..blocks, generation: 1, replicas: replicas.collect() });
        for i in 0..all as usize {
            for j in (0..all).filter(|j| *j as usize != i) {
                let hello = PeerUp { worker: WorkerId(j), epoch: 1, is_rank: j < RANKS, is_host: j >= RANKS };
                b.workers[i].handle(0, Event::PeerUp(hello));
            }
            b.workers[i].handle(0, Event::Placement(slice.clone()));
            b.act(i);
        }
        for r in 0..RANKS {
            for s in 0..tokens {
                let seq = SeqKey { request: u64::from(r * tokens + s), choice: 0 };
                let bind = Bind {
                    seq,
                    attempt: 1,
                    gateway: GatewayId(0),
                    ids: Arc::from([1u32].as_slice()),
                    produced: 0,
                    stop: StopRule { ids: vec![], min_tokens: 0, max_tokens: 900 },
                    deadline: Some(3600 * SECOND),
                    salt: 0,
                    age: seq.request,
                    replay: false,
                };
                b.workers[r as usize].handle(0, Event::Bind(bind));
                b.act(r as usize);
            }
        }
        b
    }

    fn draw(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn act(&mut self, i: usize) {
        let actions: Vec<Action> = self.workers[i].actions().collect();
        for a in actions {
            match a {
                Action::Run(step) => self.steps.push_back((i, step)),
                Action::Send { to, frame } => self.frames.push_back((WorkerId(i as u32), to, frame)),
                Action::LoadSlot { slot, unit } => {
                    self.workers[i].handle(0, Event::SlotLoaded { slot, unit, ok: true });
                    self.act(i);
                }
                _ => {}
            }
        }
    }

    fn outcome(&mut self, step: &Step) -> (Outcome, usize) {
        match step {
            Step::Attention(s) => {
                let mut ids = Vec::with_capacity(s.rows.len() * TOP_K as usize);
                for _ in &s.rows {
                    let first = ids.len();
                    while ids.len() < first + TOP_K as usize {
                        let e = (self.draw() % u64::from(self.experts)) as u16;
                        if !ids[first..].contains(&e) {
                            ids.push(e);
                        }
                    }
                }
                (Outcome::Routed(ids), s.rows.len())
            }
            Step::Experts(s) => (Outcome::Experts, s.items.len()),
            Step::Head(s) => (Outcome::Sampled(vec![Sample::Token(1); s.rows.len()]), s.rows.len()),
        }
    }

    fn timed(&mut self, i: usize, f: impl FnOnce(&mut Worker)) {
        let start = Instant::now();
        f(&mut self.workers[i]);
        self.spent[usize::from(i >= RANKS as usize)] += start.elapsed();
    }

    /// Until so many attention steps are done.
    fn run(&mut self, steps: u64) {
        (self.spent, self.ran, self.rows) = Default::default();
        while self.ran[0] < steps {
            self.now += 10 * MICRO;
            let now = self.now;
            if let Some((from, to, frame)) = self.frames.pop_front() {
                let i = to.0 as usize;
                self.timed(i, |w| {
                    w.receive(now, from, frame);
                    w.settle(now);
                });
                self.act(i);
            } else if let Some((i, step)) = self.steps.pop_front() {
                let (outcome, rows) = self.outcome(&step);
                if !matches!(step, Step::Head(_)) {
                    let role = usize::from(i >= RANKS as usize);
                    self.ran[role] += 1;
                    self.rows[role] += rows as u64;
                }
                self.timed(i, |w| w.handle(now, Event::Done(outcome)));
                self.act(i);
            } else {
                for i in 0..self.workers.len() {
                    if self.workers[i].wake().is_some() {
                        self.workers[i].handle(now, Event::Tick);
                        self.act(i);
                    }
                }
            }
        }
    }
}

/// One row of the table.
fn row(policy: Policy, blocks: u16, experts: u16, tokens: u32, rounds: u32) {
    let mut b = Bench::new(blocks, experts, tokens, policy);
    b.run(400);
    let mut best = [f64::MAX; 2];
    let mut rows = [0.0; 2];
    for _ in 0..rounds {
        b.run(400);
        for role in 0..2 {
            best[role] = best[role].min(b.spent[role].as_secs_f64() * 1e6 / b.ran[role] as f64);
            rows[role] = b.rows[role] as f64 / b.ran[role] as f64;
        }
    }
    println!(
        "| {} | {blocks} x {experts} | {tokens} | {:.2} ({:.0}) | {:.2} ({:.0}) |",
        policy.name(),
        best[0],
        rows[0],
        best[1],
        rows[1]
    );
}

fn main() {
    println!("core time per layer step, K = {TOP_K}, {RANKS} sources, {HOSTS} destinations");
    println!(
        "| scheduler | blocks x experts | tokens per rank | rank: us (rows) | expert worker: us (items) |"
    );
    println!("| --- | --- | --- | --- | --- |");
    if std::env::args().nth(1).as_deref() == Some("--one") {
        return row(Policy::Frontier, 48, 128, 16, 15);
    }
    for policy in [Policy::Frontier, Policy::Defrag, Policy::Mtfs, Policy::Flfs] {
        for (blocks, experts) in [(6, 16), (12, 32), (24, 64), (48, 128)] {
            for tokens in [16, 64] {
                row(policy, blocks, experts, tokens, 15);
            }
        }
    }
}
