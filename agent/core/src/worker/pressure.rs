//! What a worker reports of itself.

use super::Worker;
use crate::ids::Nanos;
use crate::pressure::{Pressure, QueuePressure};

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
            let serving = h.serving().count() as u32;
            p.slots = (serving, h.held.iter().flatten().count() as u32 - serving);
        }
        p
    }
}
