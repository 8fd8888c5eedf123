//! First layer first.

use super::{Choice, Scheduler, Take, View};

#[derive(Debug)]
pub(super) struct Flfs;

impl Scheduler for Flfs {
    fn choose(&mut self, view: &View<'_>) -> Choice {
        let attention = view.attention().map(|q| q.block).min();
        let experts = view.experts().map(|q| q.block).min();
        match (attention, experts) {
            (None, None) => Choice::Sleep(None),
            (Some(a), e) if e.is_none_or(|e| a <= e) => {
                Choice::Attention { block: a, classes: view.all_classes() }
            }
            (_, Some(block)) => {
                let take = match view.largest(block) {
                    Take::Unit(_) => first_unit(view, block),
                    all => all,
                };
                Choice::Experts { block, take }
            }
            (Some(block), None) => Choice::Attention { block, classes: view.all_classes() },
        }
    }
}

fn first_unit(view: &View<'_>, block: u16) -> Take {
    let Some(host) = view.host else { return Take::All };
    let units = (0..view.classes).flat_map(|c| host.queues.units(block, c).iter().copied());
    units.min().map_or(Take::All, Take::Unit)
}
