//! The transport between two processes, beside iperf3.

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use sluice_e2e::wire::{Report, Setup, Task, host, rank};

#[derive(Parser)]
#[command(
    name = "wire",
    about = "Measures the transport between two processes over loopback, beside iperf3",
    args_conflicts_with_subcommands = true
)]
struct Cli {
    #[command(flatten)]
    report: Report,
    #[command(subcommand)]
    side: Option<Side>,
}

/// The processes of one measurement, which this program starts by itself.
#[derive(Subcommand)]
#[command(hide = true)]
enum Side {
    /// Takes what the rank sends until standard input ends.
    Host(Setup),
    /// Sends.
    Rank(RankOptions),
}

#[derive(Args)]
struct RankOptions {
    #[command(flatten)]
    setup: Setup,
    #[command(flatten)]
    task: Task,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.side {
        None => cli.report.print(),
        Some(Side::Host(setup)) => {
            host(&setup, || println!("ready")).map(|took| println!("{}", serde_json::json!(took)))
        }
        Some(Side::Rank(o)) => rank(&o.setup, &o.task).map(|flow| println!("{}", serde_json::json!(flow))),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}
