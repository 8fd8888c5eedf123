//! The clock that all threads of a process share.

use std::time::{Duration, Instant};

use sluice_core::ids::Nanos;

/// Nanoseconds since the start of the run time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock(Instant);

impl Clock {
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    pub(super) fn now(self) -> Nanos {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(Nanos::MAX)
    }

    /// How long until a moment of this clock.
    pub(super) fn until(self, at: Nanos) -> Duration {
        Duration::from_nanos(at.saturating_sub(self.now()))
    }
}
