//! The median of the last few values.

use crate::ids::Nanos;

const KEPT: usize = 15;

#[derive(Clone, Debug)]
pub(crate) struct Median {
    values: Vec<Nanos>,
    next: usize,
}

impl Median {
    pub fn new() -> Self {
        Self { values: Vec::with_capacity(KEPT), next: 0 }
    }

    pub fn push(&mut self, v: Nanos) {
        if self.values.len() < KEPT {
            self.values.push(v);
        } else {
            self.values[self.next] = v;
            self.next = (self.next + 1) % KEPT;
        }
    }

    pub fn value(&self) -> Nanos {
        let mut v = self.values.clone();
        if v.is_empty() {
            return 0;
        }
        let mid = v.len() / 2;
        *v.select_nth_unstable(mid).1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_last_fifteen() {
        let mut m = Median::new();
        assert_eq!(m.value(), 0);
        (0..100).for_each(|v| m.push(v));
        assert_eq!(m.value(), 92);
    }
}
