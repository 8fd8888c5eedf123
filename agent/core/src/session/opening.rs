//! What a rank does with a gateway that asks for a session.

use super::SessionId;
use crate::plant::{self, Plant};

/// The rank's decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// The session there is goes on over the new connection.
    Resume,
    /// It begins; what an older one of this gateway had bound is cancelled.
    Begin,
    /// The rank knows nothing of it, and it may not begin: for the gateway it is lost.
    Unknown,
}

impl SessionId {
    /// What becomes of a wish for this session. `fresh`: the rank has not answered for it yet, so it may begin.
    /// `current` is the gateway's newest session here, `is_lost` that it is over and about to be forgotten.
    pub fn opening(self, fresh: bool, current: Option<Self>, is_lost: bool) -> Opening {
        match current {
            Some(current) if current == self && !is_lost => Opening::Resume,
            // What is left of an old connection, or of an old incarnation, comes too late.
            Some(current) if current >= self && !plant::is(Plant::StaleIncarnation) => Opening::Unknown,
            _ if fresh => Opening::Begin,
            _ => Opening::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn id(incarnation: u64, number: u64) -> SessionId {
        SessionId { incarnation, number }
    }

    #[test]
    fn a_session_goes_on_while_it_is_the_newest_and_not_lost() {
        for fresh in [false, true] {
            assert_eq!(id(3, 2).opening(fresh, Some(id(3, 2)), false), Opening::Resume);
            assert_eq!(id(3, 2).opening(fresh, Some(id(3, 2)), true), Opening::Unknown);
        }
    }

    #[test]
    fn only_a_fresh_one_begins() {
        for current in [None, Some(id(3, 1)), Some(id(2, 9))] {
            assert_eq!(id(3, 2).opening(true, current, false), Opening::Begin);
            assert_eq!(id(3, 2).opening(false, current, false), Opening::Unknown);
        }
    }

    #[test]
    fn an_older_one_never_takes_the_place_of_a_newer() {
        for (fresh, is_lost) in [(false, false), (false, true), (true, false), (true, true)] {
            for current in [id(3, 3), id(4, 1)] {
                assert_eq!(id(3, 2).opening(fresh, Some(current), is_lost), Opening::Unknown);
            }
        }
    }
}
