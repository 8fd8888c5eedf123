//! The cycle of a rank: median time between its attention steps, never below its largest step.

use crate::config::LEAST_CYCLE;
use crate::ids::Nanos;
use crate::median::Median;

const KEPT: usize = 33;
/// Gaps from which on their median means something. Until then the initial cycle stands.
const ENOUGH: usize = 8;

#[derive(Clone, Debug)]
pub(crate) struct Cycle {
    initial: Nanos,
    last_start: Option<Nanos>,
    gaps: Median<KEPT>,
    steps: Median<KEPT>,
    value: Nanos,
}

impl Cycle {
    pub fn new(initial: Nanos) -> Self {
        let initial = initial.max(LEAST_CYCLE);
        Self { initial, last_start: None, gaps: Median::new(), steps: Median::new(), value: initial }
    }

    pub fn started(&mut self, now: Nanos) {
        if let Some(last) = self.last_start.replace(now) {
            self.gaps.push(now.saturating_sub(last));
        }
    }

    pub fn finished(&mut self, now: Nanos) {
        let Some(start) = self.last_start else { return };
        self.steps.push(now.saturating_sub(start));
        self.value = if self.gaps.len() < ENOUGH {
            self.initial
        } else {
            self.gaps.value().max(self.steps.largest()).max(LEAST_CYCLE)
        };
    }

    pub fn value(&self) -> Nanos {
        self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::MICRO;

    #[test]
    fn the_median_gap_but_never_below_the_largest_step() {
        let mut c = Cycle::new(5_000_000);
        for i in 0..20u64 {
            c.started(i * 100_000);
            c.finished(i * 100_000 + if i == 15 { 250_000 } else { 60_000 });
            if i < 8 {
                assert_eq!(c.value(), 5_000_000);
            }
        }
        assert_eq!(c.value(), 250_000);
        for i in 20..60u64 {
            c.started(i * 100_000);
            c.finished(i * 100_000 + 60_000);
        }
        assert_eq!(c.value(), 100_000);
    }

    #[test]
    fn eight_gaps_are_enough_and_the_median_is_of_their_size() {
        let mut c = Cycle::new(0);
        assert_eq!(c.value(), LEAST_CYCLE);
        let mut now = 0;
        for gap in [0, 900, 100, 800, 200, 700, 300, 600] {
            now += gap * MICRO;
            c.started(now);
            c.finished(now);
        }
        assert_eq!((c.value(), LEAST_CYCLE), (50 * MICRO, 50 * MICRO), "seven gaps");
        c.started(now + 400 * MICRO);
        c.finished(now + 400 * MICRO);
        assert_eq!(c.value(), 600 * MICRO);
    }
}
