//! Peers that are masked, and why: this side's own view, for the page of pressure.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use sluice_core::ids::WorkerId;

use super::pair::Ended;

/// A peer that was met, and is masked until its next hello.
#[derive(Clone, Debug)]
pub struct Masked {
    /// Its number.
    pub worker: WorkerId,
    /// Its name.
    pub name: String,
    /// `broke`, `garbage`, `silent` or `owed`.
    pub reason: &'static str,
    /// The same, in words.
    pub why: String,
    /// Since when.
    pub since: Instant,
}

/// Those of one worker.
#[derive(Debug, Default)]
pub struct Masks(Mutex<BTreeMap<WorkerId, Masked>>);

impl Masks {
    /// The pair with a peer has ended.
    pub(super) fn mask(&self, worker: WorkerId, name: &str, ended: &Ended) {
        let (reason, why) = match ended {
            Ended::Broke(..) => ("broke", ended.to_string()),
            Ended::Garbage(..) => ("garbage", ended.to_string()),
            Ended::Silent(_) => ("silent", ended.to_string()),
            // A pair that a newer one replaces is unmasked by that at once.
            Ended::Severed => (
                "owed",
                "it gave no sign for too long of what it owes, or took too little of what it was sent".into(),
            ),
        };
        let masked = Masked { worker, name: name.into(), reason, why, since: Instant::now() };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(worker, masked);
    }

    /// A peer was met.
    pub(super) fn unmask(&self, worker: WorkerId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&worker);
    }

    /// All of them, by number.
    pub fn all(&self) -> Vec<Masked> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_peer_is_masked_from_its_end_to_its_next_hello() {
        let masks = Masks::default();
        masks.mask(WorkerId(2), "e0", &Ended::Silent(Duration::from_millis(400)));
        masks.mask(WorkerId(1), "a1", &Ended::Severed);
        let shown = |m: &Masked| (m.name.clone(), m.reason);
        let all = masks.all();
        assert_eq!(
            all.iter().map(shown).collect::<Vec<_>>(),
            [("a1".into(), "owed"), ("e0".into(), "silent")]
        );
        assert!(all[1].why.contains("400 ms"), "{}", all[1].why);
        masks.unmask(WorkerId(2));
        assert_eq!(masks.all().iter().map(shown).collect::<Vec<_>>(), [("a1".into(), "owed")]);
    }
}
