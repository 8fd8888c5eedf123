//! The median of the last few values.

use crate::ids::Nanos;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Median<const KEPT: usize> {
    values: [Nanos; KEPT],
    len: usize,
    next: usize,
    median: Nanos,
}

impl<const KEPT: usize> Median<KEPT> {
    pub const fn new() -> Self {
        Self { values: [0; KEPT], len: 0, next: 0, median: 0 }
    }

    pub fn push(&mut self, v: Nanos) {
        self.values[self.next] = v;
        self.next = (self.next + 1) % KEPT;
        self.len = (self.len + 1).min(KEPT);
        let mut all = self.values;
        self.median = *all[..self.len].select_nth_unstable(self.len / 2).1;
    }

    /// 0 when there is none.
    pub const fn value(&self) -> Nanos {
        self.median
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_last_fifteen() {
        let mut m = Median::<15>::new();
        assert_eq!(m.value(), 0);
        for (v, due) in [(9, 9), (1, 9), (5, 5)] {
            m.push(v);
            assert_eq!(m.value(), due);
        }
        (0..100).for_each(|v| m.push(v));
        assert_eq!(m.value(), 92);
    }
}
