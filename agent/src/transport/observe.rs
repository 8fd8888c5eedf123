//! What is told of connections with peers.

use std::fmt;
use std::time::Duration;

use sluice_core::ids::WorkerId;

/// Watches the pairs of one worker. None of it may block.
pub trait Observer: fmt::Debug + Send + Sync {
    /// A pair stands; its control connection has this version of the wire.
    fn connected(&self, peer: WorkerId, wire: u16) {
        let _ = (peer, wire);
    }

    /// The way to a peer and back took so long, on the control connection.
    fn round_trip(&self, peer: WorkerId, took: Duration) {
        let _ = (peer, took);
    }

    /// The pair has ended.
    fn disconnected(&self, peer: WorkerId) {
        let _ = peer;
    }
}

/// Watches nothing.
impl Observer for () {}
