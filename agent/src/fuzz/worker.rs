//! A worker whose peers send it messages that can be read, and mean whatever they like.

use std::sync::Arc;

use sluice_core::config::{HostConfig, Policy, RankConfig, Shape, WorkerConfig};
use sluice_core::cost::Costs;
use sluice_core::event::{Action, Event, PeerUp};
use sluice_core::frame::{Body, Channel};
use sluice_core::ids::{GatewayId, MILLI, Nanos, SeqKey, Slice, Unit, WorkerId};
use sluice_core::placement::{PlacementSlice, Replica, ReplicaState};
use sluice_core::sequence::{Bind, StopRule};
use sluice_core::slab::SlabLayout;
use sluice_core::step::{Outcome, Sample, Step};
use sluice_core::worker::Worker;
use sluice_wire::{Message, WIRE, decode};

use super::wire::ROW;

const EXPERTS: u16 = 4;
const TOP_K: u8 = 2;
const SEGMENTS: u8 = 2;
/// Holds the experts that the worker does not; a rank; both.
const PEERS: [(bool, bool); 3] = [(false, true), (true, false), (true, true)];

fn config(policy: Policy) -> WorkerConfig {
    WorkerConfig {
        id: WorkerId(0),
        shape: Shape { moe: vec![true; 2], experts: EXPERTS, top_k: TOP_K, segments: SEGMENTS },
        slab: SlabLayout { tokens: 16, groups: 16, top_k: 2, parts: 2, landing: 8, outputs: 16 },
        rank: Some(RankConfig {
            pages: 16,
            page_size: 4,
            prefix_reuse: false,
            watermark: 0,
            max_sequences: 8,
            prefill_chunk: 4,
            prefill_tokens: 8,
            probe_every: Some(MILLI),
        }),
        host: Some(HostConfig { slots: 4, ring: 4, linger: MILLI }),
        waves: 2,
        policy,
        max_step_rows: 16,
        max_expert_rows: 16,
        spans: false,
        costs: Costs::default(),
        release_cycles: 4,
        initial_cycle: MILLI,
        patience: 200 * MILLI,
    }
}

/// Messages one after the other: who sends it and how, the length in two bytes, the message.
pub(super) fn worker(data: &[u8]) {
    let Some((policy, mut rest)) = data.split_first() else { return };
    let mut bench = Bench::new(Policy::ALL[usize::from(*policy) % Policy::ALL.len()]);
    while let [how, low, high, more @ ..] = rest {
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(more.len());
        let (message, behind) = more.split_at(length);
        bench.say(*how, message);
        rest = behind;
    }
    // Whoever lied, time goes on.
    for _ in 0..8 {
        bench.step();
    }
}

struct Bench {
    worker: Worker,
    now: Nanos,
    running: Option<Step>,
    /// The next number of a message, by peer and connection.
    numbers: [[u64; 2]; PEERS.len()],
    rows: u32,
}

impl Bench {
    fn new(policy: Policy) -> Self {
        let config = config(policy);
        let rows = config.slab.rows();
        let worker = Worker::new(config).expect("a configuration that works");
        let mut bench = Self { worker, now: MILLI, running: None, numbers: Default::default(), rows };
        for (number, (is_rank, is_host)) in (1..).zip(PEERS) {
            bench.handle(Event::PeerUp(PeerUp { worker: WorkerId(number), epoch: 3, is_rank, is_host }));
        }
        let held = |block: u16| {
            (0..EXPERTS).map(move |expert| Replica {
                worker: WorkerId(u32::from(expert % 2)),
                unit: Unit { block, expert, slice: Slice { lo: 0, hi: SEGMENTS } },
                state: ReplicaState::Active,
                fraction: 1.0,
            })
        };
        let replicas = (0..2).flat_map(held).collect();
        bench.handle(Event::Placement(Arc::new(PlacementSlice { blocks: 0..2, generation: 1, replicas })));
        for request in 0..3 {
            bench.handle(Event::Bind(Bind {
                seq: SeqKey { request, choice: 0 },
                attempt: 1,
                gateway: GatewayId(0),
                ids: (0..3).collect(),
                produced: 0,
                stop: StopRule { ids: vec![], min_tokens: 0, max_tokens: 4 },
                deadline: None,
                salt: 0,
                age: request,
                replay: false,
            }));
        }
        bench
    }

    /// A peer's message, with the epoch and the number that are due unless it insists on its own. Then, or not, the
    /// running step ends.
    fn say(&mut self, how: u8, message: &[u8]) {
        let peer = usize::from(how & 3) % PEERS.len();
        let channel = if how & 4 == 0 { Channel::Data } else { Channel::Control };
        if let Ok((Message::Frame(mut frame), payload)) = decode(message, channel, WIRE.max, ROW) {
            let next = &mut self.numbers[peer][channel as usize];
            if how & 8 == 0 {
                (frame.epoch, frame.number) = (3, *next);
            }
            *next += 1;
            let items = match &frame.body {
                Body::Tokens(_) | Body::Returns(_) => payload.len() / ROW,
                _ => 0,
            };
            let landing = self.worker.receive(self.now, WorkerId(peer as u32 + 1), frame);
            for (index, row) in landing {
                assert!((index as usize) < items && row < self.rows, "row {index} of {items} to row {row}");
            }
            self.worker.settle(self.now);
            self.act();
        }
        if how & 16 != 0 {
            self.step();
        }
    }

    fn handle(&mut self, event: Event) {
        self.worker.handle(self.now, event);
        self.act();
    }

    fn act(&mut self) {
        self.worker.check().expect("its books agree");
        let actions: Vec<Action> = self.worker.actions().collect();
        for action in actions {
            match action {
                Action::Run(step) => assert!(self.running.replace(step).is_none(), "one step at a time"),
                Action::LoadSlot { slot, unit } => self.handle(Event::SlotLoaded { slot, unit, ok: true }),
                Action::Sever { worker } => self.handle(Event::PeerDown(worker)),
                _ => {}
            }
        }
    }

    /// The running step ends; without one, some time passes.
    fn step(&mut self) {
        self.now += MILLI;
        let Some(step) = self.running.take() else { return self.handle(Event::Tick) };
        let outcome = match step {
            Step::Attention(step) => {
                let experts = (0..).map(|i| i % EXPERTS);
                Outcome::Routed(experts.take(step.rows.len() * usize::from(TOP_K)).collect())
            }
            Step::Experts(_) => Outcome::Experts,
            Step::Head(step) => Outcome::Sampled(vec![Sample::Token(7); step.rows.len()]),
        };
        self.handle(Event::Done(outcome));
    }
}
