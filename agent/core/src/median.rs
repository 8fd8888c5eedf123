//! The median of the last few values.

use crate::ids::Nanos;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Median<const KEPT: usize> {
    /// In the order in which they came, in a ring.
    values: [Nanos; KEPT],
    /// The same, sorted.
    sorted: [Nanos; KEPT],
    len: usize,
    next: usize,
}

impl<const KEPT: usize> Median<KEPT> {
    pub const fn new() -> Self {
        Self { values: [0; KEPT], sorted: [0; KEPT], len: 0, next: 0 }
    }

    pub fn push(&mut self, v: Nanos) {
        let gone = std::mem::replace(&mut self.values[self.next], v);
        self.next = (self.next + 1) % KEPT;
        let mut at = self.len;
        if self.len == KEPT {
            at = self.sorted.partition_point(|x| *x < gone);
        } else {
            self.len += 1;
        }
        // The place of what is gone moves to where the new one belongs.
        while at > 0 && self.sorted[at - 1] > v {
            self.sorted[at] = self.sorted[at - 1];
            at -= 1;
        }
        while at + 1 < self.len && self.sorted[at + 1] < v {
            self.sorted[at] = self.sorted[at + 1];
            at += 1;
        }
        self.sorted[at] = v;
    }

    /// Values that it is of.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// 0 when there is none.
    pub const fn largest(&self) -> Nanos {
        self.sorted[self.len.saturating_sub(1)]
    }

    /// 0 when there is none.
    pub const fn value(&self) -> Nanos {
        self.sorted[self.len / 2]
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

    #[test]
    fn it_is_that_of_the_values_sorted() {
        let (mut m, mut all, mut random) = (Median::<5>::new(), vec![], 7u64);
        for _ in 0..2_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let v = random >> 61;
            all.push(v);
            m.push(v);
            let mut last = all[all.len().saturating_sub(5)..].to_vec();
            last.sort_unstable();
            assert_eq!((m.value(), m.largest()), (last[last.len() / 2], last[last.len() - 1]));
        }
    }
}
