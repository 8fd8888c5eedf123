//! `plan`: a placement for the workers of a table.

use std::sync::Arc;

use sluice_planner::{Replicas, Request, Worker};

use super::error::NodeError;
use super::open_model;
use crate::cli::PlanOptions;
use crate::table::{Table, parse};

/// The table with its experts placed, all equally heavy.
///
/// # Errors
/// The model, the table, or that the experts do not fit.
pub fn plan_table(options: &PlanOptions) -> Result<Table, NodeError> {
    let wrong = |why: String| NodeError::Table(format!("the table {}: {why}", options.workers.display()));
    let text = std::fs::read_to_string(&options.workers).map_err(|e| wrong(e.to_string()))?;
    let table = parse(&text).map_err(|e| wrong(e.to_string()))?;
    let spec = open_model(&options.model)?.spec;
    let moe: Vec<bool> = spec.blocks.iter().map(|b| b.feed_forward.moe().is_some()).collect();
    let experts = spec.blocks.iter().find_map(|b| b.feed_forward.moe()).map_or(0, |m| m.experts as u16);
    let slots = options.slots.unwrap_or(u32::MAX);
    let hosts = table.workers.iter().filter(|w| w.role.is_host()).map(|w| Worker { id: w.number, slots });
    let blocks = moe.len() as u16;
    let mut request = Request::new(moe, experts, hosts.collect());
    (request.segments, request.slices) = (options.segments, options.slices);
    request.replicas = Replicas::exactly(options.replicas);
    let plan = sluice_planner::plan(&request).map_err(crate::runtime::StartError::from)?;
    let generation = table.slices.iter().map(|s| s.generation).max().unwrap_or(0) + 1;
    let slices = plan.placement(blocks, blocks, generation).into_iter().map(Arc::new).collect();
    Ok(Table {
        generation: table.generation + 1,
        segments: Some(options.segments),
        workers: table.workers,
        slices,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::ModelSource;
    use crate::table::render;

    #[test]
    fn what_is_planned_anew_may_follow_what_is_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let workers = dir.path().join("workers.yaml");
        let options = PlanOptions {
            model: ModelSource::Bundled,
            workers: workers.clone(),
            replicas: 1,
            slices: 2,
            segments: 4,
            slots: None,
        };
        let listed = "workers:\n- {number: 3, name: e0, role: experts, address: \"h:1\"}\n";
        std::fs::write(&workers, listed).unwrap();
        let first = plan_table(&options).unwrap();
        assert_eq!((first.generation, first.segments, first.slices[0].generation), (1, Some(4), 1));
        assert_eq!(first.finest(4), 2);
        std::fs::write(&workers, render(&first).replace("h:1", "h:2")).unwrap();
        let second = plan_table(&PlanOptions { slices: 4, ..options }).unwrap();
        assert_eq!((second.generation, second.slices[0].generation), (2, 2));
        assert_eq!(first.check(&second), Ok(()));
    }
}
