//! `sluice-agent inspect`.

use std::io::Write as _;

use sluice_agent::cli::InspectOptions;
use sluice_agent::telemetry::Devices;
use sluice_agent::{inspect as look, node};

/// Prints what a model directory holds; an error if it cannot be served.
pub fn inspect(options: &InspectOptions) -> anyhow::Result<()> {
    if options.devices {
        return devices(options.json);
    }
    let inspection = look::inspect(node::directory(&options.model))?;
    let mut out = std::io::stdout().lock();
    if options.json {
        serde_json::to_writer_pretty(&mut out, &inspection)?;
        writeln!(out)?;
    } else {
        write!(out, "{inspection}")?;
    }
    anyhow::ensure!(inspection.is_complete(), "this model cannot be served as it is");
    Ok(())
}

fn devices(as_json: bool) -> anyhow::Result<()> {
    let page = Devices::default().look();
    let mut out = std::io::stdout().lock();
    if as_json {
        serde_json::to_writer_pretty(&mut out, &page)?;
        writeln!(out)?;
    } else {
        write!(out, "{page}")?;
    }
    Ok(())
}
