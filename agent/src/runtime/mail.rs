//! What the threads of the run time say to each other.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Instant;

use sluice_core::event::PeerUp;
use sluice_core::frame::Frame;
use sluice_core::front::{CancelCause, RankLoad};
use sluice_core::ids::{Attempt, SeqKey, Unit, WorkerId};
use sluice_core::placement::PlacementSlice;
use sluice_core::sequence::{Bind, RankEvent};

use super::front::Choice;
use crate::gateway::{EventSink, Generate};
use crate::sampling::Logprobs;

/// To a worker.
pub(super) enum Mail<U> {
    /// A frame of another worker, with the rows that it names; on a modelled link it reaches this end at `at`.
    Frame { from: WorkerId, frame: Frame, payload: Vec<f32>, at: Option<Instant> },
    /// A sequence, and how to draw its tokens.
    Bind { bind: Bind, choice: Arc<Choice> },
    /// Drop an attempt.
    Cancel { seq: SeqKey, attempt: Attempt },
    /// A peer is there.
    Peer(PeerUp),
    /// The placement changed.
    Placement(Arc<PlacementSlice>),
    /// A unit's weights, or why they could not be loaded.
    Loaded { slot: u32, unit: Unit, weights: Result<Arc<U>, String> },
    /// Report now.
    Report,
    /// Leave.
    Stop,
}

/// To the front.
pub(super) enum FrontMail {
    /// A request of the gateway, with the span it belongs to.
    Submit { request: Box<Generate>, sink: EventSink, span: tracing::Span },
    /// The client, or a stop string, ends a sequence.
    Cancel { seq: SeqKey, cause: CancelCause },
    /// What a rank says.
    Rank { rank: WorkerId, events: Vec<Told>, load: Option<RankLoad> },
    /// Take nothing new.
    Drain,
    /// End everything now.
    Halt,
    /// Whether nothing is under way, and the counts.
    Ask(Sender<FrontState>),
    /// Leave.
    Stop,
}

/// One word of a rank on a sequence.
pub(super) struct Told {
    pub seq: SeqKey,
    pub attempt: Attempt,
    pub event: RankEvent,
    pub logprobs: Option<Box<Logprobs>>,
}

/// What the front says of itself.
#[derive(Clone, Debug)]
pub struct FrontState {
    /// Nothing is under way.
    pub idle: bool,
    /// Sequences by how they ended, and what happened on the way.
    pub counts: sluice_core::front::FrontCounts,
    /// Sequences under way.
    pub live: usize,
    /// Sequences that wait for a rank.
    pub waiting: sluice_core::front::Waiting,
}
