//! What the processes and the machine say at one moment, and what lies between two.

use std::fs;
use std::time::Instant;

use super::deployment::Deployment;
use crate::host::HostTime;
use crate::machine::Ticks;

/// Sums over the processes of one role.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Role {
    /// Seconds of processor time, all threads.
    pub ran: f64,
    /// Seconds for which the threads that drive devices ran or waited for a core.
    pub drove: f64,
    /// Seconds of steps.
    pub device: f64,
    /// Steps.
    pub steps: f64,
    /// Rows of steps.
    pub rows: f64,
}

/// All that is read at one moment: sums since each process's start, and the machine's.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// When.
    pub at: Instant,
    /// Processes with attention: their attention steps.
    pub ranks: Role,
    /// Processes with experts: their expert steps.
    pub hosts: Role,
    /// Seconds of processor time of the gateway.
    pub gateway: f64,
    /// Seconds of processor time of the clients.
    pub clients: f64,
    /// Expert units that ran.
    pub units: f64,
    /// Rows of them.
    pub unit_rows: f64,
    /// Bytes over the loopback device.
    pub loopback: f64,
    /// What should not happen: peers masked, rows asked again, sequences preempted.
    pub trouble: f64,
    /// Rows that found no landing row free.
    pub stalls: f64,
    ticks: Option<Ticks>,
}

impl Moment {
    /// Now.
    ///
    /// # Errors
    /// A process that does not answer, or a machine that does not count.
    pub async fn now(deployment: &Deployment) -> Result<Self, String> {
        let mut m = Self {
            at: Instant::now(),
            ranks: Role::default(),
            hosts: Role::default(),
            gateway: 0.0,
            clients: 0.0,
            units: 0.0,
            unit_rows: 0.0,
            loopback: 0.0,
            trouble: 0.0,
            stalls: 0.0,
            ticks: None,
        };
        for agent in &deployment.agents {
            let page = agent.metrics().await?;
            let host = HostTime::of(agent.process(), agent.role);
            let host = host.ok_or_else(|| format!("no processor time of process {}", agent.process()))?;
            let sum = |name: &str| sum(&page, name, None);
            m.units += sum("sluice_expert_units_total");
            m.unit_rows += sum("sluice_expert_rows_total");
            m.stalls += sum("sluice_credit_stalls_total");
            m.trouble += sum("sluice_masked_peers_total") + sum("sluice_redispatched_total");
            m.trouble += sum("sluice_preemptions_total");
            match agent.role {
                "attention" => m.ranks.add(&host, &page, agent.role),
                "experts" => m.hosts.add(&host, &page, agent.role),
                _ => m.gateway += host.ran.as_secs_f64(),
            }
        }
        m.clients = HostTime::of("self", "").map_or(0.0, |h| h.ran.as_secs_f64());
        let devices = fs::read_to_string("/proc/net/dev").unwrap_or_default();
        m.loopback = received(&devices, "lo").ok_or("no device lo in /proc/net/dev")?;
        m.ticks = Ticks::now();
        m.at = Instant::now();
        Ok(m)
    }

    /// What lies between an earlier moment and this one.
    pub fn since(&self, before: &Self) -> Between {
        let seconds = self.at.duration_since(before.at).as_secs_f64();
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as f64;
        let (ranks, hosts) = (self.ranks.since(before.ranks), self.hosts.since(before.hosts));
        let (gateway, clients) = (self.gateway - before.gateway, self.clients - before.clients);
        let own = (ranks.ran + hosts.ran + gateway + clients) / seconds / cores;
        let busy = self.ticks.zip(before.ticks).map(|(now, before)| now.busy(before));
        Between {
            seconds,
            ranks,
            hosts,
            load: own,
            others: busy.map(|busy| (busy - own).max(0.0)),
            shares: [ranks.ran, hosts.ran, gateway, clients].map(|part| part / seconds / cores),
            rows_per_unit: (self.unit_rows - before.unit_rows) / (self.units - before.units).max(1.0),
            loopback: (self.loopback - before.loopback) / seconds,
            trouble: self.trouble - before.trouble,
            stalls: self.stalls - before.stalls,
        }
    }
}

