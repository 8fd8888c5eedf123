//! The clock of one class (a decode wave, or prefill) at one rank.

use crate::ids::{IDLE, Progress};
use std::collections::BTreeMap;

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
}

impl Clock {
    /// A clock of a model of `blocks` blocks.
    pub fn new(blocks: u16) -> Self {
        Self { blocks: u64::from(blocks.max(1)), counts: BTreeMap::new(), total: 0, said: 0, heard: 0 }
    }

    /// Admits `rows` tokens at block 0: at the smallest multiple of the number of blocks not below what the rank
    /// has published, or, when it was idle, what it has heard.
    pub fn admit(&mut self, rows: u32) -> Progress {
        let base = if self.total == 0 { self.said.max(self.heard) } else { self.said };
        let p = base.div_ceil(self.blocks) * self.blocks;
        self.add(p, rows);
        p
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

    /// Notes another rank's frontier.
    pub fn hear(&mut self, p: Progress) {
        if p != IDLE {
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
        c.add(20, 0);
        assert_eq!(c.frontier(), 30, "nothing holds nobody back");
    }
}
