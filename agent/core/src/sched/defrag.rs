//! The paper's Algorithm 1: run the queue that, with what will follow it into later blocks, promises the largest
//! batches.
//!
//! score(b, e) = n(b, e) + sum for h = 1..H-1 of δ^h · (tokens waiting here for block (b+h) mod L) / E, with E the
//! experts per block held here. Source: USC-NSL/DisagMoE, branch refine_plots, csrc/engine/scheduler.cpp.

use super::{Choice, Scheduler, Take, View};

/// H.
const LOOK_AHEAD: usize = 8;
/// δ.
const DECAY: f64 = 0.8;

#[derive(Debug, Default)]
pub(super) struct Defrag {
    waiting: Vec<f64>,
}

impl Defrag {
    fn ahead(&self, block: usize) -> f64 {
        let (n, mut weight, mut sum) = (self.waiting.len(), 1.0, 0.0);
        for h in 1..LOOK_AHEAD {
            weight *= DECAY;
            sum += weight * self.waiting[(block + h) % n];
        }
        sum
    }
}

impl Scheduler for Defrag {
    fn choose(&mut self, view: &View<'_>) -> Choice {
        // Block L, the head, comes before block 0 of the next pass.
        self.waiting.clear();
        self.waiting.resize(view.blocks as usize + 1, 0.0);
        for q in view.attention() {
            self.waiting[q.block as usize] += f64::from(q.rows);
        }
        for q in view.experts() {
            self.waiting[q.block as usize] += f64::from(q.rows);
        }
        let mut best: Option<(f64, Choice)> = None;
        let mut offer = |score: f64, choice: Choice| {
            if best.is_none_or(|(s, _)| score > s) {
                best = Some((score, choice));
            }
        };
        for q in view.attention() {
            let score = f64::from(q.rows) + self.ahead(q.block as usize);
            offer(score, Choice::Attention { block: q.block, classes: view.all_classes() });
        }
        for q in view.experts() {
            let held = view.host.map_or(1, |h| h.units_of(q.block).max(1));
            let score = f64::from(q.largest) + self.ahead(q.block as usize) / f64::from(held);
            offer(score, Choice::Experts { block: q.block, take: Take::All });
        }
        match best {
            Some((_, Choice::Experts { block, .. })) => Choice::Experts { block, take: view.largest(block) },
            Some((_, choice)) => choice,
            None => Choice::Sleep(None),
        }
    }
}
