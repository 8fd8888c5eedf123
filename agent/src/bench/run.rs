//! Drives the load: closed or open, with a warm-up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::arrivals::Arrivals;
use super::client::{Client, ClientError, Target};
use super::options::{BenchOptions, End, Load};
use super::record::{Outcome, Record};
use super::report::Report;
use super::workload::{Workload, WorkloadError};

/// A run that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The server cannot be used.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The workload cannot be had.
    #[error(transparent)]
    Workload(#[from] WorkloadError),
    /// Nothing of the warm-up was served: the run would tell nothing.
    #[error("no request of the warm-up was served; the first said: {0}")]
    WarmUp(String),
}

/// How far a run is, for whoever watches; and a way to end it early.
#[derive(Debug, Default)]
pub struct Progress {
    /// Requests that are over.
    pub over: AtomicU64,
    /// Set to start no further request.
    pub stop: AtomicBool,
}

struct Run {
    client: Client,
    options: BenchOptions,
    model: String,
    workload: Workload,
    progress: Arc<Progress>,
}

/// Runs the load and reports.
///
/// # Errors
/// The server or the workload cannot be had, or the whole warm-up failed. Requests that fail in the run are part of
/// the report.
pub async fn run(options: BenchOptions, progress: Arc<Progress>) -> Result<Report, BenchError> {
    let workload = Workload::new(&options)?;
    let client = Client::new(Target::new(&options.url, options.api_key.as_deref())?)?;
    let model = match &options.model {
        Some(model) => model.clone(),
        None => client.first_model(options.wait).await?,
    };
    let run = Arc::new(Run { client, options, model, workload, progress });
    run.clone().warm_up().await?;
    let start = Instant::now();
    let records = match run.options.load {
        Load::Closed { concurrency } => run.clone().closed(start, 0, run.options.end, concurrency).await,
        Load::Open { rate, limit } => run.clone().open(start, rate, limit).await,
    };
    Ok(Report::new(&run.options, &run.model, &records))
}

impl Run {
    async fn warm_up(self: Arc<Self>) -> Result<(), BenchError> {
        let n = self.options.warmup;
        if n == 0 {
            return Ok(());
        }
        let concurrency = match self.options.load {
            Load::Closed { concurrency } => concurrency,
            Load::Open { .. } => 4,
        };
        // Other requests than those of the run, so that a prefix cache does not know them.
        let records = self.clone().closed(Instant::now(), u64::MAX / 2, End::Requests(n), concurrency).await;
        self.progress.over.store(0, Ordering::Relaxed);
        if records.is_empty() || records.iter().any(Record::is_served) {
            return Ok(());
        }
        Err(BenchError::WarmUp(records.first().map_or_else(String::new, |r| match &r.outcome {
            Outcome::Served => String::new(),
            Outcome::Refused { status } => format!("refused with status {status}"),
            Outcome::Failed(failure) => format!("{}: {}", failure.label(), failure.message()),
        })))
    }

    async fn one(&self, index: u64, start: Instant, due: Duration) -> Record {
        let item = self.workload.item(index);
        let record = self.client.generate(&self.options, &self.model, index, &item, start, due).await;
        self.progress.over.fetch_add(1, Ordering::Relaxed);
        record
    }

    fn goes_on(&self, end: End, started: u64, elapsed: Duration) -> bool {
        let more = match end {
            End::Requests(n) => started < n,
            End::After(time) => elapsed < time,
        };
        more && !self.progress.stop.load(Ordering::Relaxed)
    }

    async fn closed(self: Arc<Self>, start: Instant, base: u64, end: End, concurrency: usize) -> Vec<Record> {
        let next = Arc::new(AtomicU64::new(0));
        let mut clients = JoinSet::new();
        for _ in 0..concurrency {
            let (run, next) = (self.clone(), next.clone());
            clients.spawn(async move {
                let mut records = Vec::new();
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    let due = start.elapsed();
                    if !run.goes_on(end, n, due) {
                        return records;
                    }
                    let record = run.one(base + n, start, due).await;
                    let served = record.is_served();
                    records.push(record);
                    if !served {
                        // A server that turns everybody away at once must not be asked in a tight loop.
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
            });
        }
        let mut records: Vec<Record> = clients.join_all().await.into_iter().flatten().collect();
        records.sort_by_key(|r| r.index);
        records
    }

    async fn open(self: Arc<Self>, start: Instant, rate: f64, limit: Option<usize>) -> Vec<Record> {
        let room = limit.map(|n| Arc::new(Semaphore::new(n)));
        let (done, mut records) = mpsc::unbounded_channel();
        let mut due = self.clone().due(start, rate);
        while let Some((index, due)) = due.recv().await {
            let (run, room, done) = (self.clone(), room.clone(), done.clone());
            tokio::spawn(async move {
                let _permit = match &room {
                    Some(room) => room.acquire().await.ok(),
                    None => None,
                };
                let record = run.one(index, start, due).await;
                let _ = done.send(record);
            });
        }
        drop(done);
        let mut all = Vec::new();
        while let Some(record) = records.recv().await {
            all.push(record);
        }
        all.sort_by_key(|r| r.index);
        all
    }

    /// Requests as they become due, from a thread of its own: the timers of the asynchronous runtime are a millisecond
    /// late, which is longer than some servers take to answer.
    fn due(self: Arc<Self>, start: Instant, rate: f64) -> mpsc::UnboundedReceiver<(u64, Duration)> {
        let (send, receive) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            for (index, due) in (0u64..).zip(Arrivals::new(rate, self.options.seed)) {
                // In slices, so that a run that is stopped does not wait for the next arrival.
                while let Some(left) = due.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) {
                    if !self.goes_on(self.options.end, index, due) {
                        return;
                    }
                    std::thread::sleep(left.min(Duration::from_millis(100)));
                }
                if !self.goes_on(self.options.end, index, due) || send.send((index, due)).is_err() {
                    return;
                }
            }
        });
        receive
    }
}
