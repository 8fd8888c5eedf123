//! What a gateway and a rank say to each other about a sequence.

use crate::ids::{Attempt, GatewayId, Nanos, SeqKey};
use std::sync::Arc;

/// A sequence bound to a rank. The token ids are the prompt and what earlier attempts produced: a replay is a
/// longer prompt, and gives the same bits.
#[derive(Clone, Debug, PartialEq)]
pub struct Bind {
    /// The sequence.
    pub seq: SeqKey,
    /// Its attempt.
    pub attempt: Attempt,
    /// Who asks.
    pub gateway: GatewayId,
    /// Prompt and produced token ids. Never empty.
    pub ids: Arc<[u32]>,
    /// How many of `ids` were produced.
    pub produced: u32,
    /// When to stop.
    pub stop: StopRule,
    /// When to give up.
    pub deadline: Option<Nanos>,
    /// Keeps one API key's prefixes from another's.
    pub salt: u64,
    /// The lower, the older: of two sequences the younger is handed back first. Survives rebinding.
    pub age: u64,
    /// A replay or a preempted sequence: queues ahead of new work and is never refused while it fits the pool.
    pub replay: bool,
}

/// When a sequence is complete. Stop strings are the gateway's own: it cancels.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct StopRule {
    /// End-of-sequence and stop token ids, sorted.
    pub ids: Vec<u32>,
    /// Tokens to produce at least (the sampler masks `ids` until then).
    pub min_tokens: u32,
    /// Tokens to produce at most, over all attempts.
    pub max_tokens: u32,
}

/// Why a sequence left its rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Finish {
    /// A token of [`StopRule::ids`], or structured output was complete.
    Stop,
    /// [`StopRule::max_tokens`].
    Length,
    /// Its client went.
    Cancelled,
    /// Past its deadline.
    Deadline,
    /// The sampler could not go on.
    Aborted(Abort),
}

/// Why no token could be drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Abort {
    /// What the client wants of its output.
    #[error("the constraint on the output allows no token")]
    Constraint,
    /// Ours: logits that are no numbers, or a step out of turn.
    #[error("the engine's logits give no token")]
    Fault,
}

/// Why a rank did not take a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// It would never fit the rank's KV pool.
    TooLarge {
        /// Tokens the pool holds.
        room: u32,
    },
    /// No room now: try the next rank.
    Busy,
    /// The rank is draining.
    Draining,
}

/// A rank's word on a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RankEvent {
    /// It was taken.
    Accepted,
    /// It was not.
    Refused(Refusal),
    /// One more token, the `index`-th produced over all attempts.
    Token {
        /// From 0.
        index: u32,
        /// The token id.
        id: u32,
    },
    /// It is over.
    Finished(Finish),
    /// The rank ran out of KV blocks, or drains: bind it again with attempt + 1.
    HandedBack,
}
