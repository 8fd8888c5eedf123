//! A worker driven by hand: one event at a time, and what it decides on each.

use super::*;
use crate::config::{HostConfig, Policy, RankConfig, Shape};
use crate::cost::Costs;
use crate::ids::{Attempt, GatewayId, MICRO, SeqKey, Slice, Unit, WorkerId};
use crate::placement::{PlacementSlice, Replica, ReplicaState};
use crate::sequence::{Bind, Finish, RankEvent, Refusal, StopRule};
use crate::slab::SlabLayout;
use crate::step::{AttentionStep, ExpertStep, HeadStep, Sample, Step};
use std::sync::Arc;

mod admission;
mod prompts;

const ME: WorkerId = WorkerId(0);
const CYCLE: Nanos = 1_000 * MICRO;

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

/// A worker, its clock, and the step that its device runs.
struct Bench {
    worker: Worker,
    now: Nanos,
    running: Option<Step>,
}

/// What a rank told about (request, attempt).
type Told = Vec<(u64, Attempt, RankEvent)>;

impl Bench {
    fn new(config: WorkerConfig) -> Self {
        Self { worker: Worker::new(config).unwrap(), now: 0, running: None }
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

    fn head(&self) -> &HeadStep {
        let Some(Step::Head(step)) = &self.running else { panic!("runs {:?}", self.running) };
        step
    }

    /// The running step is over. Routers choose the first experts, samplers draw 100.
    fn done(&mut self) -> Vec<Action> {
        let config = &self.worker.config;
        let outcome = match self.running.take().unwrap() {
            Step::Attention(s) if s.span => Outcome::Spanned(vec![]),
            Step::Attention(s) if config.shape.moe[s.blocks.start as usize] => {
                let k = u16::from(config.shape.top_k);
                Outcome::Routed(s.rows.iter().flat_map(|_| 0..k).collect())
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
