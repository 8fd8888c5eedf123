//! The measurements, one after the other, as a page of tables.

use std::path::PathBuf;

use serde_json::{Value, json};
use sluice_core::config::Policy;

use super::cell::Cell;
use super::setup::{Served, Setup, imbalance};
use crate::machine::describe;

/// What to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct Report {
    /// The agent. Without it, the one beside this program.
    #[arg(long)]
    agent: Option<PathBuf>,
    /// Numbers of expert workers, each with as many attention ranks.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4, 8])]
    workers: Vec<u32>,
    /// Sequences in flight for each expert worker; two tables for each number.
    #[arg(long, value_delimiter = ',', default_values_t = [256, 1024])]
    per_worker: Vec<u32>,
    /// The devices are so many times slower than they would be. Of several factors the first with which the host keeps
    /// up is taken, which is tried with the most expert workers; the last is taken untried.
    #[arg(long, value_delimiter = ',', default_values_t = [100.0, 200.0, 400.0])]
    slow_down: Vec<f64>,
    /// For how long each row is measured.
    #[arg(long, default_value_t = 15.0)]
    seconds: f64,
    /// The hottest expert's share where the schedulers are compared.
    #[arg(long, default_value_t = 0.40)]
    hottest: f64,
    /// The schedulers that are compared at that share, with the most expert workers.
    #[arg(long, value_delimiter = ',', num_args = 0.., default_values = ["sync", "mtfs", "flfs", "defrag", "frontier"])]
    schedulers: Vec<Policy>,
    /// Decode waves.
    #[arg(long, default_value_t = 1)]
    waves: u8,
    /// Mutual TLS between the processes: in one more row with the most expert workers, in all rows, or in none.
    #[arg(long, value_enum, default_value_t = Tls::Row)]
    tls: Tls,
    /// Decides the draws.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Also write all figures as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Where there is TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Tls {
    Row,
    On,
    Off,
}

impl Report {
    /// Measures and prints.
    ///
    /// # Errors
    /// What could not be measured.
    pub async fn print(&self) -> Result<(), String> {
        let mut cells = vec![];
        self.conditions()?;
        for &per_worker in &self.per_worker {
            let setup = self.setup(per_worker, &mut cells).await?;
            self.scaling(setup, &mut cells).await?;
            if !self.schedulers.is_empty() {
                self.schedulers(setup, &mut cells).await?;
            }
        }
        if let Some(path) = &self.json {
            let all: Vec<Value> = cells.iter().map(figures).collect();
            let text = serde_json::to_string_pretty(&json!({"machine": describe(), "cells": all}));
            std::fs::write(path, text.map_err(|e| e.to_string())?)
                .map_err(|e| format!("cannot write {}: {e}", path.display()))?;
        }
        Ok(())
    }

    /// The most expert workers with so many sequences each, on devices that are slow enough.
    async fn setup(&self, per_worker: u32, cells: &mut Vec<Cell>) -> Result<Setup, String> {
        let mut setup = Setup {
            workers: self.workers.iter().copied().max().unwrap_or(1),
            per_worker,
            policy: Policy::Frontier,
            hottest: Served::tiny_moe()?.even(),
            tls: self.tls == Tls::On,
            slow_down: 1.0,
            waves: self.waves,
            seed: self.seed,
        };
        println!();
        let mut left = self.slow_down.iter().copied();
        while let Some(factor) = left.next() {
            setup.slow_down = factor;
            if left.len() == 0 {
                break;
            }
            // A barrier wakes everybody at each step, so it is the first that a host does not follow.
            let barrier = Setup { policy: Policy::Sync, hottest: self.hottest, ..setup };
            let tried = [Some(setup), Some(barrier).filter(|_| self.schedulers.contains(&Policy::Sync))];
            let mut keeps_up = true;
            for setup in tried.into_iter().flatten() {
                let cell = self.measure(setup, cells).await?;
                println!(
                    "Tried: {}, slowed down by {factor}, `{}`: the host adds up to {:.1}% to the devices' time.",
                    sequences(&setup),
                    setup.policy.name(),
                    cell.between.per_step() * 100.0
                );
                keeps_up &= cell.keeps_up();
                if !keeps_up {
                    break;
                }
            }
            if keeps_up {
                break;
            }
        }
        Ok(setup)
    }

