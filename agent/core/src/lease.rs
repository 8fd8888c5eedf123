//! How long a silent peer keeps what it holds here.

use crate::ids::Nanos;
use crate::plant::{self, Plant};

/// What a peer holds until it has been silent for so long.
#[derive(Clone, Copy, Debug)]
pub struct Lease {
    term: Nanos,
    heard: Nanos,
}

impl Lease {
    /// From now on.
    pub const fn new(term: Nanos, now: Nanos) -> Self {
        Self { term, heard: now }
    }

    /// The peer gave a sign.
    pub fn renew(&mut self, now: Nanos) {
        self.heard = self.heard.max(now);
    }

    /// When it ends if nothing is heard before.
    pub const fn end(&self) -> Nanos {
        self.heard.saturating_add(self.term)
    }

    /// Whether it is over.
    pub fn has_lapsed(&self, now: Nanos) -> bool {
        now >= self.end() && !plant::is(Plant::LeaseUnending)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sign_renews_it_and_nothing_else_does() {
        let mut lease = Lease::new(10, 100);
        assert_eq!((lease.end(), lease.has_lapsed(109), lease.has_lapsed(110)), (110, false, true));
        lease.renew(107);
        lease.renew(105);
        assert_eq!((lease.end(), lease.has_lapsed(116), lease.has_lapsed(117)), (117, false, true));
    }

    #[test]
    fn a_term_without_end_never_lapses() {
        assert!(!Lease::new(Nanos::MAX, 5).has_lapsed(Nanos::MAX - 1));
    }
}
