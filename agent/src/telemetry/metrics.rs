//! The metrics of one agent, in Prometheus' text format.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
    exponential_buckets,
};
use sluice_core::front::Ending;
use sluice_core::ids::WorkerId;

use super::devices::{self, Devices};
use super::front;
use super::peers::Peers;
use super::pressure::PressurePage;
use super::sample::{FrontSample, StepKind, WorkerSample};
use super::workers::{self, Seen};

/// Handles of one worker's histograms, looked up once so that a step costs no search.
#[derive(Debug)]
struct Steps {
    time: [Histogram; 4],
    rows: [Histogram; 4],
}

/// All that an agent counts. Every method may be called from any thread; those of workers are a few atomic additions.
#[derive(Debug)]
pub struct Telemetry {
    registry: Registry,
    first_token: Histogram,
    inter_token: Histogram,
    redispatch: Histogram,
    durations: HistogramVec,
    prompt_tokens: IntCounter,
    answers: IntCounterVec,
    slow_clients: IntCounter,
    connections: IntGauge,
    accept_errors: IntCounter,
    peers: Peers,
    devices: Devices,
    /// The id of the first worker.
    first: u32,
    /// By worker, from the first.
    steps: Vec<Steps>,
    /// By worker, from the first. Locked twice a second by the worker, and by scrapes.
    seen: Vec<Mutex<Option<Seen>>>,
}

const OUTCOMES: [&str; 5] = ["complete", "cancelled", "refused", "deadline", "cut"];

fn outcome(ending: &Ending) -> &'static str {
    match ending {
        Ending::Complete(_) => OUTCOMES[0],
        Ending::Cancelled => OUTCOMES[1],
        Ending::Refused(_) => OUTCOMES[2],
        Ending::Deadline => OUTCOMES[3],
        Ending::Cut => OUTCOMES[4],
    }
}

const SECONDS_OF_REQUESTS: [f64; 17] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0];

const SECONDS_OF_REDISPATCH: [f64; 14] =
    [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0];

