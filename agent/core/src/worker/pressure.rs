//! What a worker reports of itself.

use super::Worker;
use crate::ids::{Nanos, Unit};
use crate::placement::PlacementSlice;
use crate::pressure::{Pressure, QueuePressure, TableReport};
use std::sync::Arc;

/// The slices of a placement, and what is missing of them, both block by block.
fn tables<'a>(
    by_block: impl Iterator<Item = Option<&'a Arc<PlacementSlice>>>,
    missing: impl IntoIterator<Item = Vec<Unit>>,
) -> Vec<TableReport> {
    let mut all: Vec<TableReport> = vec![];
    for (block, (slice, missing)) in (0..).zip(by_block.zip(missing)) {
        let Some(slice) = slice else { continue };
        match all.last_mut().filter(|last| last.blocks.end == block && last.generation == slice.generation) {
            Some(last) if slice.blocks.contains(&last.blocks.start) => {
                last.blocks.end = block + 1;
                last.missing.extend(missing);
            }
            _ => all.push(TableReport { blocks: block..block + 1, generation: slice.generation, missing }),
        }
    }
    all
}

impl Worker {
    /// What this worker would report now.
    pub fn pressure(&self, now: Nanos) -> Pressure {
        let mut p = Pressure { step: std::array::from_fn(|i| self.times[i].value()), ..Pressure::default() };
        let age = |since: Nanos| now.saturating_sub(since);
        if let Some(r) = &self.rank {
            p.attention = r
                .queues
                .active()
                .map(|q| QueuePressure { block: q.block, rows: q.rows, age: age(q.since) })
                .collect();
            p.kv_pages = (r.kv.used_pages(), r.kv.total_pages());
            p.sequences = r.load();
            p.loads.clone_from(&r.loads);
            p.stalled = r.dests.iter().map(|d| d.stalled() as u32).sum();
            p.orphans = r.orphans() as u32;
            p.cycle = r.cycle.value();
            p.slow = r.routing.scales().collect();
            let s = r.kv.stats();
            p.prefix = (s.cached_tokens, s.admitted_tokens);
        }
        if let Some(h) = &self.host {
            for q in h.queues.active() {
                for &u in h.queues.units(q.block, q.class) {
                    if let Some(held) = &h.held[u as usize] {
                        let w = h.queues.queue(u, q.class);
                        let rows = w.items.len() as u32;
                        p.experts
                            .push((held.unit, QueuePressure { block: q.block, rows, age: age(w.since) }));
                    }
                }
            }
            p.slots = h.slot_counts();
        }
        p.tables = match (&self.host, &self.rank) {
            (Some(h), _) => tables(h.placement.iter().map(Option::as_ref), h.missing()),
            (None, Some(r)) => tables(r.routing.own_tables(), std::iter::repeat_with(Vec::new)),
            (None, None) => vec![],
        };
        p
    }
}
