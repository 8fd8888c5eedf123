//! What the host spends on a run: the processor time of a process's threads, and the time for which they wanted a
//! core and had none. From Linux' scheduler, which counts both by thread.

use std::fmt::Display;
use std::fs;
use std::time::Duration;

/// Sums since the start of the threads that live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostTime {
    /// On a core, all threads.
    pub ran: Duration,
    /// On a core or waiting for one, threads that drive a device.
    pub workers: Duration,
}

impl HostTime {
    /// Of this process, now. Threads whose name begins with `worker` drive a device. Nothing where `/proc` has no such
    /// count.
    pub fn now(worker: &str) -> Option<Self> {
        Self::of("self", worker)
    }

    /// Of a process by its number.
    pub fn of(process: impl Display, worker: &str) -> Option<Self> {
        let mut sum = Self::default();
        for task in fs::read_dir(format!("/proc/{process}/task")).ok()?.flatten() {
            // A thread may end meanwhile.
            let Ok(counts) = fs::read_to_string(task.path().join("schedstat")) else { continue };
            let (ran, waited) = parse(&counts)?;
            sum.ran += ran;
            let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            if name.starts_with(worker) {
                sum.workers += ran + waited;
            }
        }
        (sum.ran > Duration::ZERO).then_some(sum)
    }

    /// Since an earlier moment.
    pub fn since(self, before: Self) -> Self {
        Self {
            ran: self.ran.saturating_sub(before.ran),
            workers: self.workers.saturating_sub(before.workers),
        }
    }
}

/// Nanoseconds on a core, and waiting for one.
fn parse(counts: &str) -> Option<(Duration, Duration)> {
    let mut numbers = counts.split_whitespace().map(|n| n.parse().ok().map(Duration::from_nanos));
    Some((numbers.next()??, numbers.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_in_order() {
        let nanos = Duration::from_nanos;
        assert_eq!(parse("123 45 6\n"), Some((nanos(123), nanos(45))));
        assert_eq!(parse("123"), None);
        assert_eq!(parse("ran waited 1"), None);
    }
}
