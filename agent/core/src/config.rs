//! What a worker is told at its start. Everything here is fixed for its life.

use crate::cost::Costs;
use crate::ids::{MICRO, Nanos, WorkerId};
use crate::slab::SlabLayout;

/// The model as the data plane sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// For each block, whether it has experts (a dense block runs whole on the rank).
    pub moe: Vec<bool>,
    /// Experts per block.
    pub experts: u16,
    /// Experts per token.
    pub top_k: u8,
    /// G: segments of an expert's inner dimension, 1, 2, 4 or 8.
    pub segments: u8,
}

impl Shape {
    /// L.
    pub fn blocks(&self) -> u16 {
        self.moe.len() as u16
    }
}

/// The schedulers, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Policy {
    /// Most tokens first.
    Mtfs,
    /// First layer first.
    Flfs,
    /// The paper's Algorithm 1.
    Defrag,
    /// Complete batches first, least progress first.
    Frontier,
    /// Barrier-synchronous expert parallelism, the baseline.
    Sync,
}

impl Policy {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Mtfs, Self::Flfs, Self::Defrag, Self::Frontier, Self::Sync];

    /// The name used in flags and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mtfs => "mtfs",
            Self::Flfs => "flfs",
            Self::Defrag => "defrag",
            Self::Frontier => "frontier",
            Self::Sync => "sync",
        }
    }
}

impl std::str::FromStr for Policy {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|p| p.name() == s)
            .ok_or_else(|| format!("unknown scheduler {s:?}: one of mtfs, flfs, defrag, frontier, sync"))
    }
}

/// The attention role of a worker.
#[derive(Clone, Debug)]
pub struct RankConfig {
    /// KV pages of the pool.
    pub pages: u32,
    /// Tokens per page.
    pub page_size: u32,
    /// Whether prompts share the pages of equal prefixes.
    pub prefix_reuse: bool,
    /// Pages kept free for the growth of what runs when new work is admitted.
    pub watermark: u32,
    /// Sequences at one time.
    pub max_sequences: u32,
    /// Most tokens of a prefill segment.
    pub prefill_chunk: u32,
    /// Most prefill tokens under way at one time.
    pub prefill_tokens: u32,
    /// Decode waves.
    pub waves: u8,
}

/// The expert role of a worker.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// Room for so many units.
    pub slots: u32,
    /// Landing rows each rank gets.
    pub ring: u32,
}

/// One worker.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Itself.
    pub id: WorkerId,
    /// The model.
    pub shape: Shape,
    /// Its slab.
    pub slab: SlabLayout,
    /// The attention role, if it has it.
    pub rank: Option<RankConfig>,
    /// The expert role, if it has it.
    pub host: Option<HostConfig>,
    /// The scheduler.
    pub policy: Policy,
    /// Token budget of an attention step.
    pub max_step_rows: u32,
    /// Row budget of an expert step, at most [`SlabLayout::outputs`].
    pub max_expert_rows: u32,
    /// Whether blocks held whole here run as spans.
    pub spans: bool,
    /// Measured cost curves.
    pub costs: Costs,
    /// A token that waited so many cycles releases its whole μ-queue.
    pub release_cycles: u32,
    /// The cycle until one has been measured.
    pub initial_cycle: Nanos,
}

impl WorkerConfig {
    /// Decode waves and the prefill class.
    pub fn classes(&self) -> u8 {
        self.rank.as_ref().map_or(1, |r| r.waves.max(1)) + 1
    }
}

/// A cycle is never taken for shorter than this: below it, timers would only burn the host.
pub const LEAST_CYCLE: Nanos = 50 * MICRO;
