//! Pressure: what an agent reports of one worker.

use crate::ids::{Nanos, Unit, WorkerId};
use std::ops::Range;

/// One worker, now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pressure {
    /// Attention μ-queues with anything waiting; block L is the head.
    pub attention: Vec<QueuePressure>,
    /// Expert μ-queues with anything waiting, per unit.
    pub experts: Vec<(Unit, QueuePressure)>,
    /// Rank: KV pages in use, and of the pool.
    pub kv_pages: (u32, u32),
    /// Rank: sequences under way, and waiting for room.
    pub sequences: (u32, u32),
    /// Rank: rows dispatched per (block, expert) since the start.
    pub loads: Vec<u64>,
    /// Rank: items that wait for a landing row.
    pub stalled: u32,
    /// Items for experts that nobody holds.
    pub orphans: u32,
    /// Median time of the last attention steps, of the last expert steps, of the last head steps.
    pub step: [Nanos; 3],
    /// The rank's cycle.
    pub cycle: Nanos,
    /// Rank: workers that are slower than their siblings, and how much of their planned fractions they get.
    pub slow: Vec<(WorkerId, f32)>,
    /// Host: what its slots hold.
    pub slots: SlotCounts,
    /// The slices of the placement as it knows them, in order of their blocks.
    pub tables: Vec<TableReport>,
    /// Tokens of prompts found in the prefix cache, and of all prompts.
    pub prefix: (u64, u64),
}

/// Slots of a host by what is done with them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotCounts {
    /// They serve, and the placement wants them to.
    pub serving: u32,
    /// They are loading.
    pub loading: u32,
    /// They serve what still comes, though the placement does not want them any more.
    pub leaving: u32,
}

/// How far a worker is with a slice of the placement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableReport {
    /// The slice's blocks.
    pub blocks: Range<u16>,
    /// The generation that it goes by. Only what waits for a landing row may still leave by an older one.
    pub generation: u64,
    /// What is to be held here and is not loaded yet.
    pub missing: Vec<Unit>,
}

/// One μ-queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueuePressure {
    /// The block.
    pub block: u16,
    /// Rows waiting.
    pub rows: u32,
    /// How long the oldest has waited.
    pub age: Nanos,
}
