//! The compute threads of one worker.

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use crate::Error;

/// Rounds of a spin between two looks at the clock.
const SPINS_PER_LOOK: u32 = 64;

/// A value alone on its cache lines (two: adjacent lines are prefetched together).
#[repr(align(128))]
struct Alone<T>(T);

type Job = dyn Fn(usize) + Sync;

struct Shared {
    /// The job's number above, [`OPEN`], and how many helpers take part below: one word, so that a helper joins only
    /// the job it saw, and only while it is open.
    state: Alone<AtomicU64>,
    /// The next task of the job.
    next: Alone<AtomicUsize>,
    /// Written by the caller while the job is closed and no helper takes part; read by helpers that joined.
    job: UnsafeCell<Option<(*const Job, usize)>>,
    /// Whom the last helper wakes, if the caller parked.
    caller: Mutex<Option<Thread>>,
    caller_parked: AtomicBool,
    stop: AtomicBool,
    panicked: AtomicBool,
    parked: Vec<Alone<AtomicBool>>,
    spin: Duration,
}

/// Helpers may join.
const OPEN: u64 = 1 << 31;
/// The lowest bit of the job's number.
const JOB: u64 = 1 << 32;
/// The helpers that take part.
const HELPERS: u64 = OPEN - 1;

// SAFETY: `job` is written only by the pool's owner, while the job is closed and after every helper has left it; the
// job it points to is `Sync` and outlives the call that set it.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

/// A pool of T threads, of which the caller is one. It splits outputs over them, never sums, so results do not depend
/// on T.
///
/// Between jobs a helper spins for a while, then parks. Where more threads than cores compete, a spin of zero parks
/// at once.
pub struct Pool {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// How long a helper spins if nothing else is asked for.
    pub const DEFAULT_SPIN: Duration = Duration::from_micros(50);

    /// A pool of `threads` threads (at least one: the caller) that spin for `spin` before they park.
    pub fn new(threads: usize, spin: Duration) -> Result<Self, Error> {
        let count = threads.max(1) - 1;
        let shared = Arc::new(Shared {
            state: Alone(AtomicU64::new(0)),
            next: Alone(AtomicUsize::new(0)),
            job: UnsafeCell::new(None),
            caller: Mutex::new(None),
            caller_parked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
            parked: (0..count).map(|_| Alone(AtomicBool::new(false))).collect(),
            spin,
        });
        let mut pool = Pool { shared, helpers: Vec::with_capacity(count) };
        for index in 0..count {
            let shared = Arc::clone(&pool.shared);
            let helper = std::thread::Builder::new()
                .name(format!("compute-{}", index + 1))
                .spawn(move || help(&shared, index))
                .map_err(|e| Error::Thread { reason: e.to_string() })?;
            pool.helpers.push(helper);
        }
        Ok(pool)
    }

    /// Threads, the caller included.
    pub fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Runs `f(0)` to `f(tasks - 1)`, each once, spread over the threads as they come free; returns when all are
    /// done.
    ///
    /// # Panics
    /// If a task panicked (on any thread), once all threads have left the job.
    pub fn each(&mut self, tasks: usize, f: &(dyn Fn(usize) + Sync)) {
        if self.helpers.is_empty() || tasks <= 1 {
            for task in 0..tasks {
                f(task);
            }
            return;
        }
        let shared = &*self.shared;
        // SAFETY: `&mut self` and the guard below mean that no helper reads it now. The lifetime is erased, but the
        // guard waits until no helper uses `f` any more, also when `f` panics here.
        unsafe {
            *shared.job.get() =
                Some((std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const Job>(f), tasks));
        }
        shared.next.0.store(0, Ordering::Relaxed);
        let number = (shared.state.0.load(Ordering::Relaxed) & !(JOB - 1)).wrapping_add(JOB);
        // Sequentially consistent with the helper's "parked, then look again": one of the two sees the other.
        shared.state.0.store(number | OPEN, Ordering::SeqCst);
        for (parked, helper) in shared.parked.iter().zip(&self.helpers) {
            if parked.0.load(Ordering::SeqCst) && parked.0.swap(false, Ordering::SeqCst) {
                helper.thread().unpark();
            }
        }
        struct Close<'a>(&'a Shared);
        impl Drop for Close<'_> {
            fn drop(&mut self) {
                close(self.0);
            }
        }
        let job = Close(shared);
        take_tasks(shared, f, tasks);
        drop(job);
        if shared.panicked.swap(false, Ordering::Relaxed) {
            panic!("a compute task panicked: its message was printed by its own thread");
        }
    }
}

