//! What goes into a worker's core, and what comes out.

use crate::frame::Frame;
use crate::ids::{Attempt, GatewayId, SeqHandle, SeqKey, Unit, WorkerId};
use crate::placement::PlacementSlice;
use crate::sequence::{Bind, RankEvent};
use crate::step::{Outcome, Step};
use std::sync::Arc;

/// Something happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A gateway binds a sequence to this rank.
    Bind(Bind),
    /// A gateway takes a sequence back.
    Cancel {
        /// The sequence.
        seq: SeqKey,
        /// Its attempt: an older one is ignored.
        attempt: Attempt,
    },
    /// The step that ran is over.
    Done(Outcome),
    /// A peer can be reached: its connection pair is new. Whatever an earlier one still held is given up.
    PeerUp(PeerUp),
    /// Both connections to a peer are closed: nothing of their epoch comes any more. It is masked until its next hello.
    PeerDown(WorkerId),
    /// The placement changed.
    Placement(Arc<PlacementSlice>),
    /// A slot's weights are loaded, or could not be.
    SlotLoaded {
        /// The slot.
        slot: u32,
        /// The unit it was asked to load.
        unit: Unit,
        /// Whether it can serve.
        ok: bool,
    },
    /// Time passed.
    Tick,
    /// Take no new sequences. With `hand_back`, those here go back to their gateways.
    Drain {
        /// Whether to give back what runs.
        hand_back: bool,
    },
}

/// A peer's hello, as far as the core needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerUp {
    /// The peer.
    pub worker: WorkerId,
    /// The epoch of the connection pair, the same on both sides.
    pub epoch: u32,
    /// It dispatches tokens.
    pub is_rank: bool,
    /// It holds experts. It is asked from its first [`Body::Credit`](crate::frame::Body::Credit) on, which gives the
    /// landing rows there.
    pub is_host: bool,
}

/// Something to do, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Run a step; answer with [`Event::Done`]. At most one at a time.
    Run(Step),
    /// Send a frame, with the payload of the rows it names, read now.
    Send {
        /// To whom.
        to: WorkerId,
        /// What.
        frame: Frame,
    },
    /// Close both connections to a peer that is taken for lost. It is masked already; its next hello unmasks it.
    Sever {
        /// The peer.
        worker: WorkerId,
    },
    /// A rank has no landing ring here, since more of them are connected than the slab has room for: it sends this
    /// worker nothing until another one leaves.
    NoRing {
        /// The rank.
        worker: WorkerId,
    },
    /// Tell a gateway.
    Tell {
        /// Whom.
        gateway: GatewayId,
        /// About what.
        seq: SeqKey,
        /// Which attempt.
        attempt: Attempt,
        /// What.
        event: RankEvent,
    },
    /// The sequence goes by this handle from now on.
    Open {
        /// The handle.
        handle: SeqHandle,
        /// The sequence.
        seq: SeqKey,
        /// Its attempt.
        attempt: Attempt,
    },
    /// The handle is free.
    Close {
        /// The handle.
        handle: SeqHandle,
    },
    /// Load a unit's weights into a slot, in the background; answer with [`Event::SlotLoaded`].
    LoadSlot {
        /// The slot.
        slot: u32,
        /// The unit.
        unit: Unit,
    },
    /// Nothing uses the slot's weights any more.
    FreeSlot {
        /// The slot.
        slot: u32,
        /// The unit it held.
        unit: Unit,
    },
}

/// Rows of an arrived frame's payload that are wanted: (index in the payload, row of this worker's slab). They are to
/// be written before any further action is carried out. Rows not listed are duplicates.
pub type Landing = Vec<(u32, crate::ids::Row)>;
