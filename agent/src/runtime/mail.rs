//! What the threads of the run time say to each other.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Instant;

use tokio::sync::OwnedSemaphorePermit;

use sluice_core::event::PeerUp;
use sluice_core::frame::Frame;
use sluice_core::front::{CancelCause, RankLoad};
use sluice_core::ids::{Attempt, GatewayId, SeqKey, Unit, WorkerId};
use sluice_core::placement::PlacementSlice;
use sluice_core::sequence::Bind;

use super::links::{FrontLink, PeerLink, RankLink, Told};
use super::rows::Rows;
use crate::gateway::{EventSink, Generate};
use crate::sampling::Draw;

/// To a worker.
pub(super) enum Mail<U> {
    /// A frame of another worker.
    Frame(Arrival),
    /// A sequence, and how to draw its tokens.
    Bind { bind: Bind, draw: Draw },
    /// Drop an attempt.
    Cancel { seq: SeqKey, attempt: Attempt },
    /// A peer is there, and what reaches it.
    Peer { up: PeerUp, link: Arc<dyn PeerLink> },
    /// Both connections to a peer are closed: nothing of their epoch comes any more. When it was last known to live.
    PeerDown { worker: WorkerId, sign: Instant },
    /// A gateway that binds sequences here, and what reaches it.
    Front { gateway: GatewayId, link: Arc<dyn FrontLink> },
    /// A gateway is gone: what it has bound here has been cancelled.
    FrontDown { gateway: GatewayId },
    /// The placement changed.
    Placement(Arc<PlacementSlice>),
    /// A unit's weights, or why they could not be loaded.
    Loaded { slot: u32, unit: Unit, weights: Result<Arc<U>, String> },
    /// Take nothing new; what runs may finish, or is given back to the gateways.
    Drain { hand_back: bool },
    /// Report now.
    Report,
    /// Leave.
    Stop,
}

/// A frame of another worker, with the rows that it names.
pub(super) struct Arrival {
    pub from: WorkerId,
    pub frame: Frame,
    pub payload: Rows,
    /// When it reaches this end of a modelled link.
    pub at: Option<Instant>,
    /// Its part of what its connection may have in line here; given back with it.
    pub _held: Option<OwnedSemaphorePermit>,
}

/// To the front.
pub(super) enum FrontMail {
    /// A request of the gateway, with the span it belongs to.
    Submit { request: Box<Generate>, sink: EventSink, span: tracing::Span },
    /// The client, or a stop string, ends a sequence.
    Cancel { seq: SeqKey, cause: CancelCause },
    /// A rank is there, new or again, and what reaches it.
    RankUp { rank: WorkerId, numerics: Arc<str>, load: RankLoad, link: Arc<dyn RankLink> },
    /// A rank is lost.
    RankDown(WorkerId),
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
