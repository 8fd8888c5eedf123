//! The scheduler table in the real run time beside the simulator's.

use clap::Parser;
use sluice_core::config::Policy;
use sluice_e2e::beside::Beside;
use sluice_sim::table::Table;
use std::process::ExitCode;

#[derive(Parser)]
#[command(
    name = "beside",
    about = "Runs the schedulers on modelled devices in the real run time and in the simulator"
)]
struct Cli {
    /// Everything: both shares, all tokens in flight, steps exact and varying, all placements, all schedulers (hours).
    #[arg(long)]
    all: bool,
    /// Tokens in flight.
    #[arg(long, value_delimiter = ',', default_values_t = [64, 2048])]
    tokens: Vec<u32>,
    /// The hottest expert's share of all assignments.
    #[arg(long, value_delimiter = ',', default_values_t = [0.40])]
    hottest: Vec<f64>,
    /// Steps take 1 + Exp(this) times as long.
    #[arg(long, value_delimiter = ',', default_values_t = [0.0, 0.2])]
    jitter: Vec<f64>,
    /// Slices x replicas, each a placement.
    #[arg(long, value_delimiter = ',', value_parser = sluice_sim::table::placement, default_values = ["1x1"])]
    placements: Vec<(u8, u32)>,
    /// Schedulers.
    #[arg(long, value_delimiter = ',', default_values = ["sync", "defrag", "frontier"])]
    schedulers: Vec<Policy>,
    /// Blocks of the model, of its 32.
    #[arg(long, default_value_t = 8)]
    blocks: u16,
    /// The devices are so many times slower than they would be, so that the host keeps up.
    #[arg(long, default_value_t = 150.0)]
    slow_down: f64,
    /// Decides the draws.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn main() -> ExitCode {
    let mut cli = Cli::parse();
    if cli.all {
        cli.tokens = vec![64, 2048, 8192];
        cli.hottest = vec![0.12, 0.40];
        cli.jitter = vec![0.0, 0.2];
        cli.placements = vec![(1, 1), (4, 1), (1, 2), (4, 2)];
        cli.schedulers = Policy::ALL.to_vec();
    }
    let table = Table {
        blocks: cli.blocks,
        tokens: cli.tokens,
        shares: cli.hottest,
        jitters: cli.jitter,
        placements: cli.placements,
        policies: cli.schedulers,
        ranks: 0,
        waves: 1,
        context: 1000.0,
        hop: 10,
        bandwidth: 50.0,
        seed: cli.seed,
    };
    match (Beside { table, slow_down: cli.slow_down }).print() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}
