//! How a worker leaves.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::runtime::Door;

/// How often it is asked whether it holds anything.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Takes nothing new, and waits until nothing is held here and nobody depends on this worker alone, as `is_needed` says
/// when told whether it is late: after half of the grace period. Sequences that have not finished by then are given back
/// to their gateways. When it is over, peers and gateways ask elsewhere for what is left.
pub(super) async fn drain(door: &dyn Door, grace: Duration, is_needed: impl Fn(bool) -> bool) {
    let begin = Instant::now();
    let mut late = false;
    door.drain(late);
    loop {
        if !late && begin.elapsed() >= grace / 2 {
            late = true;
            door.drain(late);
        }
        door.report();
        sleep(LOOK_EVERY).await;
        if !is_needed(late) {
            return;
        }
        if begin.elapsed() >= grace {
            tracing::warn!("the grace period is over; what is still held here is asked elsewhere, or waits");
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use sluice_core::counters::Counters;
    use sluice_core::ids::WorkerId;
    use sluice_core::pressure::Pressure;
    use tokio::sync::watch;
    use tokio::time::timeout;

    use super::*;
    use crate::node::admin::WorkerPages;
    use crate::table::Table;
    use crate::telemetry::{Telemetry, WorkerSample};
    use crate::transport::fuzz::Worker;

    const GRACE: Duration = Duration::from_secs(3600);

    fn sample(draining: bool, busy: bool) -> WorkerSample {
        WorkerSample {
            worker: WorkerId(0),
            role: "attention",
            counters: Counters::default(),
            pressure: Pressure::default(),
            ready: true,
            busy,
            draining,
            failure: None,
        }
    }

    fn pages(telemetry: &Arc<Telemetry>) -> WorkerPages {
        let table = Table { generation: 0, segments: None, workers: vec![], slices: vec![] };
        WorkerPages::new(telemetry.clone(), (WorkerId(0), "a0"), 1, watch::channel(Arc::new(table)).1)
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_said_before_the_drain_does_not_end_it() {
        let telemetry = Arc::new(Telemetry::new(0..1).unwrap());
        let pages = pages(&telemetry);
        let mut leaves = std::pin::pin!(drain(&Worker, GRACE, |late| !pages.is_drained(late)));
        for (said, is_over) in [
            (None, false),
            (Some(sample(false, false)), false),
            (Some(sample(true, true)), false),
            (Some(sample(true, false)), true),
        ] {
            if let Some(said) = &said {
                telemetry.worker_seen(said.clone());
            }
            let left = timeout(10 * LOOK_EVERY, leaves.as_mut()).await;
            assert_eq!(left.is_ok(), is_over, "{said:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_grace_period_ends_it() {
        let begin = Instant::now();
        drain(&Worker, GRACE, |_| true).await;
        assert!((GRACE..GRACE + 2 * LOOK_EVERY).contains(&begin.elapsed()));
    }

    #[tokio::test(start_paused = true)]
    async fn peers_that_never_cease_are_left_after_half_of_it() {
        let telemetry = Arc::new(Telemetry::new(0..1).unwrap());
        let pages = pages(&telemetry);
        let sequences = |sequences| WorkerSample {
            pressure: Pressure { sequences, ..Pressure::default() },
            ..sample(true, true)
        };
        for (sample, due) in [(sequences((0, 0)), GRACE / 2), (sequences((1, 0)), GRACE)] {
            telemetry.worker_seen(sample);
            let begin = Instant::now();
            drain(&Worker, GRACE, |late| !pages.is_drained(late)).await;
            assert!((due..due + 3 * LOOK_EVERY).contains(&begin.elapsed()), "{:?}", begin.elapsed());
        }
    }
}