impl Telemetry {
    /// For an agent of workers with these ids.
    ///
    /// # Errors
    /// A metric's name or buckets are malformed or used twice: a defect, told by the first test that runs this.
    pub fn new(workers: std::ops::Range<u32>) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let histogram =
            |name: &str, help: &str, buckets: Vec<f64>| HistogramOpts::new(name, help).buckets(buckets);
        let first_token = Histogram::with_opts(histogram(
            "sluice_time_to_first_token_seconds",
            "From a request's submission to its first token.",
            SECONDS_OF_REQUESTS[..15].to_vec(),
        ))?;
        let inter_token = Histogram::with_opts(histogram(
            "sluice_inter_token_latency_seconds",
            "Between a sequence's tokens that follow each other.",
            exponential_buckets(0.000_25, 2.0, 15)?,
        ))?;
        let redispatch = Histogram::with_opts(histogram(
            "sluice_redispatch_seconds",
            "From a lost peer's last sign of life (its connection's end, or what was last heard of it) until what it \
             had been asked for was asked of others.",
            SECONDS_OF_REDISPATCH.to_vec(),
        ))?;
        let durations = HistogramVec::new(
            histogram(
                "sluice_sequence_duration_seconds",
                "From a sequence's submission to its end, by how it ended.",
                SECONDS_OF_REQUESTS.to_vec(),
            ),
            &["outcome"],
        )?;
        for outcome in OUTCOMES {
            durations.get_metric_with_label_values(&[outcome])?;
        }
        let prompt_tokens =
            IntCounter::new("sluice_prompt_tokens_total", "Tokens of the prompts of admitted requests.")?;
        let answers = IntCounterVec::new(
            Opts::new("sluice_http_requests_total", "HTTP requests answered, by route and status."),
            &["route", "code"],
        )?;
        let slow_clients = IntCounter::new(
            "sluice_slow_clients_total",
            "Requests given up because their client read more slowly than tokens came.",
        )?;
        let connections = IntGauge::new("sluice_http_connections", "Client connections now.")?;
        let accept_errors =
            IntCounter::new("sluice_http_accept_errors_total", "Connections that could not be accepted.")?;
        let step_time = HistogramVec::new(
            histogram(
                "sluice_step_duration_seconds",
                "Time of a step, from its launch to its end, by worker and kind.",
                exponential_buckets(0.000_01, 2.0, 18)?,
            ),
            &["worker", "kind"],
        )?;
        let step_rows = HistogramVec::new(
            histogram(
                "sluice_step_rows",
                "Rows (tokens, or tokens times experts) of a step, by worker and kind.",
                exponential_buckets(1.0, 2.0, 14)?,
            ),
            &["worker", "kind"],
        )?;
        let peers = Peers::new(&registry)?;
        let mut steps = Vec::with_capacity(workers.len());
        for worker in workers.clone() {
            let worker = worker.to_string();
            let of = |family: &HistogramVec, kind: StepKind| {
                family.get_metric_with_label_values(&[worker.as_str(), kind.name()])
            };
            let all = |family: &HistogramVec| -> Result<[Histogram; 4], prometheus::Error> {
                let [a, b, c, d] = StepKind::ALL.map(|kind| of(family, kind));
                Ok([a?, b?, c?, d?])
            };
            steps.push(Steps { time: all(&step_time)?, rows: all(&step_rows)? });
        }
        registry.register(Box::new(first_token.clone()))?;
        registry.register(Box::new(inter_token.clone()))?;
        registry.register(Box::new(redispatch.clone()))?;
        registry.register(Box::new(durations.clone()))?;
        registry.register(Box::new(prompt_tokens.clone()))?;
        registry.register(Box::new(answers.clone()))?;
        registry.register(Box::new(slow_clients.clone()))?;
        registry.register(Box::new(connections.clone()))?;
        registry.register(Box::new(accept_errors.clone()))?;
        registry.register(Box::new(step_time))?;
        registry.register(Box::new(step_rows))?;
        #[cfg(target_os = "linux")]
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        let build = prometheus::IntGauge::with_opts(
            Opts::new("sluice_build_info", "1, with the version in its label.")
                .const_label("version", env!("CARGO_PKG_VERSION")),
        )?;
        build.set(1);
        registry.register(Box::new(build))?;
        Ok(Self {
            first: workers.start,
            registry,
            first_token,
            inter_token,
            redispatch,
            durations,
            prompt_tokens,
            answers,
            slow_clients,
            connections,
            accept_errors,
            peers,
            devices: Devices::default(),
            steps,
            seen: workers.clone().map(|_| Mutex::new(None)).collect(),
        })
    }

    fn index(&self, worker: WorkerId) -> usize {
        worker.0.wrapping_sub(self.first) as usize
    }

    /// A step of a worker is over.
    pub fn step_done(&self, worker: WorkerId, kind: StepKind, rows: usize, took: Duration) {
        if let Some(steps) = self.steps.get(self.index(worker)) {
            steps.time[kind as usize].observe(took.as_secs_f64());
            steps.rows[kind as usize].observe(rows as f64);
        }
    }

    /// What a lost peer had been asked for was asked of others, so long after its last sign of life.
    pub fn asked_again(&self, after: Duration) {
        self.redispatch.observe(after.as_secs_f64());
    }

    /// A worker is connected with a peer, by this version of the wire.
    pub fn peer_connected(&self, worker: WorkerId, peer: WorkerId, wire: u16) {
        self.peers.connect(worker, peer, wire);
    }

    /// The way from a worker to a connected peer and back took so long.
    pub fn peer_round_trip(&self, worker: WorkerId, peer: WorkerId, took: Duration) {
        self.peers.round_trip(worker, peer, took);
    }

    /// A worker's connection with a peer is no more.
    pub fn peer_disconnected(&self, worker: WorkerId, peer: WorkerId) {
        self.peers.disconnect(worker, peer);
    }

    /// A worker's snapshot.
    pub fn worker_seen(&self, sample: WorkerSample) {
        let Some(slot) = self.seen.get(self.index(sample.worker)) else { return };
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *slot {
            Some(seen) => seen.update(sample),
            None => {
                let mut seen = Seen { sample: sample.clone(), queues: std::collections::BTreeSet::new() };
                seen.update(sample);
                *slot = Some(seen);
            }
        }
    }

    /// A request's prompt was taken in.
    pub fn prompt_admitted(&self, tokens: usize) {
        self.prompt_tokens.inc_by(tokens as u64);
    }

    /// A token reached the gateway, so long after its request's submission (`first`) or after the token before.
    pub fn token_out(&self, first: bool, waited: Duration) {
        let histogram = if first { &self.first_token } else { &self.inter_token };
        histogram.observe(waited.as_secs_f64());
    }

    /// A sequence is over, so long after its submission.
    pub fn sequence_ended(&self, ending: &Ending, after: Duration) {
        self.durations.with_label_values(&[outcome(ending)]).observe(after.as_secs_f64());
    }

    /// A request was answered. `route` is one of the server's routes, never a path that a client chose.
    pub fn http_answered(&self, route: &str, status: u16) {
        self.answers.with_label_values(&[route, &status.to_string()]).inc();
    }

    /// A request was given up because its client read too slowly.
    pub fn client_too_slow(&self) {
        self.slow_clients.inc();
    }

    /// Connections came (over 0) or went.
    pub fn connections_changed(&self, change: i64) {
        self.connections.add(change);
    }

    /// A connection could not be accepted.
    pub fn accept_failed(&self) {
        self.accept_errors.inc();
    }

    /// The first worker that cannot go on, and why.
    pub fn failure(&self) -> Option<(WorkerId, String)> {
        self.seen.iter().find_map(|slot| {
            let slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
            let sample = &slot.as_ref()?.sample;
            Some((sample.worker, sample.failure.clone()?))
        })
    }

    /// What the workers last said.
    pub fn samples(&self) -> impl Iterator<Item = WorkerSample> {
        self.workers().into_iter().map(|seen| seen.sample)
    }

    fn workers(&self) -> Vec<Seen> {
        self.seen
            .iter()
            .filter_map(|slot| slot.lock().unwrap_or_else(PoisonError::into_inner).clone())
            .collect()
    }

    /// The page `/metrics`.
    ///
    /// # Errors
    /// A family that the encoder does not take: a defect.
    pub fn render(&self, front: Option<&FrontSample>) -> Result<String, prometheus::Error> {
        let mut families = self.registry.gather();
        families.extend(workers::families(&self.workers()));
        families.extend(devices::families(&self.devices.look()));
        families.extend(front.map(front::families).unwrap_or_default());
        families.sort_by(|a, b| a.name().cmp(b.name()));
        TextEncoder::new().encode_to_string(&families)
    }

    /// The page `/v1/pressure`.
    pub fn pressure(&self, front: Option<&FrontSample>) -> PressurePage {
        let workers = self.workers();
        PressurePage::new(
            workers.iter().map(|seen| &seen.sample),
            |worker| self.peers.pressure(worker),
            front,
            self.devices.look(),
        )
    }
}
