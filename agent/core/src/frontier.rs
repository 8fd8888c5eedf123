//! What an expert worker knows of the ranks' frontiers.
//!
//! A mark counts once the data frames sent before it have arrived, so it cannot overtake its tokens. The frontier is
//! a hint for batching, never for correctness: a rank that is unknown, idle, silent for three cycles, or waiting for
//! this worker's credit counts as infinitely far, so no rank is a barrier.

use crate::frame::Mark;
use crate::ids::{IDLE, Nanos, Progress};

/// Marks of a class that wait for their tokens: of more, the oldest say nothing worth keeping.
const MOST_PENDING: usize = 256;
/// Cycles without an advance after which a rank is no longer waited for.
const SILENT_CYCLES: u64 = 3;

#[derive(Clone, Debug, Default)]
struct ClassView {
    applied: Option<Mark>,
    pending: Vec<Mark>,
    advanced: Nanos,
}

impl ClassView {
    fn settle(&mut self, seen: u64, now: Nanos) {
        let best = self.pending.iter().filter(|m| m.frames <= seen).max_by_key(|m| m.order).copied();
        let Some(best) = best else { return };
        self.pending.retain(|m| m.order > best.order);
        if self.applied.is_none_or(|a| a.progress != best.progress || a.blocked != best.blocked) {
            self.advanced = now;
        }
        self.applied = Some(best);
    }
}

/// The marks of all ranks, by peer and class.
#[derive(Clone, Debug)]
pub struct Frontier {
    classes: usize,
    views: Vec<ClassView>,
    least_cycle: Nanos,
}

impl Frontier {
    /// Of no rank yet. `cycle` is taken for the ranks' until they say theirs.
    pub fn new(classes: u8, cycle: Nanos) -> Self {
        Self { classes: classes as usize, views: vec![], least_cycle: cycle }
    }

    /// A peer's connection is new or gone: it counts as infinitely far until it says otherwise.
    pub fn forget(&mut self, peer: usize) {
        let end = (peer + 1) * self.classes;
        self.views.resize(self.views.len().max(end), ClassView::default());
        self.views[peer * self.classes..end].fill(ClassView::default());
    }

    /// A mark arrived; `seen` data frames of its class have.
    pub fn hear(&mut self, peer: usize, mark: Mark, seen: u64, now: Nanos) {
        let Some(v) = self.views.get_mut(peer * self.classes + mark.class.0 as usize) else { return };
        if v.applied.is_none_or(|a| mark.order > a.order) {
            v.pending.push(mark);
            v.settle(seen, now);
            if v.pending.len() > MOST_PENDING {
                let oldest = v.pending.iter().map(|m| m.order).min();
                v.pending.retain(|m| Some(m.order) != oldest);
            }
        }
    }

    /// Data frames of a class arrived.
    pub fn arrived(&mut self, peer: usize, class: u8, seen: u64, now: Nanos) {
        if let Some(v) = self.views.get_mut(peer * self.classes + class as usize)
            && !v.pending.is_empty()
        {
            v.settle(seen, now);
        }
    }

    /// The longest cycle of any rank.
    pub fn cycle(&self) -> Nanos {
        let said = self.views.iter().filter_map(|v| v.applied.map(|m| m.cycle)).max().unwrap_or(0);
        if said == 0 { self.least_cycle } else { said }
    }

    fn of_class(&self, class: u8) -> impl Iterator<Item = &ClassView> {
        self.views.iter().skip(class as usize).step_by(self.classes)
    }

    /// Per class: below it nothing that is waited for can come any more; and when that will next change by silence.
    pub fn floor(&self, class: u8, now: Nanos, cycle: Nanos) -> (Progress, Option<Nanos>) {
        let (mut floor, mut wake) = (IDLE, None::<Nanos>);
        for v in self.of_class(class) {
            let Some(m) = v.applied.filter(|m| !m.blocked && m.progress != IDLE) else { continue };
            let silent = v.advanced + SILENT_CYCLES * cycle;
            if now < silent {
                floor = floor.min(m.progress);
                wake = Some(wake.map_or(silent, |w| w.min(silent)));
            }
        }
        (floor, wake)
    }

    /// Tokens of the ranks whose batch at `p` may still come.
    pub fn late_tokens(&self, class: u8, p: Progress, now: Nanos, cycle: Nanos) -> u32 {
        self.of_class(class)
            .filter(|v| now < v.advanced + SILENT_CYCLES * cycle)
            .filter_map(|v| v.applied.filter(|m| !m.blocked && m.progress <= p))
            .fold(0, |sum, m| m.tokens.saturating_add(sum))
    }

