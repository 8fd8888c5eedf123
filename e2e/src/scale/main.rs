//! Throughput of several expert workers over one's, on modelled devices over real TCP.

use std::process::ExitCode;

use clap::Parser;
use sluice_e2e::scale::Report;
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
#[command(
    name = "scale",
    about = "Measures deployments of 1 to 8 expert workers on modelled devices, as processes over TCP"
)]
struct Cli {
    #[command(flatten)]
    report: Report,
}

fn main() -> ExitCode {
    let report = Cli::parse().report;
    // One thread: the clients are to take as little of the machine as they can.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(until_told(&report)),
        Err(e) => Err(format!("the clients could not be started: {e}")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

/// Whatever ends it, the processes that it started end with it.
async fn until_told(report: &Report) -> Result<(), String> {
    let on = |kind| signal(kind).map_err(|e| e.to_string());
    let (mut term, mut interrupt) = (on(SignalKind::terminate())?, on(SignalKind::interrupt())?);
    tokio::select! {
        done = report.print() => done,
        _ = term.recv() => Err("told to end".into()),
        _ = interrupt.recv() => Err("interrupted".into()),
    }
}
