//! A modelled link: frames between workers take the time of a network that one does not have.
//!
//! Rows leave a worker's port one frame after another, take a hop, and pass the receiver's port one frame after
//! another, in the order in which they reach it. Frames without rows only take the hop.

use std::time::{Duration, Instant};

use sluice_core::frame::{Body, Frame};

use super::mail::Arrival;
use crate::backend::modelled::Link;

/// One worker's end of the network.
pub(super) struct Port {
    link: Link,
    /// When all rows sent so far have left.
    sent: Instant,
    /// When all rows that have reached this end are through.
    received: Instant,
    /// By when they reach this end, soonest last.
    coming: Vec<(Instant, Arrival)>,
    /// By when they are here whole, soonest last.
    passing: Vec<(Instant, Arrival)>,
}

impl Port {
    pub(super) fn new(link: Link) -> Self {
        let now = Instant::now();
        Self { link, sent: now, received: now, coming: vec![], passing: vec![] }
    }

    /// When a frame that is sent now reaches the receiver's end.
    pub(super) fn depart(&mut self, now: Instant, frame: &Frame) -> Instant {
        let hop = Duration::from_secs_f64(self.link.hop);
        let rows = self.time_of(frame);
        if rows.is_zero() {
            return now + hop;
        }
        let start = now.max(self.sent);
        self.sent = start + rows;
        start + hop
    }

    /// A frame is on its way, and reaches this end at `at`.
    pub(super) fn take(&mut self, at: Instant, held: Arrival) {
        insert(&mut self.coming, at, held);
    }

    /// When [`Self::due`] is to be asked again.
    pub(super) fn next(&self) -> Option<Instant> {
        let soonest = |frames: &[(Instant, Arrival)]| frames.last().map(|f| f.0);
        soonest(&self.coming).into_iter().chain(soonest(&self.passing)).min()
    }

    /// A frame that is here whole by now.
    pub(super) fn due(&mut self, now: Instant) -> Option<Arrival> {
        while let Some((at, held)) = self.coming.pop_if(|f| f.0 <= now) {
            let rows = self.time_of(&held.frame);
            let mut whole = at;
            if !rows.is_zero() {
                whole = at.max(self.received) + rows;
                self.received = whole;
            }
            insert(&mut self.passing, whole, held);
        }
        self.passing.pop_if(|f| f.0 <= now).map(|f| f.1)
    }

    fn time_of(&self, frame: &Frame) -> Duration {
        let rows = match &frame.body {
            Body::Tokens(b) => b.rows.len(),
            Body::Returns(b) => b.rows.len(),
            _ => 0,
        };
        Duration::from_secs_f64(rows as f64 * self.link.row_bytes / self.link.bandwidth)
    }
}

/// Behind those of the same time.
fn insert(frames: &mut Vec<(Instant, Arrival)>, at: Instant, held: Arrival) {
    let place = frames.partition_point(|f| f.0 > at);
    frames.insert(place, (at, held));
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_core::frame::{Channel, ReturnBatch};
    use sluice_core::ids::WorkerId;

    const MS: Duration = Duration::from_millis(1);

    /// A hop of 10 ms, a row every millisecond.
    fn port() -> Port {
        Port::new(Link { hop: 0.01, bandwidth: 1000.0, row_bytes: 1.0 })
    }

    fn frame(rows: u32) -> Frame {
        let body = match rows {
            0 => Body::Credit(vec![]),
            _ => Body::Returns(ReturnBatch { rows: (0..rows).collect(), items: vec![], freed: vec![] }),
        };
        Frame { epoch: 1, channel: Channel::Data, number: 0, body }
    }

    fn held(from: u32, rows: u32) -> Arrival {
        Arrival { from: WorkerId(from), frame: frame(rows), payload: vec![].into(), at: None, _held: None }
    }

    #[test]
    fn rows_leave_one_frame_after_another_and_control_does_not_wait() {
        let mut port = port();
        let now = Instant::now();
        assert_eq!(port.depart(now, &frame(5)), now + 10 * MS);
        assert_eq!(port.depart(now, &frame(3)), now + 15 * MS);
        assert_eq!(port.depart(now, &frame(0)), now + 10 * MS);
        assert_eq!(port.depart(now + 20 * MS, &frame(1)), now + 30 * MS);
    }

    #[test]
    fn frames_pass_the_port_in_the_order_in_which_they_reach_it() {
        let mut port = port();
        let now = Instant::now();
        // Heard of first, but it still waits for its sender's port.
        port.take(now + 30 * MS, held(1, 5));
        port.take(now + 10 * MS, held(2, 4));
        port.take(now + 11 * MS, held(3, 2));
        port.take(now + 12 * MS, held(4, 0));
        let mut seen = vec![];
        for ms in 0..50u32 {
            while let Some(h) = port.due(now + ms * MS) {
                seen.push((h.from.0, ms));
            }
        }
        assert_eq!(seen, [(4, 12), (2, 14), (3, 16), (1, 35)]);
        assert!(port.next().is_none());
    }
}
