//! The page `/v1/pressure`: what a planner or an autoscaler wants to know, per worker and per unit.

use serde::Serialize;
use sluice_core::ids::{Nanos, SECOND, Unit, WorkerId};
use sluice_core::pressure::TableReport;

use super::devices::DevicesPage;
use super::sample::{FrontSample, WorkerSample};

/// The whole page. Times are in seconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PressurePage {
    /// The workers of this process.
    pub workers: Vec<WorkerPressure>,
    /// The gateway's front, if one runs here.
    pub front: Option<FrontPressure>,
    /// The GPUs of this machine.
    pub devices: DevicesPage,
}

/// The front.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FrontPressure {
    /// Sequences under way.
    pub sequences: usize,
    /// New sequences that wait for a rank.
    pub waiting: usize,
    /// Sequences that wait to be bound again.
    pub waiting_replays: usize,
}

/// One worker.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WorkerPressure {
    /// Its id.
    pub worker: u32,
    /// `attention`, `experts` or `hybrid`.
    pub role: &'static str,
    /// All slots are loaded.
    pub ready: bool,
    /// Why it cannot go on.
    pub failure: Option<String>,
    /// Median time between attention steps.
    pub cycle: f64,
    /// Median times of the last steps.
    pub step: StepTimes,
    /// KV pages.
    pub kv_pages: Pages,
    /// Sequences under way.
    pub running: u32,
    /// Sequences that wait for room.
    pub waiting: u32,
    /// Rows that wait for a landing row.
    pub stalled_rows: u32,
    /// Rows for experts that nobody holds.
    pub orphan_rows: u32,
    /// Units that serve, and that the placement wants.
    pub units_serving: u32,
    /// Units that are loading.
    pub units_loading: u32,
    /// Units that serve what still comes, though the placement does not want them any more.
    pub units_leaving: u32,
    /// The slices of the placement as it knows them.
    pub tables: Vec<TablePressure>,
    /// Prompt tokens found in the prefix cache, since the start.
    pub prefix_hit_tokens: u64,
    /// Prompt tokens looked up, since the start.
    pub prefix_tokens: u64,
    /// Attention queues with anything waiting.
    pub attention: Vec<QueueLoad>,
    /// Expert queues with anything waiting.
    pub experts: Vec<UnitLoad>,
    /// Rows dispatched since the start, by block and expert, expert by expert.
    pub dispatched: Vec<u64>,
    /// Workers that are slower than their siblings.
    pub slow: Vec<SlowPeer>,
    /// What it is among the processes of its deployment, if there are several.
    pub member: Option<MemberPressure>,
    /// Workers of other processes that it is connected with.
    pub peers: Vec<PeerPressure>,
}

/// A worker that is slower than those that hold what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SlowPeer {
    /// Its id.
    pub worker: u32,
    /// The part of its planned fractions that it gets.
    pub share: f32,
}

/// How far a worker is with a slice of the placement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TablePressure {
    /// Its blocks, from and up to.
    pub blocks: [u16; 2],
    /// The generation that the worker goes by.
    pub generation: u64,
    /// What is to be held here and is not loaded yet: block, expert, and its segments, from and up to.
    pub missing: Vec<[u16; 4]>,
}

impl TablePressure {
    fn new(t: &TableReport) -> Self {
        let missing = |u: &Unit| [u.block, u.expert, u.slice.lo.into(), u.slice.hi.into()];
        Self {
            blocks: [t.blocks.start, t.blocks.end],
            generation: t.generation,
            missing: t.missing.iter().map(missing).collect(),
        }
    }
}

/// A worker among others.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MemberPressure {
    /// Its name.
    pub name: String,
    /// Rises with each start.
    pub incarnation: u64,
    /// The numerics id. None until the model is loaded, as with `model` and `slots`.
    pub numerics: Option<String>,
    /// The model.
    pub model: Option<ModelPressure>,
    /// Units that the table wants it to hold.
    pub units_wanted: u32,
    /// Units it has room for.
    pub slots: Option<u32>,
    /// What somebody has to do something about.
    pub problem: Option<String>,
    /// Peers that it has met, and sends nothing until their next hello.
    pub masked: Vec<MaskedPeer>,
}

