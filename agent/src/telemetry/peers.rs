//! Peers that this process's workers are connected with: the version of the wire, and how long the way to them and back
//! takes. What is known of a peer goes away with its connection, so there is never more than the table has workers.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::{Histogram, HistogramOpts, HistogramVec, Registry};
use sluice_core::ids::WorkerId;

use super::pressure::PeerPressure;

/// From two processes of one machine to the other end of the world, and to a peer that has no processor.
const SECONDS_OF_ROUND_TRIPS: [f64; 15] =
    [0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0];
/// What a new round trip weighs beside those before it: one part in so many, as in TCP (RFC 6298).
const WEIGHT: u32 = 8;

#[derive(Debug)]
struct Peer {
    wire: u16,
    round_trip: Option<(Histogram, Duration)>,
}

/// By worker and peer.
#[derive(Debug)]
pub(super) struct Peers {
    round_trips: HistogramVec,
    connected: Mutex<BTreeMap<(WorkerId, WorkerId), Peer>>,
}

impl Peers {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let options = HistogramOpts::new(
            "sluice_peer_round_trip_seconds",
            "From a heartbeat to its echo on the control connection with a peer, less the time it was held there. \
             Peers of wire version 1 send no echo.",
        );
        let round_trips =
            HistogramVec::new(options.buckets(SECONDS_OF_ROUND_TRIPS.to_vec()), &["worker", "peer"])?;
        registry.register(Box::new(round_trips.clone()))?;
        Ok(Self { round_trips, connected: Mutex::default() })
    }

    fn connected(&self) -> MutexGuard<'_, BTreeMap<(WorkerId, WorkerId), Peer>> {
        self.connected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn connect(&self, worker: WorkerId, peer: WorkerId, wire: u16) {
        self.connected().insert((worker, peer), Peer { wire, round_trip: None });
    }

    /// The series begins with the first round trip: a peer that sends no echo has none.
    pub(super) fn round_trip(&self, worker: WorkerId, peer: WorkerId, took: Duration) {
        let mut connected = self.connected();
        let Some(known) = connected.get_mut(&(worker, peer)) else { return };
        let (histogram, smooth) = known.round_trip.get_or_insert_with(|| {
            let labels = [worker.0.to_string(), peer.0.to_string()];
            (self.round_trips.with_label_values(&labels), took)
        });
        histogram.observe(took.as_secs_f64());
        *smooth = *smooth - *smooth / WEIGHT + took / WEIGHT;
    }

    pub(super) fn disconnect(&self, worker: WorkerId, peer: WorkerId) {
        let mut connected = self.connected();
        if connected.remove(&(worker, peer)).is_some_and(|known| known.round_trip.is_some()) {
            let labels = [worker.0.to_string(), peer.0.to_string()];
            // It is there, and if it were not, that would be what is wanted.
            let _ = self.round_trips.remove_label_values(&labels);
        }
    }

    /// Those of one worker.
    pub(super) fn pressure(&self, worker: WorkerId) -> Vec<PeerPressure> {
        let connected = self.connected();
        let range = (worker, WorkerId(0))..=(worker, WorkerId(u32::MAX));
        let of = |((_, peer), known): (&(WorkerId, WorkerId), &Peer)| PeerPressure {
            worker: peer.0,
            wire: known.wire,
            round_trip: known.round_trip.as_ref().map(|(_, smooth)| smooth.as_secs_f64()),
        };
        connected.range(range).map(of).collect()
    }
}
