//! Heartbeats of a pair: whether the peer lives, and how long the way to it and back takes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use sluice_core::frame::Channel;
use sluice_core::ids::{MILLI, WorkerId};
use sluice_core::silence::{Silence, SilenceConfig};
use sluice_wire::Lane;
use sluice_wire::beat::{Heard, Times};
use sluice_wire::message::encode_beat;

use super::observe::Observer;
use super::outbox::Outbox;
use crate::runtime::Clock;

const BEAT: Duration = Duration::from_millis(50);
/// A silent cut is noticed within a second; a peer on a crowded machine has the time that it usually takes.
const SILENCE: SilenceConfig = SilenceConfig { beat: 50 * MILLI, least: 400 * MILLI, most: 5_000 * MILLI };

/// The heartbeats of one pair, both ways.
#[derive(Debug)]
pub(super) struct Beats {
    peer: WorkerId,
    /// The version of the control connection, on which they travel.
    wire: u16,
    observer: Arc<dyn Observer>,
    clock: Clock,
    silence: Mutex<Silence>,
    heard: Mutex<Option<Heard>>,
}

impl Beats {
    /// Of a pair that begins now.
    pub(super) fn new(peer: WorkerId, wire: u16, observer: Arc<dyn Observer>) -> Self {
        let clock = Clock::start();
        let silence = Mutex::new(Silence::new(SILENCE, clock.now()));
        Self { peer, wire, observer, clock, silence, heard: Mutex::default() }
    }

    /// Something came from the peer, whatever it is.
    pub(super) fn sign(&self) {
        self.silence.lock().unwrap_or_else(PoisonError::into_inner).heard(self.clock.now());
    }

    /// A heartbeat came.
    pub(super) fn came(&self, times: Option<Times>) {
        let Some(times) = times else { return };
        let at = self.clock.now();
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(Heard { sent: times.sent, at });
        if let Some(took) = times.round_trip(at) {
            self.observer.round_trip(self.peer, Duration::from_nanos(took));
        }
    }

    /// Says now and then that this side lives, until the other no longer does: for how long it has been silent.
    pub(super) async fn run(&self, outbox: &Outbox) -> Duration {
        loop {
            tokio::time::sleep(BEAT).await;
            if let Some(silence) = self.is_lost() {
                return silence;
            }
            if outbox.is_empty(Channel::Control) {
                outbox.push(Channel::Control, Lane::Urgent, [self.next()]);
            }
        }
    }

    fn is_lost(&self) -> Option<Duration> {
        let now = self.clock.now();
        let mut silence = self.silence.lock().unwrap_or_else(PoisonError::into_inner);
        silence.is_lost(now).then(|| Duration::from_nanos(silence.lasts(now)))
    }

    fn next(&self) -> Bytes {
        let heard = *self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let mut beat = vec![];
        encode_beat(&Times::new(self.clock.now(), heard), self.wire, &mut beat);
        beat.into()
    }
}

#[cfg(test)]
mod tests {
    use sluice_wire::{Message, WIRE, decode};

    use super::*;

    /// Keeps the peers that it is told round trips of.
    #[derive(Debug, Default)]
    struct Told(Mutex<Vec<WorkerId>>);

    impl Observer for Told {
        fn round_trip(&self, peer: WorkerId, _: Duration) {
            self.0.lock().unwrap().push(peer);
        }
    }

    /// A heartbeat goes from one end to the other.
    fn say(from: &Beats, to: &Beats) {
        let beat = from.next();
        let (message, _) = decode(&beat, Channel::Control, to.wire, 4).unwrap();
        let Message::Beat(times) = message else { panic!("{message:?}") };
        to.came(times);
    }

    #[test]
    fn each_end_learns_how_far_the_other_is() {
        for wire in WIRE.min..=WIRE.max {
            let told = Arc::new(Told::default());
            let [left, right] = [1, 2].map(|peer| Beats::new(WorkerId(peer), wire, told.clone()));
            say(&left, &right);
            say(&right, &left);
            say(&left, &right);
            let due = if wire == 1 { vec![] } else { vec![WorkerId(1), WorkerId(2)] };
            assert_eq!(*told.0.lock().unwrap(), due, "version {wire}");
        }
    }
}
