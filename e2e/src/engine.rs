//! A setting of the simulator's scheduler table in the real run time: threads, the in-process transport, and modelled
//! devices that are slower than real ones by a factor.

use crate::host::HostTime;
use sluice_agent::backend::modelled::{CostModel, Jitter, Link};
use sluice_agent::backend::routing::SkewedRouting;
use sluice_agent::gateway::{Engine as _, EventSource, Generate, SeqEvent, events};
use sluice_agent::runtime::{Observer, Runtime, Sizing, Surroundings, WorkerPlan, start_modelled};
use sluice_agent::sampling::SamplingParams;
use sluice_agent::telemetry::{StepKind, WorkerSample};
use sluice_core::counters::Counters;
use sluice_core::ids::WorkerId;
use sluice_core::sequence::StopRule;
use sluice_sim::fleet::Setting;
use sluice_sim::fleet::pace::Pace;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::task::LocalSet;

/// The cost file of the simulator's table.
const MIXTRAL: &str = include_str!("../../agent/costs/mixtral-8x7b-h100.toml");
/// Tokens of a sequence: more than it comes to.
const TOKENS: u32 = 1000;
/// Without a token for so long nothing is taken to come any more.
const PATIENCE: Duration = Duration::from_secs(120);
/// Every device is both.
const ROLE: &str = "hybrid";

/// What came out. Times and rates are of the modelled devices: those of the clock, the slow-down taken out.
#[derive(Clone, Copy, Debug)]
pub struct Real {
    /// Tokens per second.
    pub throughput: f64,
    /// Mean rows of an expert step, per unit.
    pub rows_per_unit: f64,
    /// Median time between two tokens of a sequence, in seconds.
    pub itl_p50: f64,
    /// What the host spent, where that can be told.
    pub host: Option<Host>,
}

/// The host's part.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// Processor time of the process over that of all cores.
    pub load: f64,
    /// Time of the threads that drive devices, running or waiting for a core, over the time of their devices' steps: by
    /// at most so much the host makes the devices longer.
    pub per_step: f64,
}

/// Runs `warm` passes unmeasured, then `passes` measured, each step and hop `slow_down` times as long.
///
/// # Errors
/// What could not go on.
pub fn run(setting: &Setting, slow_down: f64, warm: u64, passes: u64) -> Result<Real, String> {
    if setting.ranks != 0 {
        return Err("every device must be a rank and a host".into());
    }
    let watch = Arc::new(Watch::default());
    let runtime = start(setting, slow_down, Arc::clone(&watch))?;
    let n = u64::from(setting.tokens);
    let tally = Tally::new(setting.tokens, warm * n, passes * n, Arc::clone(&watch));
    let tokio = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let tokio = tokio.map_err(|e| format!("the clients could not be started: {e}"))?;
    LocalSet::new().block_on(&tokio, drive(&runtime, setting.tokens, tally, slow_down))
}

fn start(setting: &Setting, slow_down: f64, watch: Arc<Watch>) -> Result<Runtime, String> {
    let mut costs = CostModel::parse(MIXTRAL).map_err(|e| e.to_string())?;
    costs.slow_down = slow_down;
    costs.context = Some(setting.context as u32);
    costs.jitter = Jitter { mean: setting.jitter, seed: setting.seed };
    costs.model.blocks = setting.blocks.into();
    let bandwidth = if setting.bandwidth > 0.0 { setting.bandwidth * 1e9 } else { f64::INFINITY };
    let row_bytes = setting.costs.model.hidden * setting.costs.model.activation_bytes;
    costs.link = Some(Link { hop: setting.hop as f64 / 1e9, bandwidth, row_bytes });

    let skew = setting.skew();
    let plan = setting.plan(&skew)?;
    let slots = |worker| plan.held().filter(|(_, h)| h.0 == worker).count() as u32;
    let worker = |id| {
        let mut config = setting.config(id, slots(id).max(1));
        config.initial_cycle = (config.initial_cycle as f64 * slow_down) as u64;
        WorkerPlan { config, role: ROLE, threads: 1 }
    };
    let placement = plan.placement(setting.blocks, setting.blocks, 1);
    let sizing = Sizing {
        workers: (0..setting.devices).map(worker).collect(),
        placement: placement.into_iter().map(Arc::new).collect(),
        kv_tokens: 0,
    };
    let shares = (0..setting.blocks).map(|b| skew.shares(b).to_vec()).collect();
    let routing = SkewedRouting::of_shares(shares, costs.model.top_k, setting.seed);
    let around = Surroundings {
        queue: setting.tokens as usize,
        observer: watch,
        progress: Arc::new(|_, _| {}),
        cancelled: Arc::default(),
    };
    start_modelled(costs, &sizing, &Arc::new(routing), setting.slices, around).map_err(|e| e.to_string())
}

