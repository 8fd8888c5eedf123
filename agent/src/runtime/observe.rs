//! What the run time shows to telemetry. Calls come from worker threads and must be cheap.

use std::time::Duration;

use sluice_core::front::Ending;
use sluice_core::ids::WorkerId;

use crate::telemetry::{StepKind, WorkerSample};

/// Watches the run time.
pub trait Observer: Send + Sync {
    /// A step is over.
    fn step(&self, worker: WorkerId, kind: StepKind, rows: usize, took: Duration) {
        let _ = (worker, kind, rows, took);
    }

    /// A peer was lost, and what it had been asked for has been asked of others, so long after its last sign of life.
    fn redispatched(&self, after: Duration) {
        let _ = after;
    }

    /// A worker's state, about twice a second.
    fn report(&self, sample: WorkerSample) {
        let _ = sample;
    }

    /// A request's prompt was taken in.
    fn admitted(&self, prompt_tokens: usize) {
        let _ = prompt_tokens;
    }

    /// A sequence is over, so long after its submission.
    fn ended(&self, ending: &Ending, after: Duration) {
        let _ = (ending, after);
    }
}

/// Watches nothing.
impl Observer for () {}
