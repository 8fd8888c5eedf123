//! Telemetry, as the gateway and the run time see it.

use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use sluice_core::front::Ending;
use sluice_core::ids::WorkerId;

use crate::telemetry::{StepKind, Telemetry, WorkerSample};
use crate::{gateway, runtime, transport};

impl gateway::Observer for Telemetry {
    fn token(&self, first: bool, waited: Duration) {
        self.token_out(first, waited);
    }

    fn answered(&self, route: &str, status: StatusCode) {
        self.http_answered(route, status.as_u16());
    }

    fn overflowed(&self) {
        self.client_too_slow();
    }

    fn connections(&self, change: i64) {
        self.connections_changed(change);
    }

    fn accept_error(&self, _error: &std::io::Error) {
        self.accept_failed();
    }
}

impl runtime::Observer for Telemetry {
    fn step(&self, worker: WorkerId, kind: StepKind, rows: usize, took: Duration) {
        self.step_done(worker, kind, rows, took);
    }

    fn redispatched(&self, after: Duration) {
        self.asked_again(after);
    }

    fn report(&self, sample: WorkerSample) {
        self.worker_seen(sample);
    }

    fn admitted(&self, prompt_tokens: usize) {
        self.prompt_admitted(prompt_tokens);
    }

    fn ended(&self, ending: &Ending, after: Duration) {
        self.sequence_ended(ending, after);
    }
}

/// The peers of one worker.
#[derive(Debug)]
pub(super) struct Peers {
    pub(super) telemetry: Arc<Telemetry>,
    pub(super) worker: WorkerId,
}

impl transport::Observer for Peers {
    fn connected(&self, peer: WorkerId, wire: u16) {
        self.telemetry.peer_connected(self.worker, peer, wire);
    }

    fn round_trip(&self, peer: WorkerId, took: Duration) {
        self.telemetry.peer_round_trip(self.worker, peer, took);
    }

    fn disconnected(&self, peer: WorkerId) {
        self.telemetry.peer_disconnected(self.worker, peer);
    }
}
