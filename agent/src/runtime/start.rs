//! Starting an engine: backends, threads, hellos, placement; ready when every slot is loaded.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::Builder;
use std::time::Duration;

use bytesize::ByteSize;
use sluice_core::config::ConfigError;
use sluice_core::event::PeerUp;
use sluice_core::front::{Front, FrontConfig, RankLoad};
use sluice_core::ids::{GatewayId, WorkerId};
use sluice_core::worker::Worker;
use sluice_planner::PlanError;
use tokio::sync::watch;

use super::clock::Clock;
use super::engine::Runtime;
use super::front::FrontThread;
use super::link::Port;
use super::links::{LocalFront, LocalPeer};
use super::loader::{self, UnitSource};
use super::mail::{FrontMail, Mail};
use super::observe::Observer;
use super::sizing::{Sizing, WorkerPlan};
use super::worker::WorkerThread;
use crate::backend::Backend;
use crate::backend::modelled::Link;
use crate::telemetry::{StepKind, TokenSpans, WorkerSample};

/// The gateway of this process.
const GATEWAY: GatewayId = GatewayId(0);

/// An engine that could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The sizes contradict each other.
    #[error("these options do not go together: {0}")]
    Config(#[from] ConfigError),
    /// The experts do not fit the workers.
    #[error("the experts cannot be placed: {0}")]
    Placement(#[from] PlanError),
    /// No KV pool.
    #[error(
        "a KV pool of {pages} pages of {page_size} tokens cannot be had: give --kv-tokens or --kv-memory"
    )]
    Kv {
        /// What was asked for.
        pages: u64,
        /// Tokens per page.
        page_size: u32,
    },
    /// A backend.
    #[error("{worker}: {why}")]
    Backend {
        /// Whose.
        worker: WorkerId,
        /// In words.
        why: String,
    },
    /// The GPU.
    #[error("the GPU cannot be used: {0}")]
    Device(String),
    /// A thread.
    #[error("a thread could not be started: {0}")]
    Thread(#[from] std::io::Error),
    /// Weights.
    #[error("weights could not be loaded; the log says which and why")]
    Weights,
    /// It was told to stop before it was ready.
    #[error("stopped while loading")]
    Cancelled,
    /// Weights and the smallest KV pools.
    #[error(
        "{available} of memory can be had, but the weights take {weights} and KV pools for one longest sequence per \
         attention rank {kv}: give --kv-tokens or --kv-memory for shorter sequences, or more memory"
    )]
    Memory {
        /// What can be had.
        available: ByteSize,
        /// What the weights take.
        weights: ByteSize,
        /// What the least of KV pools takes.
        kv: ByteSize,
    },
    /// Something that an engine is made of.
    #[error("{0}")]
    Load(String),
    /// A step's outputs.
    #[error(
        "--max-expert-rows {rows}: a step's outputs go to a rank in one message of at most {message}, and no more than \
         {most} rows of this model fit"
    )]
    ExpertRows {
        /// What was asked for.
        rows: u32,
        /// The most there may be.
        most: usize,
        /// A message.
        message: ByteSize,
    },
    /// Pages.
    #[error("--page-size {is}: pages of this backend hold {must} tokens")]
    PageSize {
        /// What was asked for.
        is: u32,
        /// What it has.
        must: u32,
    },
    /// The instruction set.
    #[error("--isa {wanted}: this CPU does not have it; leave it out to use the best that it has")]
    Isa {
        /// What was asked for.
        wanted: String,
    },
    /// A model without experts.
    #[error("the model has no block with experts")]
    NoExperts,
}

/// How far loading is: (units loaded, units in all).
pub type Progress = Arc<dyn Fn(usize, usize) + Send + Sync>;

/// What a started engine needs beside its sizing.
pub struct Parts<S> {
    /// Where units come from.
    pub source: Arc<S>,
    /// The hash of all that decides the bits.
    pub numerics: String,
    /// New sequences that wait for a rank, at most.
    pub queue: usize,
    /// Who watches.
    pub observer: Arc<dyn Observer>,
    /// Told while loading.
    pub progress: Progress,
    /// Frames between workers take the time of this link, for experiments.
    pub link: Option<Link>,
    /// Loading ends, with an error, when this is set.
    pub cancelled: Arc<AtomicBool>,
}