    async fn measure(&self, setup: Setup, cells: &mut Vec<Cell>) -> Result<Cell, String> {
        let own = std::env::current_exe().map_err(|e| format!("the own program is not to be found: {e}"))?;
        let agent = self.agent.clone().unwrap_or_else(|| own.with_file_name("sluice-agent"));
        let cell = Cell::measure(setup, &agent, self.seconds).await?;
        cells.push(cell.clone());
        Ok(cell)
    }

    fn conditions(&self) -> Result<(), String> {
        let row = Served::tiny_moe()?.row_bytes();
        println!("{}.", describe());
        println!("Rows of {row} bytes, waves: {}, {} s a row, seed {}.", self.waves, self.seconds, self.seed);
        Ok(())
    }

    async fn scaling(&self, setup: Setup, cells: &mut Vec<Cell>) -> Result<(), String> {
        println!(
            "\n{}, devices slowed down by {}, even popularity, `frontier`:\n",
            sequences(&setup),
            setup.slow_down
        );
        head(
            "| expert workers | wire | tokens/s | over k x one | devices alone, tokens/s | over k x one | of devices alone | rows per unit | ITL p50 / p99 ms |",
        );
        let mut one: Option<Cell> = None;
        let mut setups: Vec<Setup> = self.workers.iter().map(|&workers| Setup { workers, ..setup }).collect();
        if self.tls == Tls::Row {
            setups.push(Setup { tls: true, ..setup });
        }
        for setup in setups {
            let cell = self.measure(setup, cells).await?;
            let over = |of: fn(&Cell) -> f64| {
                let one = one.as_ref().unwrap_or(&cell);
                let per_worker = |c: &Cell| of(c) / f64::from(c.setup.workers);
                per_worker(&cell) / per_worker(one)
            };
            println!(
                "| {} | {} | {:.0} | **{:.2}** | {:.0} | {:.2} | {:.2} | {:.0} | {} | {}",
                setup.workers,
                wire(&setup),
                cell.throughput,
                over(|c| c.throughput),
                cell.alone.throughput,
                over(|c| c.alone.throughput),
                cell.of_alone(),
                cell.between.rows_per_unit,
                latencies(&cell),
                host(&cell),
            );
            one.get_or_insert(cell);
        }
        Ok(())
    }

    async fn schedulers(&self, setup: Setup, cells: &mut Vec<Cell>) -> Result<(), String> {
        let setup = Setup { hottest: self.hottest, ..setup };
        let setting = setup.setting()?;
        let load = imbalance(&setting.plan(&setting.skew())?, &setting);
        println!(
            "\n{}, {} expert workers, devices slowed down by {}, hottest share {:.2} (over all blocks the busiest worker has {load:.2} of the mean load):\n",
            sequences(&setup),
            setup.workers,
            setup.slow_down,
            setup.hottest
        );
        head(
            "| scheduler | tokens/s | of `sync` | devices alone, tokens/s | of `sync` | of devices alone | rows per unit (mean batch) | alone | ITL p50 / p99 ms |",
        );
        // The yardstick first.
        let mut policies = self.schedulers.clone();
        policies.sort_by_key(|p| *p != Policy::Sync);
        let mut sync: Option<Cell> = None;
        for policy in policies {
            let cell = self.measure(Setup { policy, ..setup }, cells).await?;
            if policy == Policy::Sync {
                sync = Some(cell.clone());
            }
            let of_sync = |of: fn(&Cell) -> f64| {
                sync.as_ref().map_or("?".into(), |sync| format!("{:.2}", of(&cell) / of(sync)))
            };
            println!(
                "| `{}` | {:.0} | {} | {:.0} | {} | {:.2} | {:.0} | {:.0} | {} | {}",
                policy.name(),
                cell.throughput,
                of_sync(|c| c.throughput),
                cell.alone.throughput,
                of_sync(|c| c.alone.throughput),
                cell.of_alone(),
                cell.between.rows_per_unit,
                cell.alone.rows_per_unit,
                latencies(&cell),
                host(&cell),
            );
        }
        Ok(())
    }
}

