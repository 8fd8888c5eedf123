//! iperf3 over the same loopback: one TCP stream, its own buffers.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::flow::Flow;
use super::processes::Child;

/// Its server listens within this.
const PATIENCE: Duration = Duration::from_secs(5);

/// The program.
#[derive(Clone, Debug)]
pub struct Iperf {
    program: PathBuf,
    /// What it calls itself.
    pub version: String,
}

impl Iperf {
    /// Finds it.
    ///
    /// # Errors
    /// If it cannot be run.
    pub fn new(program: &Path) -> Result<Self, String> {
        let run = Command::new(program).arg("--version").output();
        let out = run.map_err(|e| format!("cannot run {}: {e}", program.display()))?;
        let version = String::from_utf8_lossy(&out.stdout).lines().next().unwrap_or_default().to_owned();
        Ok(Self { program: program.into(), version })
    }

    /// Streams for so many seconds.
    ///
    /// # Errors
    /// What it says.
    pub fn run(&self, seconds: f64) -> Result<Flow, String> {
        let fail = |e: std::io::Error| format!("{}: {e}", self.program.display());
        let free = TcpListener::bind(("127.0.0.1", 0)).and_then(|l| l.local_addr());
        let port = free.map_err(|e| format!("no free port: {e}"))?.port().to_string();
        let mut server = Command::new(&self.program);
        server.args(["-s", "-1", "-B", "127.0.0.1", "-p", &port]).stdout(Stdio::null());
        let _server = Child(server.spawn().map_err(fail)?);
        let mut client = Command::new(&self.program);
        let time = format!("{:.0}", seconds.ceil());
        client.args(["-c", "127.0.0.1", "-J", "-p", &port, "-t", &time]);
        let begun = Instant::now();
        loop {
            let out = client.output().map_err(fail)?;
            let report: Value = serde_json::from_slice(&out.stdout).map_err(|e| e.to_string())?;
            match report.get("error").and_then(Value::as_str) {
                None => return flow(&report).ok_or_else(|| format!("iperf3 reports no rate: {report}")),
                // The server may not be there yet.
                Some(_) if begun.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(20)),
                Some(why) => return Err(format!("iperf3: {why}")),
            }
        }
    }
}

/// What arrived, and the processor time of both ends, which iperf3 gives in percent of the run's time.
fn flow(report: &Value) -> Option<Flow> {
    let end = report.get("end")?;
    let received = end.get("sum_received")?;
    let seconds = received.get("seconds")?.as_f64()?;
    let part = |who| Some(end.get("cpu_utilization_percent")?.get(who)?.as_f64()? / 100.0 * seconds);
    Some(Flow {
        bytes: received.get("bytes")?.as_u64()?,
        seconds,
        cpu: [part("host_total")?, part("remote_total")?],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_arrived_counts_and_percents_are_of_the_time() {
        let report = serde_json::json!({"end": {
            "sum_sent": {"bytes": 9, "seconds": 2.0},
            "sum_received": {"bytes": 8_000_000_000u64, "seconds": 2.0},
            "cpu_utilization_percent": {"host_total": 100.0, "remote_total": 50.0, "host_user": 1.0}}});
        let flow = flow(&report).unwrap();
        assert_eq!(flow, Flow { bytes: 8_000_000_000, seconds: 2.0, cpu: [2.0, 1.0] });
        assert_eq!(super::flow(&serde_json::json!({"error": "refused"})), None);
    }
}
