//! One measurement: its processes are started, driven, measured and ended.

use std::path::Path;
use std::time::{Duration, Instant};

use sluice_sim::fleet::Measured;
use sluice_sim::table::Table;
use tokio::task::LocalSet;

use super::deployment::Deployment;
use super::gauges::{Between, Moment};
use super::load::Load;
use super::setup::Setup;
use crate::beside::KEEPS_UP;

/// Until everybody has met everybody.
const SETTLE: Duration = Duration::from_secs(1);
/// For how long the processes are watched without a sequence.
const IDLE: Duration = Duration::from_secs(2);
/// How often it is looked whether all goes on.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What came out. Rates and latencies are of the modelled devices: those of the clock, the slow-down taken out.
#[derive(Clone, Debug)]
pub struct Cell {
    /// What ran.
    pub setup: Setup,
    /// Tokens per second.
    pub throughput: f64,
    /// Time between two tokens of a sequence, in seconds.
    pub itl: [f64; 2],
    /// Tokens of a sequence in the measurement.
    pub passes: f64,
    /// What processes and machine did meanwhile.
    pub between: Between,
    /// What they did before, without a sequence: heartbeats, mostly.
    pub idle: Between,
    /// The same setting in the simulator: devices that no host and no wire hold up.
    pub alone: Measured,
}

impl Cell {
    /// Measures for so many seconds.
    ///
    /// # Errors
    /// What could not be had, or broke.
    pub async fn measure(setup: Setup, binary: &Path, seconds: f64) -> Result<Self, String> {
        let alone = Table::measure(&setup.setting()?)?;
        LocalSet::new().run_until(Self::real(setup, binary, seconds, alone)).await
    }

    async fn real(setup: Setup, binary: &Path, seconds: f64, alone: Measured) -> Result<Self, String> {
        let dir = tempfile::tempdir().map_err(|e| format!("no directory for temporary files: {e}"))?;
        let mut deployment = Deployment::start(&setup, binary, dir.path()).await?;
        tokio::time::sleep(SETTLE).await;
        let begin = Moment::now(&deployment).await?;
        tokio::time::sleep(IDLE).await;
        let idle = Moment::now(&deployment).await?.since(&begin);
        let load = Load::begin(&setup, &mut deployment).await?;
        let begin = Moment::now(&deployment).await?;
        let end = Instant::now() + Duration::from_secs_f64(seconds);
        while Instant::now() < end {
            let left = end.saturating_duration_since(Instant::now());
            tokio::time::sleep(left.min(LOOK_EVERY)).await;
            load.check(&mut deployment)?;
        }
        let pace = load.end();
        let between = Moment::now(&deployment).await?.since(&begin);
        let throughput = pace.throughput() * setup.slow_down;
        Ok(Self {
            setup,
            throughput,
            itl: [0.5, 0.99].map(|part| pace.gap(part) / setup.slow_down),
            passes: throughput / setup.slow_down * between.seconds / f64::from(setup.sequences()),
            between,
            idle,
            alone,
        })
    }

    /// Processor time of a step in microseconds, all threads of its process, without what they take when idle: of
    /// attention, and of experts.
    pub fn host_micros(&self) -> [f64; 2] {
        let (b, i) = (&self.between, &self.idle);
        [(b.ranks, i.ranks), (b.hosts, i.hosts)].map(|(busy, idle)| {
            let ran = busy.ran - idle.ran / i.seconds * b.seconds;
            ran * 1e6 / busy.steps.max(1.0)
        })
    }

    /// Whether the host can make the devices longer by a tenth at most, and nobody was so late as to be taken for lost.
    pub fn keeps_up(&self) -> bool {
        self.between.per_step() <= KEEPS_UP && self.between.trouble == 0.0
    }

    /// Throughput over that of the devices alone.
    pub fn of_alone(&self) -> f64 {
        self.throughput / self.alone.throughput
    }
}
