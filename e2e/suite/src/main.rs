//! Suites against a real Kubernetes: the chart, the operator and the agents as a person gets them.

mod chat;
mod check;
mod cli;
mod cluster;
mod dump;
mod install;
mod objects;
mod page;
mod runner;
mod shell;
mod tests;
mod world;

use clap::Parser;
use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    // Whatever is started has a guard that ends it, and guards run when this future is dropped.
    tokio::select! {
        ended = cli::run(cli) => match ended {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("e2e: {error:#}");
                ExitCode::FAILURE
            }
        },
        signal = interrupted() => {
            eprintln!("e2e: {signal}: clearing up");
            ExitCode::from(130)
        }
    }
}

/// The name of the signal that asks for an end.
async fn interrupted() -> &'static str {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut term) = signal(SignalKind::terminate()) else {
        return std::future::pending().await;
    };
    tokio::select! {
        Ok(()) = tokio::signal::ctrl_c() => "SIGINT",
        _ = term.recv() => "SIGTERM",
    }
}