/// What lies between two moments.
#[derive(Clone, Copy, Debug)]
pub struct Between {
    /// Seconds of the clock.
    pub seconds: f64,
    /// Of attention.
    pub ranks: Role,
    /// Of experts.
    pub hosts: Role,
    /// Processor time of all processes over that of all cores.
    pub load: f64,
    /// What else ran on the machine, over all cores.
    pub others: Option<f64>,
    /// Of the load: ranks, expert workers, gateway, clients.
    pub shares: [f64; 4],
    /// Mean rows of a unit in an expert step.
    pub rows_per_unit: f64,
    /// Bytes per second over the loopback device.
    pub loopback: f64,
    /// See [`Moment::trouble`].
    pub trouble: f64,
    /// See [`Moment::stalls`].
    pub stalls: f64,
}

impl Between {
    /// Time of the threads that drive devices, running or waiting for a core, over the time of their steps: by at most
    /// so much the host makes the devices longer.
    pub fn per_step(&self) -> f64 {
        (self.ranks.drove + self.hosts.drove) / (self.ranks.device + self.hosts.device)
    }
}

impl Role {
    fn add(&mut self, host: &HostTime, page: &str, kind: &str) {
        let sum = |name: &str, kind| sum(page, name, kind);
        self.ran += host.ran.as_secs_f64();
        self.drove += host.workers.as_secs_f64();
        self.device += sum("sluice_step_duration_seconds_sum", None);
        self.steps += sum("sluice_step_duration_seconds_count", Some(kind));
        self.rows += sum("sluice_step_rows_sum", Some(kind));
    }

    fn since(self, before: Self) -> Self {
        Self {
            ran: self.ran - before.ran,
            drove: self.drove - before.drove,
            device: self.device - before.device,
            steps: self.steps - before.steps,
            rows: self.rows - before.rows,
        }
    }

    /// Mean rows of a step.
    pub fn rows_per_step(&self) -> f64 {
        self.rows / self.steps.max(1.0)
    }
}

/// The sum over the samples of a name, of one kind of step if one is given.
fn sum(page: &str, name: &str, kind: Option<&str>) -> f64 {
    let kind = kind.map(|kind| format!("kind=\"{kind}\""));
    let sample = |line: &str| {
        let (series, value) = line.rsplit_once(' ')?;
        let (found, labels) = series.split_once('{').unwrap_or((series, ""));
        let wanted = found == name && kind.as_ref().is_none_or(|k| labels.contains(k.as_str()));
        wanted.then(|| value.parse::<f64>().ok())?
    };
    page.lines().filter_map(sample).sum()
}

/// Bytes that a device has received, of `/proc/net/dev`.
fn received(devices: &str, device: &str) -> Option<f64> {
    let line = devices.lines().find_map(|l| l.trim().strip_prefix(device)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "\
# TYPE sluice_step_rows histogram
sluice_step_rows_sum{kind=\"experts\",worker=\"3\"} 40
sluice_step_rows_sum{kind=\"head\",worker=\"3\"} 7
sluice_step_rows_count{kind=\"experts\",worker=\"3\"} 5
sluice_expert_units_total{worker=\"3\"} 9
up 1
";

    #[test]
    fn samples_are_summed_by_name_and_kind() {
        assert_eq!(sum(PAGE, "sluice_step_rows_sum", Some("experts")), 40.0);
        assert_eq!(sum(PAGE, "sluice_step_rows_sum", None), 47.0);
        assert_eq!(sum(PAGE, "sluice_expert_units_total", None), 9.0);
        assert_eq!(sum(PAGE, "up", None), 1.0);
        assert_eq!(sum(PAGE, "sluice_step", None), 0.0);
    }

    #[test]
    fn a_devices_bytes_are_its_own() {
        let devices =
            "Inter-|   Receive\n face |bytes    packets\n    lo: 1234  5 0 0\n  lo2: 9 9\neth0:77 1\n";
        assert_eq!(received(devices, "lo"), Some(1234.0));
        assert_eq!(received(devices, "eth0"), Some(77.0));
        assert_eq!(received(devices, "eth1"), None);
    }

    #[test]
    fn a_role_is_what_came_since() {
        let role = |x: f64| Role { ran: x, drove: x / 2.0, device: x, steps: 1000.0 * x, rows: 8000.0 * x };
        assert_eq!(role(3.0).since(role(1.0)), role(2.0));
        assert_eq!((role(2.0).rows_per_step(), Role::default().rows_per_step()), (8.0, 0.0));
    }
}
