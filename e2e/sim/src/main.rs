//! The simulator's command line.

use clap::{Parser, Subcommand};
use sluice_core::config::Policy;
use sluice_core::plant::{self, Plant};
use sluice_sim::coverage::Coverage;
use sluice_sim::fleet::Fleet;
use sluice_sim::run::{self, Summary};
use sluice_sim::say;
use sluice_sim::table::{self, Table};
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
    /// Plant a bug in the core and count the seeds until it is found (needs the feature `plant`).
    Plant {
        /// The bug; all of them if not given.
        #[arg(long, value_parser = clap::builder::PossibleValuesParser::new(Plant::ALL.map(|p| p.0)))]
        bug: Option<String>,
        /// Seeds at most.
        #[arg(long, default_value_t = 10_000)]
        count: u64,
        /// Threads; all cores if not given.
        #[arg(long)]
        jobs: Option<usize>,
    },
    /// Compare the schedulers on modelled devices.
    Table {
        /// Blocks of the model, of its 32.
        #[arg(long, default_value_t = 8)]
        blocks: u16,
        /// Tokens in flight.
        #[arg(long, value_delimiter = ',', default_values_t = [64, 2048, 8192])]
        tokens: Vec<u32>,
        /// The hottest expert's share of all assignments.
        #[arg(long, value_delimiter = ',', default_values_t = [0.12, 0.40])]
        hottest: Vec<f64>,
        /// Steps take 1 + Exp(this) times as long.
        #[arg(long, value_delimiter = ',', default_values_t = [0.0, 0.2])]
        jitter: Vec<f64>,
        /// Slices x replicas, each a placement.
        #[arg(long, value_delimiter = ',', value_parser = table::placement, default_values = ["1x1", "4x1", "1x2", "4x2"])]
        placements: Vec<(u8, u32)>,
        /// Schedulers.
        #[arg(long, value_delimiter = ',', default_values = ["mtfs", "flfs", "defrag", "frontier", "sync"])]
        schedulers: Vec<Policy>,
        /// Attention ranks of the 8 devices; 0: every device is both.
        #[arg(long, default_value_t = 0)]
        ranks: u32,
        /// Decode waves.
        #[arg(long, default_value_t = 1)]
        waves: u8,
        /// Positions that each token attends to.
        #[arg(long, default_value_t = 1000.0)]
        context: f64,
        /// Latency of a hop between devices, in microseconds.
        #[arg(long, default_value_t = 10)]
        hop: u64,
        /// GB/s of each device's link in each direction; 0 is unlimited.
        #[arg(long, default_value_t = 50.0)]
        bandwidth: f64,
        /// Decides the draws.
        #[arg(long, default_value_t = 0)]
        seed: u64,
        /// Print the steps of the first scheduler named, after warming up, instead of the table.
        #[arg(long)]
        trace: bool,
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
            let summary = run::many(from..from + count, threads(jobs), false, || ());
            print(&summary, start.elapsed().as_secs_f64(), show);
            if summary.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Command::Plant { bug, count, jobs } => {
            if !plant::set(Some(Plant::PoolForgets)) {
                eprintln!(
                    "this build has no bugs to plant: cargo run --release -p sluice-sim --features plant -- plant"
                );
                return ExitCode::FAILURE;
            }
            std::panic::set_hook(Box::new(|_| {}));
            let mut code = ExitCode::SUCCESS;
            for (name, plant) in Plant::ALL.into_iter().filter(|p| bug.as_ref().is_none_or(|b| b == p.0)) {
                let found = run::many(0..count, threads(jobs), true, || {
                    plant::set(Some(plant));
                });
                match found.violations.first() {
                    Some((seed, violation)) => say!("{name}: found by seed {seed}: {violation}"),
                    None => {
                        say!("{name}: not found in {count} seeds");
                        code = ExitCode::FAILURE;
                    }
                }
            }
            code
        }
        Command::Table {
            blocks,
            tokens,
            hottest,
            jitter,
            placements,
            schedulers,
            ranks,
            waves,
            context,
            hop,
            bandwidth,
            seed,
            trace,
        } => {
            let table = Table {
                blocks,
                tokens,
                shares: hottest,
                jitters: jitter,
                placements,
                policies: schedulers,
                ranks,
                waves,
                context,
                hop,
                bandwidth,
                seed,
            };
            match if trace { trace_first(&table) } else { table.print() } {
                Ok(()) => ExitCode::SUCCESS,
                Err(why) => {
                    eprintln!("{why}");
                    ExitCode::FAILURE
                }
            }
        }
        Command::Seed { seed, trace } => match run::run(seed, trace) {
            Ok(report) => {
                say!(
                    "seed {seed}: {} events in {:.3} ms of virtual time",
                    report.events,
                    report.time as f64 / 1e6
                );
                for (name, n) in Coverage::NAMES.iter().zip(report.coverage.counts()).filter(|c| c.1 > 0) {
                    say!("{n:>8} {name}");
                }
                ExitCode::SUCCESS
            }
            Err(violation) => {
                say!("seed {seed}: violation {violation}\nreplay: {}", run::replay(seed));
                ExitCode::FAILURE
            }
        },
    }
}

fn threads(jobs: Option<usize>) -> usize {
    jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, Into::into))
}

fn trace_first(t: &Table) -> Result<(), String> {
    let first = |what| format!("name a {what} to trace");
    let setting = t.setting(
        *t.tokens.first().ok_or_else(|| first("number of tokens"))?,
        *t.shares.first().ok_or_else(|| first("share"))?,
        *t.jitters.first().ok_or_else(|| first("jitter"))?,
        *t.placements.first().ok_or_else(|| first("placement"))?,
        *t.policies.first().ok_or_else(|| first("scheduler"))?,
    )?;
    say!("{:?}", Fleet::run(&setting, 3, 2, true)?);
    Ok(())
}

fn print(s: &Summary, seconds: f64, show: usize) {
    for (seed, violation) in s.violations.iter().take(show) {
        say!("seed {seed}: violation {violation}\nreplay: {}", run::replay(*seed));
    }
    say!("| occurred | % of seeds | times |\n| --- | --- | --- |");
    let ended = s.events.len().max(1) as f64;
    for (name, (seeds, times)) in Coverage::NAMES.iter().zip(s.coverage) {
        say!("| {name} | {:.1} | {times} |", 100.0 * seeds as f64 / ended);
    }
    say!(
        "{} seeds, {} violations; median {} events; {:.0} seeds/s",
        s.seeds,
        s.violations.len(),
        s.median_events(),
        s.seeds as f64 / seconds
    );
}
