//! What comes back from experts.

use super::segments::State;
use super::{Ask, Rank};
use crate::counters::Counters;
use crate::frame::{ReturnItem, ReturnTo};
use crate::ids::{Nanos, Row, Slice};
use crate::pool::Arrival;

impl Rank {
    /// The row where an output goes.
    pub fn return_row(&self, back: ReturnTo, slice: Slice) -> Row {
        self.slab.returned(back.group, back.k, slice, self.shape.segments)
    }

    /// Takes an output. True if its row is wanted.
    #[inline]
    pub fn returned(&mut self, now: Nanos, item: ReturnItem, n: &mut Counters) -> bool {
        match self.pool.arrive(item.back, item.slice) {
            Arrival::Duplicate => {
                n.duplicate_returns += 1;
                false
            }
            Arrival::Part => !self.pool.is_abandoned(item.back.group),
            Arrival::Abandoned => {
                let token = self.pool.owner(item.back.group);
                self.free_abandoned(token);
                false
            }
            Arrival::Complete(token) => {
                self.token_whole(now, token);
                true
            }
        }
    }

    /// All K outputs of a token are there. Its segment goes on when all of its tokens are whole.
    fn token_whole(&mut self, now: Nanos, token: u32) {
        let id = self.token_segment[token as usize];
        let Some(s) = self.segments.get_mut(id as usize).and_then(Option::as_mut) else {
            debug_assert!(false, "token {token} has no segment");
            return;
        };
        let State::Away(missing) = s.state else {
            debug_assert!(false, "a token came back to a segment that is at home");
            return;
        };
        if missing > 1 {
            s.state = State::Away(missing - 1);
            return;
        }
        s.state = State::Held;
        if !std::mem::replace(&mut s.counted, true) {
            let (class, progress, rows) = (s.class, s.progress, s.tokens.len() as u32);
            self.clocks[class as usize].add(progress, rows);
        }
        self.enqueue(now, id);
    }

    /// An item came back unrun. What it asked for, unless nobody waits for it any more.
    pub fn sent_back(&mut self, item: ReturnItem, n: &mut Counters) -> Option<Ask> {
        if !self.pool.waits_for(item.back, item.slice) {
            n.duplicate_returns += 1;
            return None;
        }
        let ask = self.ask_of(item);
        // Given up in the meantime: unrun counts as returned.
        if ask.is_none() && self.pool.arrive(item.back, item.slice) == Arrival::Abandoned {
            self.free_abandoned(self.pool.owner(item.back.group));
        }
        ask
    }

    /// What an item that is waited for asked, unless its segment was given up.
    pub(super) fn ask_of(&self, item: ReturnItem) -> Option<Ask> {
        let token = self.pool.owner(item.back.group);
        let s = self.segments.get(self.token_segment[token as usize] as usize)?.as_ref()?;
        let at = item.back.group as usize * self.shape.top_k as usize + item.back.k as usize;
        Some(Ask {
            token,
            back: item.back,
            slice: item.slice,
            block: s.block - 1,
            expert: self.asked[at],
            class: s.class,
            progress: s.progress - 1,
        })
    }

    /// The peer that was asked for an item last.
    fn asked_of(&self, item: ReturnItem) -> Option<u32> {
        self.asked_of.get(self.part(item.back, item.slice)).copied()
    }

    /// Items that a peer sends back unrun, without those that somebody else was asked for meanwhile.
    pub fn sent_back_by(&mut self, peer: usize, items: &[ReturnItem], n: &mut Counters) -> Vec<Ask> {
        let mut asks = vec![];
        for &item in items {
            if self.asked_of(item) == Some(peer as u32) {
                asks.extend(self.sent_back(item, n));
            } else {
                n.duplicate_returns += 1;
            }
        }
        asks
    }
}
