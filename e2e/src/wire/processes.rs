//! The two processes of one measurement, each time new ones.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Stdio};

use clap::ValueEnum as _;
use serde::de::DeserializeOwned;

use super::connect::{Setup, Side};
use super::flow::Flow;
use super::rank::Task;
use crate::certificates;

/// A process that ends with its owner.
pub struct Child(pub std::process::Child);

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs one measurement: what the rank saw, and the nanoseconds that small batches took.
///
/// # Errors
/// What either of the two says.
pub fn measure(setup: &Setup, task: &Task) -> Result<(Flow, Vec<u64>), String> {
    let dirs = Side::BOTH.map(|side| (side.certificates(&setup.dir), side.id()));
    for (dir, _) in &dirs {
        std::fs::create_dir_all(dir).map_err(|e| format!("cannot make {}: {e}", dir.display()))?;
    }
    certificates::write(&dirs.each_ref().map(|(dir, id)| (dir.as_path(), id.clone())))?;

    let mut host = command("host", setup)?;
    host.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut host = Child(host.spawn().map_err(|e| format!("the host: {e}"))?);
    let out = host.0.stdout.take().ok_or("the host has no standard output")?;
    let mut out = BufReader::new(out);
    let mut line = String::new();
    out.read_line(&mut line).map_err(|e| format!("the host: {e}"))?;
    if line.trim() != "ready" {
        return Err("the host does not start".into());
    }

    let mut rank = command("rank", setup)?;
    let name = |v: &dyn ToString| v.to_string();
    let load = task.load.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default();
    for (option, value) in [
        ("--load", load),
        ("--seconds", name(&task.seconds)),
        ("--batches", name(&task.batches)),
        ("--small", name(&task.small)),
        ("--large", name(&task.large)),
        ("--host", name(&host.0.id())),
    ] {
        rank.args([option, &value]);
    }
    let done = rank.stderr(Stdio::inherit()).output().map_err(|e| format!("the rank: {e}"))?;
    let flow = read(&String::from_utf8_lossy(&done.stdout), "rank")?;
    drop(host.0.stdin.take());
    let mut rest = String::new();
    out.read_to_string(&mut rest).map_err(|e| format!("the host: {e}"))?;
    Ok((flow, read(&rest, "host")?))
}

fn command(side: &str, setup: &Setup) -> Result<Command, String> {
    let own = std::env::current_exe().map_err(|e| format!("the own program is not to be found: {e}"))?;
    let mut command = Command::new(own);
    let via = setup.via.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default();
    command.args([side, "--via", &via, "--row-bytes", &setup.row_bytes.to_string()]);
    command.args(["--ring", &setup.ring.to_string(), "--dir"]).arg(&setup.dir);
    Ok(command)
}

fn read<T: DeserializeOwned>(text: &str, who: &str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|_| format!("the {who} process failed"))
}
