//! The simulator's command line.

use clap::{Parser, Subcommand};
use sluice_sim::coverage::Coverage;
use sluice_sim::run::{self, Summary};
use std::process::ExitCode;
use std::time::Instant;

#[derive(Parser)]
#[command(name = "sim", about = "Drives many cores over a modelled network; a seed decides everything")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run many seeds and say what occurred in them.
    Seeds {
        /// The first seed.
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// How many.
        #[arg(long, default_value_t = 10_000)]
        count: u64,
        /// Threads; all cores if not given.
        #[arg(long)]
        jobs: Option<usize>,
        /// Violations to print.
        #[arg(long, default_value_t = 20)]
        show: usize,
    },
    /// Run one seed.
    Seed {
        /// The seed.
        seed: u64,
        /// Print every event and action.
        #[arg(long)]
        trace: bool,
    },
}

fn main() -> ExitCode {
    // A panic of the core is reported with its seed; the default message would only repeat it.
    match Cli::parse().command {
        Command::Seeds { from, count, jobs, show } => {
            std::panic::set_hook(Box::new(|_| {}));
            let start = Instant::now();
            let jobs = jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, Into::into));
            let summary = run::many(from..from + count, jobs, false, || ());
            print(&summary, start.elapsed().as_secs_f64(), show);
            if summary.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Command::Seed { seed, trace } => match run::run(seed, trace) {
            Ok(report) => {
                println!(
                    "seed {seed}: {} events in {:.3} ms of virtual time",
                    report.events,
                    report.time as f64 / 1e6
                );
                for (name, n) in Coverage::NAMES.iter().zip(report.coverage.counts()).filter(|c| c.1 > 0) {
                    println!("{n:>8} {name}");
                }
                ExitCode::SUCCESS
            }
            Err(violation) => {
                println!("seed {seed}: violation {violation}\nreplay: {}", run::replay(seed));
                ExitCode::FAILURE
            }
        },
    }
}

fn print(s: &Summary, seconds: f64, show: usize) {
    for (seed, violation) in s.violations.iter().take(show) {
        println!("seed {seed}: violation {violation}\nreplay: {}", run::replay(*seed));
    }
    println!("| occurred | % of seeds | times |\n| --- | --- | --- |");
    let ended = s.events.len().max(1) as f64;
    for (name, (seeds, times)) in Coverage::NAMES.iter().zip(s.coverage) {
        println!("| {name} | {:.1} | {times} |", 100.0 * seeds as f64 / ended);
    }
    println!(
        "{} seeds, {} violations; median {} events; {:.0} seeds/s",
        s.seeds,
        s.violations.len(),
        s.median_events(),
        s.seeds as f64 / seconds
    );
}
