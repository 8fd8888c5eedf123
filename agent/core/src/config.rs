//! What a worker is told at its start. Everything here is fixed for its life.

use crate::cost::Costs;
use crate::hello::Schedule;
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
    /// An expert worker that is slower than its siblings gets less, and what it is late with is asked of them too. One
    /// that is much slower gets a batch so often, to see whether it still is. Without it, nobody is compared.
    pub probe_every: Option<Nanos>,
}

/// The expert role of a worker.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// Room for so many units.
    pub slots: u32,
    /// Landing rows each rank gets.
    pub ring: u32,
    /// A unit that the placement does not name any more serves until no token has come for so long, since others may
    /// hear of it later; or until its slot is wanted.
    pub linger: Nanos,
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
    /// Decode waves: the same at all workers, since a host sorts by the class that a rank names.
    pub waves: u8,
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
    /// An expert worker that holds something and gives no sign for so long, and for 64 cycles, is masked.
    pub patience: Nanos,
}

/// A configuration that cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Neither role.
    #[error("a worker needs the attention role, the expert role, or both")]
    NoRole,
    /// G.
    #[error("segments must be 1, 2, 4 or 8, not {0}")]
    Segments(u8),
    /// K.
    #[error("top_k {top_k} does not fit {experts} experts")]
    TopK {
        /// K.
        top_k: u8,
        /// E.
        experts: u16,
    },
    /// Something is too small for something else.
    #[error("{what} is {is}, but at least {least} is needed ({why})")]
    TooSmall {
        /// What.
        what: &'static str,
        /// Its value.
        is: u32,
        /// What it would have to be.
        least: u32,
        /// For what.
        why: &'static str,
    },
    /// Row numbers have 32 bits.
    #[error(
        "the slab would have {rows} rows, more than row numbers can tell apart: fewer sequences, prefill tokens or expert rows"
    )]
    Slab {
        /// What it would have.
        rows: u64,
    },
    /// Landing rings have an end.
    #[error(
        "the landing ring of a rank has {0} rows, and at most {MOST_RING} can be used: fewer tokens at one time"
    )]
    Ring(u32),
    /// Too many classes.
    #[error("at most 8 waves, not {0}")]
    Waves(u8),
}

impl WorkerConfig {
    /// Whether it can work.
    ///
    /// # Errors
    /// The first reason why not.
    pub fn check(&self) -> Result<(), ConfigError> {
        let s = &self.shape;
        if self.rank.is_none() && self.host.is_none() {
            return Err(ConfigError::NoRole);
        }
        if ![1, 2, 4, 8].contains(&s.segments) {
            return Err(ConfigError::Segments(s.segments));
        }
        if s.moe.contains(&true) && (s.top_k == 0 || u16::from(s.top_k) > s.experts) {
            return Err(ConfigError::TopK { top_k: s.top_k, experts: s.experts });
        }
        let least = |what, is, least, why| match is >= least {
            true => Ok(()),
            false => Err(ConfigError::TooSmall { what, is, least, why }),
        };
        if self.waves as usize >= MAX_CLASSES {
            return Err(ConfigError::Waves(self.waves));
        }
        if self.slab.total() > u64::from(u32::MAX) {
            return Err(ConfigError::Slab { rows: self.slab.total() });
        }
        least("waves", self.waves.into(), 1, "decode needs one")?;
        least("blocks", s.moe.len() as u32, 1, "a model has at least one")?;
        if let Some(r) = &self.rank {
            least("page_size", r.page_size, 1, "a page holds tokens")?;
            least("prefill_chunk", r.prefill_chunk, 1, "a segment has a token")?;
            least("max_sequences", r.max_sequences, 1, "a rank serves something")?;
            least("max_step_rows", self.max_step_rows, 1, "a step has a row")?;
            let rows = r.max_sequences.saturating_add(r.prefill_chunk);
            least("slab tokens", self.slab.tokens, rows, "a row per sequence and a prefill segment")?;
            least("slab groups", self.slab.groups, self.slab.tokens, "a return group per token")?;
            least("slab top_k", self.slab.top_k, s.top_k.into(), "a return row per choice")?;
            least("slab parts", self.slab.parts, 1, "a return row per slice")?;
        }
        if let Some(h) = &self.host {
            least("ring", h.ring, 1, "a rank can send at all")?;
            if h.ring > MOST_RING {
                return Err(ConfigError::Ring(h.ring));
            }
            least("max_expert_rows", self.max_expert_rows, 1, "a step has a row")?;
            least("slab outputs", self.slab.outputs, self.max_expert_rows, "a row per output of a step")?;
        }
        Ok(())
    }

    /// What all workers of a deployment have alike.
    pub fn schedule(&self) -> Schedule {
        Schedule { waves: self.waves, in_step: self.policy == Policy::Sync }
    }

    /// Decode waves and the prefill class.
    pub fn classes(&self) -> u8 {
        self.waves + 1
    }
}

/// Eight decode waves and prefill.
pub(crate) const MAX_CLASSES: usize = 9;

/// Landing rows of a rank at a host: a credit for one behind them is not believed.
pub(crate) const MOST_RING: u32 = 1 << 20;

/// A cycle is never taken for shorter than this: below it, timers would only burn the host.
pub const LEAST_CYCLE: Nanos = 50 * MICRO;
