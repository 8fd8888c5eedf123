//! The clock that all threads of a process share.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use sluice_core::ids::Nanos;

/// Nanoseconds since 1970 as it was at the start of the run time, and steady from there on: what several hosts compare
/// (the ages of sequences) is near enough.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
    at_start: Nanos,
}

impl Clock {
    pub(crate) fn start() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { start: Instant::now(), at_start: u64::try_from(since.as_nanos()).unwrap_or(0) }
    }

    pub(crate) fn now(self) -> Nanos {
        self.at_start.saturating_add(u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(Nanos::MAX))
    }

    /// How long until a moment of this clock.
    pub(crate) fn until(self, at: Nanos) -> Duration {
        Duration::from_nanos(at.saturating_sub(self.now()))
    }
}
