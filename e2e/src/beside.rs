//! The scheduler table twice: in the simulator, and in the real run time on devices slowed until the host keeps up.

use crate::engine::{self, Real};
use sluice_core::config::Policy;
use sluice_sim::fleet::Measured;
use sluice_sim::table::Table;

/// The host keeps up where it can make no device longer by more than this.
pub const KEEPS_UP: f64 = 0.10;
/// How far apart simulator and reality may be.
pub const TOLERANCE: f64 = 0.15;

/// What to run.
#[derive(Clone, Debug)]
pub struct Beside {
    /// The settings, one wave, every device both a rank and a host.
    pub table: Table,
    /// How many times slower the devices are.
    pub slow_down: f64,
}

/// One row.
struct Row {
    name: String,
    ratio: f64,
    keeps_up: Option<bool>,
}

impl Beside {
    /// Prints it, a line per scheduler, and a summary.
    ///
    /// # Errors
    /// A row that could not run.
    pub fn print(&self) -> Result<(), String> {
        println!(
            "| hottest | n | steps | placement | scheduler | slowed by | sim tokens/s | real tokens/s | real / sim | of `sync`, sim / real | rows per unit, sim / real | ITL p50 ms, sim / real | host CPU | host per step | keeps up |"
        );
        println!(
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
        );
        let mut rows = vec![];
        let t = &self.table;
        for &share in &t.shares {
            for &tokens in &t.tokens {
                for &jitter in &t.jitters {
                    for &placement in &t.placements {
                        self.cell(tokens, share, jitter, placement, &mut rows)?;
                    }
                }
            }
        }
        summarise(&rows);
        Ok(())
    }

    fn cell(
        &self,
        tokens: u32,
        share: f64,
        jitter: f64,
        placement: (u8, u32),
        rows: &mut Vec<Row>,
    ) -> Result<(), String> {
        let slow_down = self.slow_down;
        let mut sync: Option<(f64, f64)> = None;
        let mut policies = self.table.policies.clone();
        // The yardstick first.
        policies.sort_by_key(|p| *p != Policy::Sync);
        for policy in policies {
            let setting = self.table.setting(tokens, share, jitter, placement, policy)?;
            let sim = Table::measure(&setting)?;
            let (warm, passes) = Table::passes(tokens);
            let real = engine::run(&setting, slow_down, warm, passes)?;
            if policy == Policy::Sync {
                sync = Some((sim.throughput, real.throughput));
            }
            let steps = if jitter > 0.0 { format!("vary {:.0}%", jitter * 100.0) } else { "exact".into() };
            let name = format!(
                "{share:.2} | {tokens} | {steps} | {} x {} | `{}`",
                placement.0,
                placement.1,
                policy.name()
            );
            rows.push(line(name, slow_down, &sim, &real, sync));
        }
        Ok(())
    }
}

fn line(name: String, slow_down: f64, sim: &Measured, real: &Real, sync: Option<(f64, f64)>) -> Row {
    let ratio = real.throughput / sim.throughput;
    let keeps_up = real.host.map(|h| h.per_step <= KEEPS_UP);
    let percent = |x: Option<f64>| x.map_or("?".into(), |x| format!("{:.1}%", x * 100.0));
    let of_sync =
        sync.map_or("?".into(), |(s, r)| format!("{:.2} / {:.2}", sim.throughput / s, real.throughput / r));
    println!(
        "| {name} | {slow_down} | {:.0} | {:.0} | {ratio:.2} | {of_sync} | {:.0} / {:.0} | {:.2} / {:.2} | {} | {} | {} |",
        sim.throughput,
        real.throughput,
        sim.rows_per_unit,
        real.rows_per_unit,
        sim.itl_p50 * 1e3,
        real.itl_p50 * 1e3,
        percent(real.host.map(|h| h.load)),
        percent(real.host.map(|h| h.per_step)),
        keeps_up.map_or("?", |k| if k { "yes" } else { "no" }),
    );
    Row { name, ratio, keeps_up }
}

fn summarise(rows: &[Row]) {
    let kept: Vec<&Row> = rows.iter().filter(|r| r.keeps_up == Some(true)).collect();
    let low = kept.iter().map(|r| r.ratio).fold(f64::INFINITY, f64::min);
    let high = kept.iter().map(|r| r.ratio).fold(0.0, f64::max);
    println!("\nThe host keeps up in {} of {} rows.", kept.len(), rows.len());
    if !kept.is_empty() {
        println!("Real / sim there: {low:.2} to {high:.2}.");
    }
    for row in kept.iter().filter(|r| (r.ratio - 1.0).abs() > TOLERANCE) {
        println!(
            "Apart by more than {:.0}%: {} ({:.2}).",
            TOLERANCE * 100.0,
            row.name.replace(" | ", ", "),
            row.ratio
        );
    }
}
