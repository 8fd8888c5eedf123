//! Who can stand in for whom: workers that hold the same unit.

use crate::ids::WorkerId;
use std::collections::BTreeMap;

/// Sets of workers, as bits by their numbers.
type Bits = Vec<u64>;

/// For each worker that shares a unit with others: all with whom it shares any, itself among them.
#[derive(Clone, Debug, Default)]
pub(super) struct Siblings(BTreeMap<WorkerId, Bits>);

impl Siblings {
    /// Of the holders of each unit.
    pub fn of<'a>(units: impl Iterator<Item = &'a [super::Holder]>) -> Self {
        let (mut all, mut bits) = (BTreeMap::<WorkerId, Bits>::new(), Bits::new());
        for holders in units.filter(|h| h.len() > 1) {
            bits.fill(0);
            for h in holders {
                let (word, bit) = (h.worker.0 as usize / 64, h.worker.0 % 64);
                bits.resize(bits.len().max(word + 1), 0);
                bits[word] |= 1 << bit;
            }
            for h in holders {
                let known = all.entry(h.worker).or_default();
                known.resize(known.len().max(bits.len()), 0);
                known.iter_mut().zip(&bits).for_each(|(to, from)| *to |= from);
            }
        }
        Self(all)
    }

    /// The siblings of a worker.
    pub fn iter(&self, worker: WorkerId) -> impl Iterator<Item = WorkerId> + '_ {
        let words = self.0.get(&worker).map_or(&[][..], Vec::as_slice);
        let numbers = words.iter().enumerate().flat_map(|(i, word)| {
            (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| i as u32 * 64 + bit)
        });
        numbers.map(WorkerId).filter(move |w| *w != worker)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Holder;
    use super::*;

    #[test]
    fn who_shares_a_unit_is_a_sibling() {
        let unit = |workers: &[u32]| -> Vec<Holder> {
            workers.iter().map(|w| Holder::new(WorkerId(*w), 1.0)).collect()
        };
        let units = [unit(&[1, 2]), unit(&[5]), unit(&[200, 2]), unit(&[3, 4, 1])];
        let siblings = Siblings::of(units.iter().map(Vec::as_slice));
        let of = |w| siblings.iter(WorkerId(w)).map(|w| w.0).collect::<Vec<_>>();
        assert_eq!(of(1), [2, 3, 4]);
        assert_eq!(of(2), [1, 200]);
        assert_eq!(of(200), [2]);
        assert_eq!((of(5), of(9)), (vec![], vec![]));
    }
}
