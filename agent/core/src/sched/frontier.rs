//! `frontier`: complete batches first, least progress first; an incomplete one only if at most a fifth of its step
//! would have to be paid again.
//!
//! Progress is comparable within a class. Between classes (waves, prefill) the one whose candidate has waited longest
//! goes first, so none of them starves another.

use super::{Choice, Scheduler, Take, View};
use crate::config::MAX_CLASSES;
use crate::ids::{Nanos, Progress};

/// An incomplete batch runs if this part of its step need not be paid again.
pub(super) const USEFUL: f64 = 0.8;

#[derive(Clone, Copy, Debug)]
struct Candidate {
    class: u8,
    progress: Progress,
    /// Attention before expert.
    experts: bool,
    block: u16,
    since: Nanos,
}

impl Candidate {
    fn before(&self, other: &Self) -> bool {
        let key = |c: &Self| (c.progress, c.experts, c.block);
        key(self) < key(other)
    }
}

#[derive(Debug)]
pub(super) struct FrontierFirst;

/// The first of each class by progress, then the one that has waited longest.
#[derive(Default)]
struct Best {
    of_class: [Option<Candidate>; MAX_CLASSES],
}

impl Best {
    fn offer(&mut self, c: Candidate) {
        let best = &mut self.of_class[c.class as usize];
        if best.is_none_or(|b| c.before(&b)) {
            *best = Some(c);
        }
    }

    fn take(self) -> Option<Candidate> {
        self.of_class.into_iter().flatten().min_by_key(|c| (c.since, c.class))
    }
}

impl Scheduler for FrontierFirst {
    fn choose(&mut self, view: &View<'_>) -> Choice {
        let (mut complete, mut useful) = (Best::default(), Best::default());
        for q in view.attention() {
            let c = Candidate {
                class: q.class,
                progress: q.progress,
                experts: false,
                block: q.block,
                since: q.since,
            };
            if view.attention_complete(q) {
                complete.offer(c);
            } else if view.attention_useful(q) >= USEFUL {
                useful.offer(c);
            }
        }
        for q in view.experts() {
            let c = Candidate {
                class: q.class,
                progress: q.progress,
                experts: true,
                block: q.block,
                since: q.since,
            };
            if view.experts_complete(q.class, q.progress) {
                complete.offer(c);
            }
        }
        if let Some(c) = complete.take() {
            return lead(view, &c);
        }
        for q in view.experts() {
            let host = view.host.map(|h| &h.queues);
            let units = host.map_or(&[][..], |h| h.units(q.block, q.class));
            if units.iter().any(|u| view.unit_useful(*u, q.class) >= USEFUL) {
                let (class, progress, block, since) = (q.class, q.progress, q.block, q.since);
                useful.offer(Candidate { class, progress, experts: true, block, since });
            }
        }
        match useful.take() {
            Some(c) => lead(view, &c),
            None => Choice::Sleep(view.silence()),
        }
    }
}

fn lead(view: &View<'_>, c: &Candidate) -> Choice {
    if c.experts {
        return Choice::Experts { block: c.block, take: Take::Runnable };
    }
    let mut classes = 0;
    for q in view.attention().filter(|q| q.block == c.block) {
        if view.attention_complete(q) || view.attention_useful(q) >= USEFUL {
            classes |= 1 << q.class;
        }
    }
    Choice::Attention { block: c.block, classes }
}

impl View<'_> {
    /// Whether the frontier lets one unit's μ-queue run.
    pub(crate) fn runnable(&self, unit: u32, class: u8) -> bool {
        let Some(host) = self.host else { return false };
        self.experts_complete(class, host.queues.queue(unit, class).least)
            || self.unit_useful(unit, class) >= USEFUL
    }
}