fn take_tasks(shared: &Shared, f: &(dyn Fn(usize) + Sync), tasks: usize) {
    loop {
        let task = shared.next.0.fetch_add(1, Ordering::Relaxed);
        if task >= tasks {
            return;
        }
        f(task);
    }
}

/// Lets no further helper join, and waits for those that did. One that slept through the job is not waited for.
fn close(shared: &Shared) {
    if shared.state.0.fetch_and(!OPEN, Ordering::SeqCst) & HELPERS == 0 {
        return;
    }
    let left = || shared.state.0.load(Ordering::Acquire) & HELPERS == 0;
    if spin_until(shared.spin, left) {
        return;
    }
    *shared.caller.lock().unwrap_or_else(PoisonError::into_inner) = Some(std::thread::current());
    loop {
        shared.caller_parked.store(true, Ordering::SeqCst);
        if shared.state.0.load(Ordering::SeqCst) & HELPERS == 0 {
            shared.caller_parked.store(false, Ordering::SeqCst);
            return;
        }
        std::thread::park();
    }
}

fn help(shared: &Shared, index: usize) {
    let mut seen = 0;
    loop {
        let changed = || shared.state.0.load(Ordering::Acquire) / JOB != seen;
        if !spin_until(shared.spin, changed) {
            let parked = &shared.parked[index].0;
            loop {
                parked.store(true, Ordering::SeqCst);
                if shared.state.0.load(Ordering::SeqCst) / JOB != seen {
                    parked.store(false, Ordering::SeqCst);
                    break;
                }
                std::thread::park();
            }
        }
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        let join = |state: u64| (state & OPEN != 0).then_some(state + 1);
        match shared.state.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, join) {
            Ok(state) => seen = state / JOB,
            Err(state) => {
                seen = state / JOB;
                continue;
            }
        }
        // SAFETY: this helper joined, so the owner wrote it before, and leaves it alone until all have left.
        if let Some((job, tasks)) = unsafe { *shared.job.get() } {
            // SAFETY: the owner keeps the job alive until all have left.
            let job = unsafe { &*job };
            if catch_unwind(AssertUnwindSafe(|| take_tasks(shared, job, tasks))).is_err() {
                shared.panicked.store(true, Ordering::Relaxed);
            }
        }
        let before = shared.state.0.fetch_sub(1, Ordering::SeqCst);
        if before & (OPEN | HELPERS) == 1
            && shared.caller_parked.swap(false, Ordering::SeqCst)
            && let Some(caller) = &*shared.caller.lock().unwrap_or_else(PoisonError::into_inner)
        {
            caller.unpark();
        }
    }
}

/// Whether it became true within the time. A zero time looks once.
fn spin_until(time: Duration, ready: impl Fn() -> bool) -> bool {
    if ready() {
        return true;
    }
    if time.is_zero() {
        return false;
    }
    let start = Instant::now();
    loop {
        for _ in 0..SPINS_PER_LOOK {
            if ready() {
                return true;
            }
            std::hint::spin_loop();
        }
        if start.elapsed() >= time {
            return false;
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.state.0.fetch_add(JOB, Ordering::SeqCst);
        for helper in self.helpers.drain(..) {
            helper.thread().unpark();
            // A helper never panics outside a task, and a task's panic is caught.
            let _ = helper.join();
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).field("spin", &self.shared.spin).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_under_every_spin() {
        for threads in 1..=4 {
            for spin in [Duration::ZERO, Duration::from_micros(20)] {
                let mut pool = Pool::new(threads, spin).unwrap();
                for tasks in (0..40).chain([1000]) {
                    let ran: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                    pool.each(tasks, &|task| {
                        ran[task].fetch_add(1, Ordering::Relaxed);
                    });
                    assert!(
                        ran.iter().all(|n| n.load(Ordering::Relaxed) == 1),
                        "{threads} threads, {tasks} tasks"
                    );
                }
            }
        }
    }

    #[test]
    fn a_panicking_task_reaches_the_caller_and_the_pool_lives_on() {
        let mut pool = Pool::new(3, Duration::ZERO).unwrap();
        for bad in [0, 7] {
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.each(8, &|task| assert!(task != bad, "expected by this test"));
            }));
            assert!(result.is_err(), "task {bad}'s panic was lost");
            let ran = AtomicUsize::new(0);
            pool.each(8, &|_| {
                ran.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(ran.load(Ordering::Relaxed), 8);
        }
    }
}
