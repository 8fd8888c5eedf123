//! The clock of one class (a decode wave, or prefill) at one rank.

use crate::ids::{FAR, IDLE, Progress};
use std::collections::BTreeMap;

/// A rank that is more than so many passes behind another joins it at its next pass.
const BEHIND: u64 = 2;

/// Counts the rank's tokens of one class by the next progress they will send at.
#[derive(Clone, Debug)]
pub struct Clock {
    blocks: u64,
    counts: BTreeMap<Progress, u32>,
    total: u32,
    /// The highest progress the rank has published as its frontier.
    said: Progress,
    /// The newest frontier heard of another rank.
    heard: Progress,
    /// Where the rank has joined, or is joining, the others: nothing begins a pass below it.
    joining: Progress,
}

impl Clock {
    /// A clock of a model of `blocks` blocks.
    pub fn new(blocks: u16) -> Self {
        Self {
            blocks: u64::from(blocks.max(1)),
            counts: BTreeMap::new(),
            total: 0,
            said: 0,
            heard: 0,
            joining: 0,
        }
    }

    /// Admits `rows` tokens at block 0: at the smallest multiple of the number of blocks not below what the rank has
    /// published, nor where it joins the others. An idle rank joins them at once, where they are.
    pub fn admit(&mut self, rows: u32) -> Progress {
        let own = self.next_pass(self.said);
        match self.total {
            0 => self.joining = self.next_pass(self.heard),
            _ => self.catch_up(own.max(self.joining)),
        }
        let p = own.max(self.joining);
        self.add(p, rows);
        p
    }

    fn next_pass(&self, p: Progress) -> Progress {
        p.div_ceil(self.blocks) * self.blocks
    }

    /// A token would begin a pass at `p`. A rank that has fallen behind the others (it was stopped, or had heard of
    /// nobody when it began) goes on where they are: what has least progress goes first everywhere, so they would wait
    /// for it until it had caught up. All that is still behind goes to one place.
    fn catch_up(&mut self, p: Progress) {
        if p >= self.joining && self.heard > p.saturating_add(BEHIND * self.blocks) {
            self.joining = self.next_pass(self.heard);
        }
    }

    /// A token begins its next pass at `p`, or where the rank joins the others.
    pub fn begin(&mut self, p: Progress, rows: u32) -> Progress {
        self.catch_up(p);
        let to = p.max(self.joining);
        if to > p {
            self.advance(p, to, rows);
        }
        to
    }

    /// Counts tokens at a progress.
    pub fn add(&mut self, p: Progress, rows: u32) {
        if rows > 0 {
            *self.counts.entry(p).or_default() += rows;
            self.total += rows;
        }
    }

    /// Tokens at a progress are gone.
    pub fn remove(&mut self, p: Progress, rows: u32) {
        if rows == 0 {
            return;
        }
        let Some(n) = self.counts.get_mut(&p) else {
            debug_assert!(false, "no tokens at progress {p}");
            return;
        };
        debug_assert!(*n >= rows, "fewer tokens at progress {p} than removed");
        *n -= rows.min(*n);
        self.total -= rows.min(self.total);
        if *n == 0 {
            self.counts.remove(&p);
        }
    }

    /// Tokens move on.
    pub fn advance(&mut self, from: Progress, to: Progress, rows: u32) {
        self.remove(from, rows);
        self.add(to, rows);
    }

    /// The lowest progress that can still come of this rank.
    pub fn frontier(&self) -> Progress {
        self.counts.first_key_value().map_or(IDLE, |(p, _)| *p)
    }

    /// Tokens at exactly the frontier.
    pub fn at_frontier(&self) -> u32 {
        self.counts.first_key_value().map_or(0, |(_, n)| *n)
    }

    /// Tokens at or below a progress.
    pub fn up_to(&self, p: Progress) -> u32 {
        self.counts.range(..=p).map(|(_, n)| n).sum()
    }

    /// All tokens of the class here.
    pub fn total(&self) -> u32 {
        self.total
    }

    /// Notes that the frontier was published.
    pub fn publish(&mut self) -> Progress {
        let f = self.frontier();
        if f != IDLE {
            self.said = self.said.max(f);
        }
        f
    }

    /// Notes another rank's frontier. One from the end of time is no sound rank's, and would take this one there.
    pub fn hear(&mut self, p: Progress) {
        if p < FAR / 2 {
            self.heard = self.heard.max(p);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admission_joins_the_wave_at_its_next_pass() {
        let mut c = Clock::new(6);
        assert_eq!(c.admit(2), 0);
        c.advance(0, 1, 2);
        assert_eq!(c.publish(), 1);
        assert_eq!(c.admit(1), 6, "not below what was published");
        assert_eq!((c.frontier(), c.at_frontier(), c.up_to(6), c.total()), (1, 2, 3, 3));
        c.remove(1, 2);
        c.remove(6, 1);
        assert_eq!(c.publish(), IDLE);
        c.hear(25);
        c.hear(IDLE);
        assert_eq!(c.admit(1), 30, "an idle rank takes the newest mark heard");
        assert_eq!(c.admit(1), 30, "and who follows comes with it, though nothing was published yet");
        c.add(20, 0);
        assert_eq!(c.frontier(), 30, "nothing holds nobody back");
    }

    #[test]
    fn a_rank_far_behind_joins_the_others_once() {
        let mut c = Clock::new(6);
        assert_eq!((c.admit(3), c.publish()), (0, 0));
        c.hear(18);
        c.advance(0, 6, 3);
        assert_eq!((c.publish(), c.begin(6, 1)), (6, 6), "two passes are not far");
        c.hear(19);
        assert_eq!(c.begin(6, 1), 24);
        assert_eq!((c.frontier(), c.at_frontier()), (6, 2), "the others have not begun theirs");
        c.hear(90);
        assert_eq!(c.begin(6, 1), 24, "all go to one place");
        assert_eq!(c.admit(1), 90, "who comes in joins where they are by now");
        assert_eq!(c.begin(6, 1), 90);
        assert_eq!((c.frontier(), c.total(), c.publish()), (24, 4, 24));
        c.advance(24, 30, 2);
        c.hear(FAR - 1);
        c.hear(IDLE);
        assert_eq!((c.begin(30, 1), c.begin(30, 1)), (90, 90));
        assert_eq!((c.frontier(), c.at_frontier()), (90, 4));
        c.advance(90, 96, 3);
        c.hear(200);
        assert_eq!((c.begin(96, 2), c.begin(96, 1)), (204, 204), "though one token is stuck behind");
        assert_eq!((c.frontier(), c.admit(1)), (90, 204));
    }
}
