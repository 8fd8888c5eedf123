//! What reaches the thread of a worker that has no core: frames, and whether the peer is there.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use sluice_agent::runtime::{Door, FrontLink, PeerLink, Rows};
use sluice_agent::sampling::Draw;
use sluice_core::event::PeerUp;
use sluice_core::frame::Frame;
use sluice_core::ids::{Attempt, GatewayId, SeqKey, WorkerId};
use sluice_core::placement::PlacementSlice;
use sluice_core::sequence::Bind;
use tokio::sync::OwnedSemaphorePermit;

/// Without a word for so long nothing is taken to come any more.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the transport has to say.
pub enum Mail {
    /// The peer is there.
    Up(PeerUp, Arc<dyn PeerLink>),
    /// It is gone.
    Down,
    /// It says something. What it holds is given back when this is dropped.
    Frame(Frame, Rows, Option<OwnedSemaphorePermit>),
}

/// The sending end.
pub struct Inbox(Sender<Mail>);

/// A door and what comes through it.
pub fn door() -> (Arc<dyn Door>, Receiver<Mail>) {
    let (to, from) = channel();
    (Arc::new(Inbox(to)), from)
}

/// The next word.
///
/// # Errors
/// If none comes.
pub fn next(inbox: &Receiver<Mail>) -> Result<Mail, String> {
    inbox.recv_timeout(PATIENCE).map_err(|_| format!("nothing came for {} s", PATIENCE.as_secs()))
}

/// The peer, as soon as it is there.
///
/// # Errors
/// If it does not come.
pub fn peer(inbox: &Receiver<Mail>) -> Result<(PeerUp, Arc<dyn PeerLink>), String> {
    loop {
        if let Mail::Up(up, link) = next(inbox)? {
            return Ok((up, link));
        }
    }
}

impl Door for Inbox {
    fn frame(&self, _from: WorkerId, frame: Frame, payload: Rows, held: Option<OwnedSemaphorePermit>) {
        let _ = self.0.send(Mail::Frame(frame, payload, held));
    }

    fn peer_up(&self, up: PeerUp, link: Arc<dyn PeerLink>) {
        let _ = self.0.send(Mail::Up(up, link));
    }

    fn peer_down(&self, _worker: WorkerId, _sign: Instant) {
        let _ = self.0.send(Mail::Down);
    }

    // Nothing of what a gateway or a table says matters here.
    fn placement(&self, _slice: Arc<PlacementSlice>) {}
    fn front_up(&self, _gateway: GatewayId, _link: Arc<dyn FrontLink>) {}
    fn front_down(&self, _gateway: GatewayId) {}
    fn bind(&self, _bind: Bind, _draw: Draw) {}
    fn cancel(&self, _seq: SeqKey, _attempt: Attempt) {}
    fn drain(&self, _hand_back: bool) {}
    fn report(&self) {}
    fn stop(&self) {}
}