    /// Whether a token of this progress comes below what its rank has published (legal, but counted).
    pub fn below(&self, peer: usize, class: u8, p: Progress) -> bool {
        self.views
            .get(peer * self.classes + class as usize)
            .and_then(|v| v.applied)
            .is_some_and(|m| !m.blocked && m.progress != IDLE && p < m.progress)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Class;

    fn mark(order: u64, progress: Progress, frames: u64) -> Mark {
        Mark { class: Class(0), order, progress, frames, tokens: 4, blocked: false, cycle: 100 }
    }

    #[test]
    fn a_mark_waits_for_its_tokens() {
        let mut f = Frontier::new(1, 1_000);
        f.forget(0);
        assert_eq!(f.floor(0, 0, 100).0, IDLE, "unknown counts as infinitely far");
        f.hear(0, mark(0, 3, 0), 0, 0);
        f.hear(0, mark(2, 5, 2), 1, 10);
        f.hear(0, mark(1, 4, 1), 1, 10);
        assert_eq!(f.floor(0, 10, 100).0, 4);
        assert!(f.below(0, 0, 3) && !f.below(0, 0, 4));
        f.arrived(0, 0, 2, 20);
        assert_eq!(f.floor(0, 20, 100).0, 5);
        f.hear(0, mark(1, 1, 0), 2, 30);
        assert_eq!(f.floor(0, 30, 100).0, 5, "an older mark says nothing");
        assert_eq!((f.cycle(), f.late_tokens(0, 5, 30, 100), f.late_tokens(0, 4, 30, 100)), (100, 4, 0));
    }

    #[test]
    fn marks_that_wait_for_ever_are_few() {
        let mut f = Frontier::new(1, 1_000);
        f.forget(0);
        for order in 0..1_000 {
            f.hear(0, mark(order, order, 1), 0, 0);
        }
        assert_eq!((f.views[0].pending.len(), f.floor(0, 0, 100).0), (MOST_PENDING, IDLE));
        f.arrived(0, 0, 1, 0);
        assert_eq!(f.floor(0, 0, 100).0, 999, "the newest counts");
    }

    #[test]
    fn a_new_connection_forgets_that_peer_in_all_classes_and_no_other() {
        let mut f = Frontier::new(2, 1_000);
        (0..3).for_each(|peer| f.forget(peer));
        let at =
            |order, class, progress, frames| Mark { class: Class(class), ..mark(order, progress, frames) };
        for (peer, class) in [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)] {
            f.hear(peer, at(0, class, 10 * peer as u64 + u64::from(class), 0), 0, 0);
        }
        let known = |f: &Frontier| [0, 1].map(|c| (f.floor(c, 0, 100).0, f.late_tokens(c, 99, 0, 100)));
        assert_eq!(known(&f), [(0, 12), (1, 12)]);
        f.forget(1);
        assert_eq!(known(&f), [(0, 8), (1, 8)]);
        f.forget(0);
        assert_eq!(known(&f), [(20, 4), (21, 4)]);
        assert!(f.below(2, 1, 20) && !f.below(2, 1, 21) && !f.below(2, 0, 20) && !f.below(1, 1, 0));
        f.hear(2, at(1, 1, 31, 1), 0, 0);
        f.arrived(2, 0, 1, 0);
        assert_eq!(known(&f)[1].0, 21, "the frame is another class's");
        f.arrived(2, 1, 1, 0);
        assert_eq!(known(&f), [(20, 4), (31, 4)]);
    }

    #[test]
    fn nobody_waits_for_the_silent_the_idle_and_the_blocked() {
        let mut f = Frontier::new(1, 1_000);
        f.forget(1);
        f.hear(1, mark(0, 3, 0), 0, 0);
        assert_eq!(f.floor(0, 299, 100), (3, Some(300)));
        assert_eq!(f.floor(0, 300, 100), (IDLE, None));
        assert_eq!([299, 300].map(|now| f.late_tokens(0, 3, now, 100)), [4, 0]);
        f.hear(1, Mark { blocked: true, ..mark(1, 3, 0) }, 0, 400);
        assert_eq!(f.floor(0, 400, 100).0, IDLE);
        f.hear(1, mark(2, 4, 0), 0, 500);
        assert_eq!(f.floor(0, 500, 100).0, 4);
        f.hear(1, mark(3, IDLE, 0), 0, 510);
        assert_eq!(f.floor(0, 510, 100).0, IDLE);
        assert!(!f.below(1, 0, 2));
    }
}