/// The closed loop: all sequences decode until enough tokens were measured.
async fn drive(runtime: &Runtime, sequences: u32, tally: Tally, slow_down: f64) -> Result<Real, String> {
    let (changed, tally) = (Arc::clone(&tally.changed), Rc::new(RefCell::new(tally)));
    for i in 0..sequences {
        let (sink, source) = events(TOKENS as usize);
        let sampling = SamplingParams { seed: u64::from(i) + 1, ..SamplingParams::greedy() };
        runtime.submit(
            Generate {
                request: u64::from(i) + 1,
                choices: 1,
                prompt: Arc::from([0u32]),
                stop: StopRule { max_tokens: TOKENS, ..StopRule::default() },
                timeout: Duration::from_secs(24 * 3600),
                salt: 0,
                sampling: Arc::new(sampling),
                grammar: None,
                trace: "".into(),
            },
            sink,
        );
        tokio::task::spawn_local(client(i as usize, source, Rc::clone(&tally)));
    }
    loop {
        let silent = tokio::time::timeout(PATIENCE, changed.notified()).await.is_err();
        let mut tally = tally.borrow_mut();
        if let Some(why) = tally.failure.take() {
            return Err(why);
        }
        if tally.end.is_some() {
            return tally.result(slow_down);
        }
        if silent {
            return Err(format!("stopped after {} tokens: none came for {PATIENCE:?}", tally.delivered));
        }
    }
}

async fn client(sequence: usize, mut source: EventSource, tally: Rc<RefCell<Tally>>) {
    while let Some((_, event)) = source.next().await {
        match event {
            SeqEvent::Token { .. } => tally.borrow_mut().token(sequence),
            SeqEvent::End(ending) => {
                let mut tally = tally.borrow_mut();
                tally.failure = Some(format!("sequence {sequence} ended: {ending:?}"));
                tally.changed.notify_one();
            }
        }
    }
}

/// What clients saw.
struct Tally {
    watch: Arc<Watch>,
    warm: u64,
    wanted: u64,
    delivered: u64,
    pace: Pace,
    epoch: Instant,
    start: Option<Moment>,
    end: Option<Moment>,
    failure: Option<String>,
    changed: Arc<Notify>,
}

impl Tally {
    fn new(sequences: u32, warm: u64, wanted: u64, watch: Arc<Watch>) -> Self {
        let (pace, epoch) = (Pace::new(sequences as usize), Instant::now());
        Self {
            watch,
            warm,
            wanted,
            pace,
            epoch,
            delivered: 0,
            start: None,
            end: None,
            failure: None,
            changed: Arc::new(Notify::new()),
        }
    }

    fn token(&mut self, sequence: usize) {
        if self.end.is_some() {
            return;
        }
        self.delivered += 1;
        self.pace.token(sequence, self.epoch.elapsed().as_nanos() as u64);
        if self.delivered == self.warm {
            self.pace.measure();
            self.start = Some(self.watch.moment());
        }
        if self.delivered == self.warm + self.wanted {
            self.end = Some(self.watch.moment());
        }
        self.changed.notify_one();
    }

    fn result(&self, slow_down: f64) -> Result<Real, String> {
        let (Some(a), Some(b)) = (self.start, self.end) else { return Err("nothing was measured".into()) };
        let span = (b.at - a.at).as_secs_f64();
        let (rows, units) = (b.rows - a.rows, b.units - a.units);
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as f64;
        let device = (b.device - a.device).as_secs_f64();
        let host = b.host.zip(a.host).map(|(b, a)| b.since(a)).map(|h| Host {
            load: h.ran.as_secs_f64() / span / cores,
            per_step: h.workers.as_secs_f64() / device,
        });
        Ok(Real {
            throughput: self.pace.throughput() * slow_down,
            rows_per_unit: rows as f64 / units.max(1) as f64,
            itl_p50: self.pace.gap(0.5) / slow_down,
            host,
        })
    }
}

/// The sums at one moment.
#[derive(Clone, Copy)]
struct Moment {
    at: Instant,
    rows: u64,
    units: u64,
    device: Duration,
    host: Option<HostTime>,
}

/// What the run time shows.
#[derive(Default)]
struct Watch {
    /// By worker, as last reported.
    counters: Mutex<Vec<Counters>>,
    /// Nanoseconds of all devices' steps.
    device: AtomicU64,
}

impl Watch {
    fn moment(&self) -> Moment {
        let counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        Moment {
            at: Instant::now(),
            rows: counters.iter().map(|c| c.expert_rows).sum(),
            units: counters.iter().map(|c| c.expert_units).sum(),
            device: Duration::from_nanos(self.device.load(Ordering::Relaxed)),
            host: HostTime::now(ROLE),
        }
    }
}

impl Observer for Watch {
    fn step(&self, _: WorkerId, _: StepKind, _: usize, took: Duration) {
        self.device.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
    }

    fn report(&self, sample: WorkerSample) {
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        let i = sample.worker.0 as usize;
        if counters.len() <= i {
            counters.resize(i + 1, Counters::default());
        }
        counters[i] = sample.counters;
    }
}
