//! The machine: its clock, its processor time, and what else it does meanwhile.

use std::fmt::Display;
use std::fs;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::host::HostTime;

/// Nanoseconds of the clock that all processes of a machine share.
pub fn now() -> u64 {
    let t = clock_gettime(ClockId::Monotonic);
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// Processor time of a process.
///
/// # Errors
/// Where the system does not count it.
pub fn ran(process: impl Display) -> Result<Duration, String> {
    let time = HostTime::of(&process, "");
    time.map(|t| t.ran).ok_or_else(|| format!("no processor time of process {process} in /proc"))
}

/// Ticks of all processors, from `/proc/stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticks {
    busy: u64,
    all: u64,
    stolen: u64,
    /// Of this process's children that have ended.
    children: u64,
}

impl Ticks {
    /// Now; nothing where `/proc` has no such counts.
    pub fn now() -> Option<Self> {
        let stat = fs::read_to_string("/proc/stat").ok()?;
        let own = fs::read_to_string("/proc/self/stat").ok()?;
        parse(&stat, &own)
    }

    /// The part of the machine that was busy since an earlier moment.
    pub fn busy(self, before: Self) -> f64 {
        (self.busy - before.busy) as f64 / (self.all - before.all).max(1) as f64
    }

    /// What part of the machine others had, and what part the hypervisor gave to somebody else, since an earlier
    /// moment.
    pub fn others(self, before: Self) -> (f64, f64) {
        let all = (self.all - before.all).max(1) as f64;
        let stolen = self.stolen - before.stolen;
        let ours = self.children - before.children;
        let others = (self.busy - before.busy).saturating_sub(ours);
        (others as f64 / all, stolen as f64 / all)
    }
}

/// `cpu user nice system idle iowait irq softirq steal …`; and of the own line, behind the name in parentheses, the
/// fields from the third on, where 16 and 17 are user and system time of children.
fn parse(stat: &str, own: &str) -> Option<Ticks> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let counts: Vec<u64> = line.split_whitespace().take(8).map_while(|n| n.parse().ok()).collect();
    let [user, nice, system, idle, waiting, irq, soft, stolen] = *counts.as_slice() else { return None };
    let busy = user + nice + system + irq + soft;
    let fields: Vec<&str> = own.rsplit_once(") ")?.1.split(' ').collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let children = field(16)? + field(17)?;
    Some(Ticks { busy, all: busy + idle + waiting + stolen, stolen, children })
}

/// What the figures were measured on.
pub fn describe() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let value = |key: &str| {
        let line = info.lines().find(|l| l.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let model = ["model name", "cpu family", "model"].map(|k| value(k).unwrap_or_else(|| "?".into()));
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    format!(
        "{cores} cores ({}, family {} model {}), Linux {}",
        model[0],
        model[1],
        model[2],
        read("/proc/sys/kernel/osrelease").trim()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_had_is_all_but_the_own_children() {
        let own = |children: u64| format!("7 (a (b) c) S 1 1 1 0 -1 0 0 0 0 0 50 60 {children} 30 20 0");
        let before = parse("cpu  100 0 50 1000 10 5 5 20 0 0\ncpu0 1 2", &own(40)).unwrap();
        let after = parse("cpu  180 10 80 1060 10 5 5 40 0 0", &own(110)).unwrap();
        // 200 ticks passed, 120 of them busy, 70 of those the children's.
        assert_eq!(after.others(before), (0.25, 0.1));
        assert_eq!(after.busy(before), 0.6);
        assert_eq!(parse("cpu  100 0 50", &own(1)), None);
        assert_eq!(parse("cpu  100 0 50 1000 10 5 5 20 0 0", "7 (a) S 1"), None);
    }
}