impl<S> std::fmt::Debug for Parts<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("numerics", &self.numerics).finish_non_exhaustive()
    }
}

/// Starts an engine, and returns when it can serve.
///
/// # Errors
/// What could not be had. Nothing is left running then.
pub fn start<B, S>(
    sizing: &Sizing,
    parts: Parts<S>,
    mut backend: impl FnMut(&WorkerPlan) -> Result<B, String>,
) -> Result<Runtime, StartError>
where
    B: Backend + 'static,
    S: UnitSource<Unit = B::Unit>,
{
    let clock = Clock::start();
    let (mut addresses, mut inboxes) = (vec![], vec![]);
    for _ in &sizing.workers {
        let (address, inbox) = channel::<Mail<B::Unit>>();
        addresses.push(address);
        inboxes.push(inbox);
    }
    let (front, front_inbox) = channel();
    let total = sizing.placement.iter().map(|p| p.replicas.len()).sum::<usize>();
    let loaded = AtomicUsize::new(0);
    let ready = Arc::new(Ready::new(Arc::clone(&parts.observer), sizing.workers.len()));
    let given_up = Arc::new(AtomicBool::new(false));
    let (progress, watch) = (Arc::clone(&parts.progress), Arc::clone(&ready));
    let done: Arc<loader::Done> = Arc::new(move |ok| match ok {
        true => progress(loaded.fetch_add(1, Ordering::Relaxed) + 1, total),
        false => watch.fail(),
    });
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let (orders, mut joins) = loader::spawn(&parts.source, threads, &done, &given_up)?;
    let observer: Arc<dyn Observer> = ready.clone();

    let mut workers = vec![];
    for (plan, inbox) in sizing.workers.iter().zip(inboxes) {
        let id = plan.config.id;
        let mut backend = backend(plan).map_err(|why| StartError::Backend { worker: id, why })?;
        let mut config = plan.config.clone();
        config.costs = backend.calibrate();
        tracing::debug!(worker = id.0, costs = ?config.costs, "calibrated");
        let core = Worker::new(config)?;
        workers.push(WorkerThread {
            id,
            role: plan.role,
            core,
            backend,
            clock,
            inbox,
            address: addresses[id.0 as usize].clone(),
            loader: orders.clone(),
            observer: Arc::clone(&observer),
            link: parts.link.map(Port::new),
            spans: TokenSpans::new(id),
        });
    }
    // Loaders end when the last worker that can give orders does.
    drop(orders);
    introduce(sizing, &addresses, &front);
    let (lost, is_lost) = watch::channel(None);
    for worker in workers {
        let name = format!("{}-{}", worker.role, worker.id.0);
        let (lost, front) = (lost.clone(), front.clone());
        joins.push(Builder::new().name(name.clone()).spawn(move || {
            if watched(&format!("worker {name}"), &lost, || worker.run()) {
                let _ = front.send(FrontMail::Halt);
            }
        })?);
    }

    let numerics: Arc<str> = parts.numerics.into();
    for (plan, address) in sizing.workers.iter().zip(&addresses) {
        if let Some(load) = first_load(plan) {
            let (rank, link) = (plan.config.id, Arc::new(address.clone()));
            let numerics = Arc::clone(&numerics);
            let _ = front.send(FrontMail::RankUp { rank, numerics, load, link });
        }
    }
    let mut front_config = FrontConfig::new(GATEWAY);
    front_config.queue = parts.queue;
    // They are on their way to the front.
    let ranks = sizing.workers.iter().filter(|w| w.config.rank.is_some()).count();
    let living = Arc::new(AtomicUsize::new(ranks));
    let thread = FrontThread {
        front: Front::new(front_config),
        clock,
        inbox: front_inbox,
        address: front.clone(),
        ranks: HashMap::new(),
        living: Arc::clone(&living),
        observer: parts.observer,
    };
    let stop_all = addresses.clone();
    joins.push(Builder::new().name("front".into()).spawn(move || {
        watched("the front", &lost, || {
            thread.run();
            Ok(())
        });
    })?);
    let runtime = Runtime {
        front,
        stop: Box::new(move || stop_all.iter().for_each(|a| drop(a.send(Mail::Stop)))),
        joins: Mutex::new(joins),
        living,
        numerics: Arc::new(RwLock::new(numerics)),
        lost: is_lost,
    };
    let waited = ready.wait(&addresses, &parts.cancelled, &runtime.lost);
    if waited.is_err() {
        given_up.store(true, Ordering::Relaxed);
    }
    waited.map(|()| runtime)
}