/// The host's columns, which both tables end with.
const HOST: &str = " host us per step, experts / attention | host of device time | machine: ranks, experts, gateway, clients / all of them idle / others | MB/s | passes | keeps up |";

/// The first two lines of a table with these columns and the host's.
fn head(columns: &str) {
    let line = format!("{columns}{HOST}");
    println!("{line}\n|{}", " --- |".repeat(line.matches('|').count() - 1));
}

fn sequences(setup: &Setup) -> String {
    format!("{} sequences for each expert worker", setup.per_worker)
}

fn wire(setup: &Setup) -> &'static str {
    if setup.tls { "mutual TLS" } else { "TCP" }
}

fn latencies(cell: &Cell) -> String {
    let [p50, p99] = cell.itl.map(|s| s * 1e3);
    format!("{p50:.2} / {p99:.2}")
}

fn host(cell: &Cell) -> String {
    let b = &cell.between;
    let [ranks, experts, gateway, clients] = b.shares.map(|part| part * 100.0);
    let [attention_step, expert_step] = cell.host_micros();
    let others = b.others.map_or("?".into(), |o| format!("{:.0}", o * 100.0));
    format!(
        "{expert_step:.0} / {attention_step:.0} | {:.1}% | {ranks:.0} + {experts:.0} + {gateway:.0} + {clients:.0} / {:.0} / {others}% | {:.1} | {:.0} | {} |",
        b.per_step() * 100.0,
        cell.idle.load * 100.0,
        b.loopback / 1e6,
        cell.passes,
        if cell.keeps_up() { "yes" } else { "no" },
    )
}

/// All of a cell.
fn figures(cell: &Cell) -> Value {
    let (s, b) = (&cell.setup, &cell.between);
    let role = |r: &super::gauges::Role| {
        json!({
            "processor_s": r.ran, "device_threads_s": r.drove, "device_s": r.device, "steps": r.steps,
            "rows_per_step": r.rows_per_step(),
        })
    };
    json!({
        "expert_workers": s.workers, "attention_ranks": s.workers, "sequences": s.sequences(),
        "scheduler": s.policy.name(), "hottest_share": s.hottest, "tls": s.tls, "slow_down": s.slow_down,
        "waves": s.waves, "seed": s.seed,
        "tokens_per_s": cell.throughput, "itl_p50_s": cell.itl[0], "itl_p99_s": cell.itl[1], "passes": cell.passes,
        "devices_alone": {
            "tokens_per_s": cell.alone.throughput, "rows_per_unit": cell.alone.rows_per_unit,
            "itl_p50_s": cell.alone.itl_p50, "busy": [cell.alone.busy.0, cell.alone.busy.1],
        },
        "of_devices_alone": cell.of_alone(), "rows_per_unit": b.rows_per_unit,
        "ranks": role(&b.ranks), "experts": role(&b.hosts),
        "host_us_per_step": {"attention": cell.host_micros()[0], "experts": cell.host_micros()[1]},
        "host_of_device_time": b.per_step(), "keeps_up": cell.keeps_up(), "seconds": b.seconds,
        "machine": {
            "ours": b.load, "ours_idle": cell.idle.load, "others": b.others, "ranks": b.shares[0], "experts": b.shares[1], "gateway": b.shares[2],
            "clients": b.shares[3],
        },
        "loopback_bytes_per_s": b.loopback, "trouble": b.trouble, "credit_stalls": b.stalls,
    })
}
