//! Running seeds: one, or many on several threads.

use crate::coverage::Coverage;
use crate::scenario::Scenario;
use crate::world::{Report, Violation, World};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Runs a seed to its end. A panic of the core is a violation like any other.
///
/// # Errors
/// The first violation.
pub fn run(seed: u64, trace: bool) -> Result<Report, Violation> {
    catch_unwind(AssertUnwindSafe(|| World::run(Scenario::draw(seed), seed, trace))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(ToString::to_string);
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        Err(Violation { at: 0, event: 0, what: format!("panic: {}", text.unwrap_or_default()) })
    })
}

/// The command that replays a seed.
pub fn replay(seed: u64) -> String {
    format!("cargo run --release -p sluice-sim -- seed {seed} --trace")
}

/// What many seeds came to.
#[derive(Debug)]
pub struct Summary {
    /// Seeds run.
    pub seeds: u64,
    /// Those with a violation, in order of seed.
    pub violations: Vec<(u64, Violation)>,
    /// Events of each seed that ended well, sorted.
    pub events: Vec<u32>,
    /// For each of [`Coverage::NAMES`]: seeds in which it occurred, and how often.
    pub coverage: [(u64, u64); Coverage::NAMES.len()],
}

impl Default for Summary {
    fn default() -> Self {
        Self { seeds: 0, violations: vec![], events: vec![], coverage: [(0, 0); Coverage::NAMES.len()] }
    }
}

impl Summary {
    fn note(&mut self, seed: u64, result: Result<Report, Violation>) {
        self.seeds += 1;
        match result {
            Ok(report) => {
                self.events.push(report.events as u32);
                for (sum, n) in self.coverage.iter_mut().zip(report.coverage.counts()) {
                    sum.0 += u64::from(n > 0);
                    sum.1 += n;
                }
            }
            Err(violation) => self.violations.push((seed, violation)),
        }
    }

    /// The median of events per seed.
    pub fn median_events(&self) -> u32 {
        self.events.get(self.events.len() / 2).copied().unwrap_or(0)
    }
}

/// Runs many seeds on `jobs` threads; with `first_only`, only until a violation is found. `started` is called on
/// each thread before its first seed.
pub fn many(seeds: Range<u64>, jobs: usize, first_only: bool, started: impl Fn() + Sync) -> Summary {
    let (next, stop) = (AtomicU64::new(seeds.start), AtomicBool::new(false));
    let all = Mutex::new(Summary::default());
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                started();
                let mut own = Summary::default();
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    let result = run(seed, false);
                    if first_only && result.is_err() {
                        stop.store(true, Ordering::Relaxed);
                    }
                    own.note(seed, result);
                }
                let mut all = all.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                all.seeds += own.seeds;
                all.violations.append(&mut own.violations);
                all.events.append(&mut own.events);
                for (a, b) in all.coverage.iter_mut().zip(own.coverage) {
                    (a.0, a.1) = (a.0 + b.0, a.1 + b.1);
                }
            });
        }
    });
    let mut all = all.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    all.violations.sort_by_key(|v| v.0);
    all.events.sort_unstable();
    all
}
