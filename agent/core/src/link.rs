//! One peer's connection pair as the core sees it: numbers for what is sent, duplicates dropped from what comes.

use crate::frame::{Body, Channel, Frame};
use crate::plant::{self, Plant};
use std::collections::BTreeSet;

/// A number so far ahead of the first that is missing is no sound peer's: what it has under way is bounded.
pub(crate) const AHEAD: u64 = 1 << 14;

/// What a number, or a frame, is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// New.
    New,
    /// It came before, or belongs to another connection.
    Before,
    /// Nobody sends so far ahead.
    TooFar,
}

/// Which numbers of a sequence have been seen: all below `low`, and some ahead of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Window {
    low: u64,
    ahead: BTreeSet<u64>,
}

impl Window {
    /// Takes a number, unless it is too far ahead.
    pub fn insert(&mut self, n: u64) -> Seen {
        if n < self.low {
            return Seen::Before;
        }
        if n > self.low {
            return match n - self.low {
                AHEAD.. => Seen::TooFar,
                _ if self.ahead.insert(n) => Seen::New,
                _ => Seen::Before,
            };
        }
        self.low += 1;
        while self.ahead.remove(&self.low) {
            self.low += 1;
        }
        Seen::New
    }

    /// All numbers below this have been seen.
    pub fn low(&self) -> u64 {
        self.low
    }
}

/// The two directions of one peer.
#[derive(Clone, Debug, Default)]
pub struct Link {
    epoch: u32,
    sent: [u64; 2],
    seen: [Window; 2],
    class_sent: Vec<u64>,
    class_seen: Vec<Window>,
}

impl Link {
    /// A fresh connection pair.
    pub fn new(epoch: u32, classes: usize) -> Self {
        Self {
            epoch,
            class_sent: vec![0; classes],
            class_seen: vec![Window::default(); classes],
            ..Self::default()
        }
    }

    /// Numbers a message.
    pub fn send(&mut self, channel: Channel, body: Body) -> Frame {
        let n = &mut self.sent[channel as usize];
        *n += 1;
        Frame { epoch: self.epoch, channel, number: *n - 1, body }
    }

    /// Takes a frame, if it belongs to this connection and is new.
    pub fn accept(&mut self, frame: &Frame) -> Seen {
        if frame.epoch != self.epoch && !plant::is(Plant::StaleEpoch) {
            return Seen::Before;
        }
        self.seen[frame.channel as usize].insert(frame.number)
    }

    /// Data frames of a class sent so far; counts one more if `next`.
    pub fn class_sent(&mut self, class: u8, next: bool) -> u64 {
        let n = &mut self.class_sent[class as usize];
        *n += u64::from(next);
        *n - u64::from(next)
    }

    /// Notes the arrival of a class's `n`-th data frame. False if there is none such.
    pub fn class_arrived(&mut self, class: u8, n: u64) -> bool {
        self.class_seen.get_mut(class as usize).is_some_and(|w| w.insert(n) != Seen::TooFar)
    }

    /// All of a class's data frames below this number have arrived.
    pub fn class_seen(&self, class: u8) -> u64 {
        self.class_seen.get(class as usize).map_or(0, Window::low)
    }

    /// Data frames sent so far, over all classes.
    pub fn data_sent(&self) -> u64 {
        self.sent[Channel::Data as usize]
    }

    /// All data frames below this number have arrived.
    pub fn data_seen(&self) -> u64 {
        self.seen[Channel::Data as usize].low()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_takes_each_number_once_in_any_order() {
        let mut w = Window::default();
        for n in [2, 0, 5, 1] {
            assert_eq!([w.insert(n), w.insert(n)], [Seen::New, Seen::Before]);
        }
        assert_eq!(w.low(), 3);
        for n in [4, 3] {
            assert_eq!(w.insert(n), Seen::New);
        }
        assert_eq!(w.low(), 6);
        assert!(w.ahead.is_empty());
    }

    #[test]
    fn a_window_remembers_only_so_much() {
        let mut w = Window::default();
        for n in (1..3 * AHEAD).chain([u64::MAX]) {
            assert_eq!(w.insert(n), if n < AHEAD { Seen::New } else { Seen::TooFar });
        }
        assert_eq!(w.ahead.len() as u64, AHEAD - 1);
        assert_eq!([w.insert(0), w.insert(2 * AHEAD - 1)], [Seen::New, Seen::New]);
        assert_eq!(w.low(), AHEAD);
    }

    #[test]
    fn another_epoch_is_refused() {
        let (mut a, mut b) = (Link::new(1, 1), Link::new(2, 1));
        let f = a.send(Channel::Control, Body::Credit(vec![1]));
        assert_eq!(b.accept(&f), Seen::Before);
        let mut c = Link::new(1, 1);
        assert_eq!([c.accept(&f), c.accept(&f)], [Seen::New, Seen::Before]);
        assert_eq!(a.send(Channel::Control, Body::Credit(vec![])).number, 1);
        assert_eq!(a.send(Channel::Data, Body::Credit(vec![])).number, 0);
    }
}