/// Runs a thread's work to its end; true if it failed, which `lost` is told then, unless another failed before.
pub(super) fn watched(
    name: &str,
    lost: &watch::Sender<Option<String>>,
    run: impl FnOnce() -> Result<(), String>,
) -> bool {
    let ended = catch_unwind(AssertUnwindSafe(run));
    let Err(why) = ended.unwrap_or_else(|_| Err("its thread panicked; the log says where".into())) else {
        return false;
    };
    tracing::error!("{name} is lost: {why}");
    lost.send_if_modified(|l| l.is_none() && l.replace(format!("{name}: {why}")).is_none());
    true
}

fn first_load(plan: &WorkerPlan) -> Option<RankLoad> {
    let r = plan.config.rank.as_ref()?;
    Some(RankLoad {
        free_blocks: r.pages,
        pool_blocks: r.pages,
        block_tokens: r.page_size,
        queue: 0,
        draining: false,
    })
}

/// Everybody meets everybody, and learns the placement.
fn introduce<U: Send + Sync + 'static>(
    sizing: &Sizing,
    addresses: &[Sender<Mail<U>>],
    front: &Sender<FrontMail>,
) {
    for (i, address) in addresses.iter().enumerate() {
        for (j, plan) in sizing.workers.iter().enumerate() {
            if i != j {
                let up = PeerUp {
                    worker: plan.config.id,
                    epoch: 1,
                    is_rank: plan.config.rank.is_some(),
                    is_host: plan.config.host.is_some(),
                };
                let link = Arc::new(LocalPeer { from: WorkerId(i as u32), to: addresses[j].clone() });
                let _ = address.send(Mail::Peer { up, link });
            }
        }
        let _ = address.send(Mail::Front { gateway: GATEWAY, link: Arc::new(LocalFront(front.clone())) });
        for slice in &sizing.placement {
            let _ = address.send(Mail::Placement(Arc::clone(slice)));
        }
    }
}

/// Waits for all workers to have loaded their slots, passing reports on.
struct Ready {
    observer: Arc<dyn Observer>,
    ready: Mutex<Vec<bool>>,
    failed: std::sync::atomic::AtomicBool,
    changed: std::sync::Condvar,
}

impl Ready {
    fn new(observer: Arc<dyn Observer>, workers: usize) -> Self {
        Self {
            observer,
            ready: Mutex::new(vec![false; workers]),
            failed: false.into(),
            changed: std::sync::Condvar::new(),
        }
    }

    fn fail(&self) {
        self.failed.store(true, Ordering::Relaxed);
        self.changed.notify_all();
    }

    fn wait<U>(
        &self,
        addresses: &[Sender<Mail<U>>],
        cancelled: &AtomicBool,
        lost: &watch::Receiver<Option<String>>,
    ) -> Result<(), StartError> {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        while !ready.iter().all(|r| *r) {
            if self.failed.load(Ordering::Relaxed) {
                return Err(StartError::Weights);
            }
            if cancelled.load(Ordering::Relaxed) {
                return Err(StartError::Cancelled);
            }
            if let Some(why) = lost.borrow().clone() {
                return Err(StartError::Load(why));
            }
            let wait = self.changed.wait_timeout(ready, Duration::from_millis(100));
            ready = wait.unwrap_or_else(PoisonError::into_inner).0;
            for (a, r) in addresses.iter().zip(ready.iter()) {
                if !r {
                    let _ = a.send(Mail::Report);
                }
            }
        }
        Ok(())
    }
}

impl Observer for Ready {
    fn step(&self, worker: WorkerId, kind: StepKind, rows: usize, took: Duration) {
        self.observer.step(worker, kind, rows, took);
    }

    fn redispatched(&self, after: Duration) {
        self.observer.redispatched(after);
    }

    fn report(&self, sample: WorkerSample) {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(r) = ready.get_mut(sample.worker.0 as usize)
            && *r != sample.ready
        {
            *r = sample.ready;
            self.changed.notify_all();
        }
        drop(ready);
        self.observer.report(sample);
    }
}
