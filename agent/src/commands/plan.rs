//! `sluice-agent plan`.

use std::io::Write as _;

use sluice_agent::cli::PlanOptions;
use sluice_agent::node::plan_table;
use sluice_agent::table::render;

/// Prints the table.
pub fn plan(options: &PlanOptions) -> anyhow::Result<()> {
    let table = plan_table(options)?;
    std::io::stdout().lock().write_all(render(&table).as_bytes())?;
    Ok(())
}