/// What of a model a placement is made for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ModelPressure {
    /// For each block, whether it has experts.
    pub moe: Vec<bool>,
    /// Experts of each block that has any.
    pub experts: u16,
    /// Experts that a token goes to.
    pub top_k: u8,
    /// Segments of an expert's inner dimension.
    pub segments: u8,
}

/// A masked peer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MaskedPeer {
    /// Its id.
    pub worker: u32,
    /// Its name.
    pub name: String,
    /// `broke`, `garbage`, `silent` or `owed`.
    pub reason: &'static str,
    /// The same, in words.
    pub why: String,
    /// For how long.
    pub seconds: f64,
}

/// A peer that a worker is connected with.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PeerPressure {
    /// Its id.
    pub worker: u32,
    /// The version of the wire that the two speak.
    pub wire: u16,
    /// How long the way there and back takes, smoothed. None in version 1, and before the first echo.
    pub round_trip: Option<f64>,
}

/// Median times of the last steps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct StepTimes {
    /// Attention.
    pub attention: f64,
    /// Experts.
    pub experts: f64,
    /// Head.
    pub head: f64,
}

/// KV pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Pages {
    /// Held by sequences.
    pub used: u32,
    /// In all.
    pub total: u32,
}

/// One attention queue.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct QueueLoad {
    /// The block; the one after the last is the head.
    pub block: u16,
    /// Rows waiting.
    pub rows: u32,
    /// How long the oldest has waited.
    pub age: f64,
}

/// One unit's queue.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct UnitLoad {
    /// The block.
    pub block: u16,
    /// The expert.
    pub expert: u16,
    /// Its segments, from and up to.
    pub segments: [u8; 2],
    /// Rows waiting.
    pub rows: u32,
    /// How long the oldest has waited.
    pub age: f64,
}

fn seconds(nanos: Nanos) -> f64 {
    nanos as f64 / SECOND as f64
}

impl PressurePage {
    pub(super) fn new<'a>(
        workers: impl Iterator<Item = &'a WorkerSample>,
        peers: impl Fn(WorkerId) -> Vec<PeerPressure>,
        front: Option<&FrontSample>,
        devices: DevicesPage,
    ) -> Self {
        Self {
            workers: workers.map(|sample| WorkerPressure::new(sample, peers(sample.worker))).collect(),
            front: front.map(|f| FrontPressure {
                sequences: f.live,
                waiting: f.waiting.fresh,
                waiting_replays: f.waiting.replays,
            }),
            devices,
        }
    }
}

impl WorkerPressure {
    fn new(sample: &WorkerSample, peers: Vec<PeerPressure>) -> Self {
        let p = &sample.pressure;
        let [attention, experts, head] = p.step.map(seconds);
        Self {
            worker: sample.worker.0,
            role: sample.role,
            ready: sample.ready,
            failure: sample.failure.clone(),
            cycle: seconds(p.cycle),
            step: StepTimes { attention, experts, head },
            kv_pages: Pages { used: p.kv_pages.0, total: p.kv_pages.1 },
            running: p.sequences.0,
            waiting: p.sequences.1,
            stalled_rows: p.stalled,
            orphan_rows: p.orphans,
            units_serving: p.slots.serving,
            units_loading: p.slots.loading,
            units_leaving: p.slots.leaving,
            tables: p.tables.iter().map(TablePressure::new).collect(),
            prefix_hit_tokens: p.prefix.0,
            prefix_tokens: p.prefix.1,
            attention: p
                .attention
                .iter()
                .map(|q| QueueLoad { block: q.block, rows: q.rows, age: seconds(q.age) })
                .collect(),
            experts: p
                .experts
                .iter()
                .map(|(unit, q)| UnitLoad {
                    block: unit.block,
                    expert: unit.expert,
                    segments: [unit.slice.lo, unit.slice.hi],
                    rows: q.rows,
                    age: seconds(q.age),
                })
                .collect(),
            dispatched: p.loads.clone(),
            slow: p.slow.iter().map(|(worker, share)| SlowPeer { worker: worker.0, share: *share }).collect(),
            member: None,
            peers,
        }
    }
}
