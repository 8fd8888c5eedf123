//! What reaches the others: workers, ranks and gateways, in this process or on another host.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Instant;

use sluice_core::event::PeerUp;
use sluice_core::frame::Frame;
use sluice_core::front::RankLoad;
use sluice_core::ids::{Attempt, GatewayId, SeqKey, WorkerId};
use sluice_core::placement::PlacementSlice;
use sluice_core::sequence::Bind;
use tokio::sync::OwnedSemaphorePermit;

use super::mail::{Arrival, FrontMail, Mail};
use super::rows::Rows;
pub use crate::link::message::Told;
use crate::sampling::Draw;

/// The rows of a worker, as a link sees them.
pub trait Slab {
    /// Appends the rows that a frame names, one behind the other, as they are now.
    fn payload(&mut self, frame: &Frame, into: &mut Vec<f32>);
}

/// What reaches a peer over one connection pair. Never blocks: what the peer has not room for is not sent to it, by
/// the credits of the core.
pub trait PeerLink: Send + Sync {
    /// Sends a frame and the rows that it names. A link that puts rows into the peer's memory by itself knows where
    /// they go from the frame, and need not ask the slab for them.
    fn send(&self, frame: Frame, slab: &mut dyn Slab, at: Option<Instant>);

    /// Closes both connections.
    fn sever(&self);
}

/// What reaches a gateway.
pub trait FrontLink: Send + Sync {
    /// What a rank says, in order.
    fn rank(&self, rank: WorkerId, events: Vec<Told>, load: Option<RankLoad>);
}

/// What reaches an attention rank.
pub trait RankLink: Send + Sync {
    /// Binds a sequence to it.
    fn bind(&self, bind: Bind, draw: Draw);

    /// Takes one attempt back.
    fn cancel(&self, seq: SeqKey, attempt: Attempt);
}

/// The way into a worker of this process. Nothing here blocks.
pub trait Door: Send + Sync {
    /// A frame of a peer, with the rows that it names. `held` is its part of what its connection may have in line.
    fn frame(&self, from: WorkerId, frame: Frame, payload: Rows, held: Option<OwnedSemaphorePermit>);

    /// A peer is there, and what reaches it.
    fn peer_up(&self, up: PeerUp, link: Arc<dyn PeerLink>);

    /// Both connections to a peer are closed. `sign`: when it was last known to live.
    fn peer_down(&self, worker: WorkerId, sign: Instant);

    /// A slice of the placement.
    fn placement(&self, slice: Arc<PlacementSlice>);

    /// A gateway is there, and what reaches it.
    fn front_up(&self, gateway: GatewayId, link: Arc<dyn FrontLink>);

    /// A gateway is gone: what it bound has been cancelled before.
    fn front_down(&self, gateway: GatewayId);

    /// A gateway binds a sequence.
    fn bind(&self, bind: Bind, draw: Draw);

    /// A gateway takes an attempt back.
    fn cancel(&self, seq: SeqKey, attempt: Attempt);

    /// Take nothing new; what runs may finish, or is given back to the gateways.
    fn drain(&self, hand_back: bool);

    /// Report now.
    fn report(&self);

    /// Leave.
    fn stop(&self);
}

impl<U: Send + Sync> Door for Sender<Mail<U>> {
    fn frame(&self, from: WorkerId, frame: Frame, payload: Rows, held: Option<OwnedSemaphorePermit>) {
        let _ = self.send(Mail::Frame(Arrival { from, frame, payload, at: None, _held: held }));
    }

    fn peer_up(&self, up: PeerUp, link: Arc<dyn PeerLink>) {
        let _ = self.send(Mail::Peer { up, link });
    }

    fn peer_down(&self, worker: WorkerId, sign: Instant) {
        let _ = self.send(Mail::PeerDown { worker, sign });
    }

    fn placement(&self, slice: Arc<PlacementSlice>) {
        let _ = self.send(Mail::Placement(slice));
    }

    fn front_up(&self, gateway: GatewayId, link: Arc<dyn FrontLink>) {
        let _ = self.send(Mail::Front { gateway, link });
    }

    fn front_down(&self, gateway: GatewayId) {
        let _ = self.send(Mail::FrontDown { gateway });
    }

    fn bind(&self, bind: Bind, draw: Draw) {
        let _ = self.send(Mail::Bind { bind, draw });
    }

    fn cancel(&self, seq: SeqKey, attempt: Attempt) {
        let _ = self.send(Mail::Cancel { seq, attempt });
    }

    fn drain(&self, hand_back: bool) {
        let _ = self.send(Mail::Drain { hand_back });
    }

    fn report(&self) {
        let _ = self.send(Mail::Report);
    }

    fn stop(&self) {
        let _ = self.send(Mail::Stop);
    }
}

/// A worker of this process, as one of its peers sees it.
pub(super) struct LocalPeer<U> {
    /// Who sends.
    pub from: WorkerId,
    pub to: Sender<Mail<U>>,
}

impl<U: Send + Sync> PeerLink for LocalPeer<U> {
    fn send(&self, frame: Frame, slab: &mut dyn Slab, at: Option<Instant>) {
        let mut payload = vec![];
        slab.payload(&frame, &mut payload);
        let payload = payload.into();
        let _ = self.to.send(Mail::Frame(Arrival { from: self.from, frame, payload, at, _held: None }));
    }

    /// Nobody is taken for lost within a process: see `patience` in sizing.
    fn sever(&self) {}
}

impl<U: Send + Sync> RankLink for Sender<Mail<U>> {
    fn bind(&self, bind: Bind, draw: Draw) {
        Door::bind(self, bind, draw);
    }

    fn cancel(&self, seq: SeqKey, attempt: Attempt) {
        Door::cancel(self, seq, attempt);
    }
}

/// The front of this process.
pub(super) struct LocalFront(pub Sender<FrontMail>);

impl FrontLink for LocalFront {
    fn rank(&self, rank: WorkerId, events: Vec<Told>, load: Option<RankLoad>) {
        let _ = self.0.send(FrontMail::Rank { rank, events, load });
    }
}
