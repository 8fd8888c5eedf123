//! Time as the core counts it, on the clock of the async run time.

use std::time::Duration;

use sluice_core::ids::Nanos;
use tokio::time::Instant;

/// Nanoseconds since a moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticks(Instant);

impl Ticks {
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    pub(super) fn now(self) -> Nanos {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(Nanos::MAX)
    }

    /// Until a moment that this clock counts.
    pub(super) async fn reach(self, at: Nanos) {
        tokio::time::sleep(Duration::from_nanos(at.saturating_sub(self.now()))).await;
    }
}
