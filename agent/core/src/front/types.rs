//! What goes into a front and what comes out.

use crate::ids::{Attempt, GatewayId, Nanos, SECOND, SeqKey, WorkerId};
use crate::sequence::{Abort, Bind, StopRule};
use std::sync::Arc;

/// What a front is told at its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrontConfig {
    /// This gateway.
    pub gateway: GatewayId,
    /// New sequences that no rank has taken yet, at most: beyond that they are refused at the door. At least 1.
    pub queue: usize,
    /// How long a rank that said `Busy` is left alone, unless it reports or a sequence leaves it before.
    pub busy_hold: Nanos,
    /// How long a rank keeps what a gateway that is silent bound to it.
    pub lease: Nanos,
    /// Prefixes remembered for affinity.
    pub prefixes: usize,
}

impl FrontConfig {
    /// Defaults for one gateway.
    pub const fn new(gateway: GatewayId) -> Self {
        Self { gateway, queue: 1024, busy_hold: SECOND / 5, lease: 10 * SECOND, prefixes: 8192 }
    }
}

/// One request: `choices` sequences of one prompt.
#[derive(Clone, Debug)]
pub struct Submit<H> {
    /// Unique over all gateways of a deployment.
    pub request: u64,
    /// One opaque handle per choice, given back with every action on that choice.
    pub choices: Vec<H>,
    /// Token ids of the prompt. Never empty.
    pub prompt: Arc<[u32]>,
    /// When to stop.
    pub stop: StopRule,
    /// When to give up.
    pub deadline: Option<Nanos>,
    /// Keeps one API key's prefixes from another's.
    pub salt: u64,
}

/// What the driver has to do.
#[derive(Clone, Debug)]
pub enum Action<H> {
    /// Send the bind to the rank.
    Bind {
        /// To whom.
        rank: WorkerId,
        /// What.
        bind: Bind,
        /// The sequence's handle.
        handle: H,
    },
    /// Tell the rank to drop one attempt. It may know nothing of it.
    CancelAt {
        /// To whom.
        rank: WorkerId,
        /// The sequence.
        seq: SeqKey,
        /// The attempt to drop; a newer one stays.
        attempt: Attempt,
    },
    /// A token for the client: contiguous and once over all attempts. A call with [`RankEvent::Token`](crate::sequence::RankEvent::Token) gives at most
    /// one, so what travels beside a token (log-probabilities) is joined to it by the driver.
    Deliver {
        /// The sequence.
        seq: SeqKey,
        /// From 0.
        index: u32,
        /// The token id.
        id: u32,
        /// The sequence's handle.
        handle: H,
    },
    /// The sequence is over: the last action that names it, exactly one per sequence that passed the door.
    End {
        /// The sequence.
        seq: SeqKey,
        /// How.
        ending: Ending,
        /// The sequence's handle.
        handle: H,
    },
}

/// The ways a sequence ends. There is no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ending {
    /// All that was asked for was produced.
    Complete(Complete),
    /// Its client cancelled it, or went.
    Cancelled,
    /// Refused, or given up with an error that the client is told.
    Refused(Refused),
    /// Past its deadline.
    Deadline,
    /// Cut with its gateway.
    Cut,
}

/// What completed a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Complete {
    /// A stop token, a stop string, or structured output that allows no more.
    Stop,
    /// [`StopRule::max_tokens`].
    Length,
}

/// Why a sequence is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refused {
    /// The queue is full.
    #[error("all attention ranks are busy and the gateway's queue is full")]
    Busy {
        /// When there may be room.
        retry_after: Nanos,
    },
    /// The gateway goes down.
    #[error("the gateway is draining and takes no new requests")]
    Draining {
        /// When another gateway should have taken over.
        retry_after: Nanos,
    },
    /// No rank's KV pool would ever hold it.
    #[error("prompt and completion need room for {need} tokens and the largest KV pool holds {room}")]
    TooLarge {
        /// Tokens it may need.
        need: u32,
        /// Tokens the largest pool holds.
        room: u32,
    },
    /// The sampler could not go on.
    #[error("sampling could not go on: {0}")]
    Aborted(Abort),
    /// A prompt without tokens, or a request without choices.
    #[error("the prompt has no tokens")]
    Empty,
    /// The request id is in use.
    #[error("the request id is in use")]
    Duplicate,
}

/// Why a sequence is cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CancelCause {
    /// Its client went, or asked for it.
    Client,
    /// The gateway found a stop string: the sequence is complete.
    StopString,
}

/// Sequences that wait for a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Waiting {
    /// New ones.
    pub fresh: usize,
    /// Those that were bound before: their rank was lost, or handed them back.
    pub replays: usize,
}

/// What happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrontCounts {
    /// Sequences that passed the door.
    pub admitted: u64,
    /// Sequences refused at the door.
    pub refused: u64,
    /// Ended complete.
    pub complete: u64,
    /// Ended by their client.
    pub cancelled: u64,
    /// Ended with an error after the door.
    pub failed: u64,
    /// Ended past their deadline.
    pub deadline: u64,
    /// Cut with the gateway.
    pub cut: u64,
    /// Tokens delivered.
    pub tokens: u64,
    /// Events of another attempt, an earlier index or an unknown sequence: dropped.
    pub duplicates: u64,
    /// Tokens that were missing before a later one: answered with a replay.
    pub gaps: u64,
    /// Sequences bound again because their rank was lost.
    pub replays: u64,
    /// Sequences bound again because their rank handed them back.
    pub preempted: u64,
    /// Binds a rank turned down for lack of room.
    pub busy: u64,
}
