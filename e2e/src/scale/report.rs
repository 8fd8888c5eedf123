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
    /// Sequences in flight for each expert worker; a table for each number.
    #[arg(long, value_delimiter = ',', default_values_t = [1024])]
    per_worker: Vec<u32>,
    /// The devices are so many times slower than they would be, so that the host keeps up.
    #[arg(long, default_value_t = 200.0)]
    slow_down: f64,
    /// For how long each row is measured.
    #[arg(long, default_value_t = 15.0)]
    seconds: f64,
    /// The hottest expert's share where the schedulers are compared.
    #[arg(long, default_value_t = 0.40)]
    hottest: f64,
    /// The schedulers that are compared at that share, with the most expert workers.
    #[arg(long, value_delimiter = ',', default_values = ["sync", "mtfs", "flfs", "defrag", "frontier"])]
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
            self.scaling(per_worker, &mut cells).await?;
            if !self.schedulers.is_empty() {
                self.schedulers(per_worker, &mut cells).await?;
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

    fn setup(&self, workers: u32, per_worker: u32) -> Result<Setup, String> {
        Ok(Setup {
            workers,
            per_worker,
            policy: Policy::Frontier,
            hottest: Served::tiny_moe()?.even(),
            tls: self.tls == Tls::On,
            slow_down: self.slow_down,
            waves: self.waves,
            seed: self.seed,
        })
    }

    fn most(&self) -> u32 {
        self.workers.iter().copied().max().unwrap_or(1)
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
        println!(
            "Devices slowed down by {}, rows of {row} bytes, {} waves, {} s a row, seed {}.",
            self.slow_down, self.waves, self.seconds, self.seed
        );
        Ok(())
    }

    async fn scaling(&self, per_worker: u32, cells: &mut Vec<Cell>) -> Result<(), String> {
        println!("\n{per_worker} sequences for each expert worker, even popularity, `frontier`:\n");
        println!(
            "| expert workers | wire | tokens/s | over k x one | devices alone, tokens/s | over k x one | of devices alone | rows per unit | ITL p50 / p99 ms | {HOST}"
        );
        println!("{}", rule(9 + HOST_COLUMNS));
        let mut one: Option<Cell> = None;
        let setups: Result<Vec<Setup>, String> =
            self.workers.iter().map(|k| self.setup(*k, per_worker)).collect();
        let mut setups = setups?;
        if self.tls == Tls::Row {
            setups.push(Setup { tls: true, ..self.setup(self.most(), per_worker)? });
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

    async fn schedulers(&self, per_worker: u32, cells: &mut Vec<Cell>) -> Result<(), String> {
        let workers = self.most();
        let setup = Setup { hottest: self.hottest, ..self.setup(workers, per_worker)? };
        let setting = setup.setting()?;
        let load = imbalance(&setting.plan(&setting.skew())?, &setting);
        println!(
            "\n{workers} expert workers, {per_worker} sequences for each, hottest share {:.2} (the busiest worker has {load:.2} of the mean load):\n",
            self.hottest
        );
        println!(
            "| scheduler | tokens/s | of `sync` | devices alone, tokens/s | of `sync` | of devices alone | rows per unit | alone | ITL p50 / p99 ms | {HOST}"
        );
        println!("{}", rule(9 + HOST_COLUMNS));
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
const HOST: &str = "host us per step, experts / attention | host of device time | machine: ranks, experts, gateway, clients / others | MB/s | passes | keeps up |";
const HOST_COLUMNS: usize = 6;

fn rule(columns: usize) -> String {
    format!("|{}", " --- |".repeat(columns))
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
    let others = b.others.map_or("?".into(), |o| format!("{:.0}", o * 100.0));
    format!(
        "{:.0} / {:.0} | {:.1}% | {ranks:.0} + {experts:.0} + {gateway:.0} + {clients:.0} / {others}% | {:.1} | {:.0} | {} |",
        b.hosts.host_micros(),
        b.ranks.host_micros(),
        b.per_step() * 100.0,
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
            "rows_per_step": r.rows_per_step(), "host_us_per_step": r.host_micros(),
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
        "host_of_device_time": b.per_step(), "keeps_up": cell.keeps_up(), "seconds": b.seconds,
        "machine": {
            "ours": b.load, "others": b.others, "ranks": b.shares[0], "experts": b.shares[1], "gateway": b.shares[2],
            "clients": b.shares[3],
        },
        "loopback_bytes_per_s": b.loopback, "trouble": b.trouble, "credit_stalls": b.stalls,
    })
}
