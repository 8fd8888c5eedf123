//! Most tokens first.

use super::{Choice, Scheduler, View};

#[derive(Debug)]
pub(super) struct Mtfs;

impl Scheduler for Mtfs {
    fn choose(&mut self, view: &View<'_>) -> Choice {
        let mut best: Option<(u32, Choice)> = None;
        let mut offer = |rows: u32, choice: Choice| {
            if best.is_none_or(|(n, _)| rows > n) {
                best = Some((rows, choice));
            }
        };
        for q in view.attention() {
            offer(q.rows, Choice::Attention { block: q.block, classes: view.all_classes() });
        }
        for q in view.experts() {
            offer(q.largest, Choice::Experts { block: q.block, take: super::Take::All });
        }
        match best {
            Some((_, Choice::Experts { block, .. })) => Choice::Experts { block, take: view.largest(block) },
            Some((_, choice)) => choice,
            None => Choice::Sleep(None),
        }
    }
}
