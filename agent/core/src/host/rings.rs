//! Landing rings: each rank puts the inputs of its tokens into rows that nobody else puts into, so what still arrives
//! from a rank that is given up overwrites nothing of others.

use crate::config::Shape;
use crate::frame::TokenBatch;
use crate::plant::{self, Plant};

/// The landing ring of one rank.
#[derive(Clone, Debug)]
pub(super) struct Ring {
    pub base: u32,
    /// Items that still need each row.
    pub uses: Vec<u16>,
    /// Its rank can be reached.
    is_open: bool,
}

/// The landing rings of a host, by peer.
#[derive(Clone, Debug)]
pub(super) struct Rings {
    rows: u32,
    rings: Vec<Option<Ring>>,
    /// Where rings that nobody has begin.
    free: Vec<u32>,
    /// Items that ask anything of one row, at most: each of its experts in as many slices as there can be.
    most_uses: u16,
    /// Per row of a ring, while a batch is looked at: it is named, and by how many items.
    named: Vec<u16>,
}

impl Rings {
    /// Rings of `rows` rows each, as many as `landing` rows hold.
    pub fn new(rows: u32, landing: u32, shape: &Shape) -> Self {
        let count = landing.checked_div(rows).unwrap_or(0);
        Self {
            rows,
            rings: vec![],
            free: (0..count).rev().map(|i| i * rows).collect(),
            most_uses: u16::from(shape.top_k) * u16::from(shape.segments),
            named: vec![0; rows as usize],
        }
    }

    /// Whether a batch puts into rows that nothing here needs any more, each once, and asks of none more than there can
    /// be. Its rows are in the ring, and its items of its rows.
    pub fn may_use(&mut self, peer: usize, batch: &TokenBatch) -> bool {
        let Some(ring) = self.rings.get(peer).and_then(Option::as_ref) else { return false };
        let (named, most) = (&mut self.named, self.most_uses);
        let rows = || batch.rows.iter().map(|r| r.dst as usize);
        let is_free = |row: usize| ring.uses[row] == 0 || plant::is(Plant::RowReused);
        let fits = rows().all(|row| std::mem::replace(&mut named[row], 1) == 0 && is_free(row))
            && batch.items.iter().all(|i| {
                let uses = &mut named[batch.rows[i.row as usize].dst as usize];
                *uses += 1;
                *uses <= most + 1
            });
        rows().for_each(|row| named[row] = 0);
        fits
    }

    /// Peers that may have one.
    pub fn len(&self) -> usize {
        self.rings.len()
    }

    /// Rows of a peer's ring; 0 if it has none.
    pub fn size(&self, peer: usize) -> u32 {
        self.rings.get(peer).and_then(Option::as_ref).map_or(0, |r| r.uses.len() as u32)
    }

    /// A ring that was opened.
    pub fn of(&mut self, peer: usize) -> &mut Ring {
        self.rings[peer].as_mut().expect("a rank that sends has a ring")
    }

    /// A peer is met, which may have no ring.
    pub fn know(&mut self, peer: usize) {
        if self.rings.len() <= peer {
            self.rings.resize(peer + 1, None);
        }
    }

    /// A rank is met, again or for the first time. Gives the rows of its ring that are free: not those that the
    /// running step still reads. None if all rings are taken.
    pub fn open(&mut self, peer: usize) -> Option<Vec<u32>> {
        self.know(peer);
        let slot = &mut self.rings[peer];
        if slot.is_none() {
            let base = self.free.pop()?;
            *slot = Some(Ring { base, uses: vec![0; self.rows as usize], is_open: true });
        }
        let ring = slot.as_mut()?;
        ring.is_open = true;
        let free = |r: &u32| ring.uses[*r as usize] == 0 || plant::is(Plant::RowReused);
        Some((0..self.rows).filter(free).collect())
    }

    /// A rank is gone. `running` are the rows that the running step reads, once for each item.
    pub fn close(&mut self, peer: usize, running: Vec<u32>) {
        let Some(ring) = self.rings.get_mut(peer).and_then(Option::as_mut) else { return };
        ring.is_open = false;
        ring.uses.fill(0);
        for row in running {
            ring.uses[row as usize] += 1;
        }
        self.give_up(peer);
    }

    /// An item no longer needs its row. True if that is free now, and its rank wants to know.
    pub fn release(&mut self, peer: usize, row: u32) -> bool {
        let Some(ring) = self.rings.get_mut(peer).and_then(Option::as_mut) else { return false };
        let uses = &mut ring.uses[row as usize];
        *uses = uses.saturating_sub(1);
        let free = *uses == 0;
        if free && !ring.is_open {
            self.give_up(peer);
            return false;
        }
        free
    }

    /// The ring of a rank that is gone can be another's when no step reads it.
    fn give_up(&mut self, peer: usize) {
        if let Some(ring) = self.rings[peer].take_if(|r| !r.is_open && r.uses.iter().all(|u| *u == 0)) {
            self.free.push(ring.base);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> Shape {
        Shape { moe: vec![true], experts: 2, top_k: 1, segments: 1 }
    }

    #[test]
    fn a_ring_is_its_ranks_until_nothing_reads_it() {
        let mut r = Rings::new(2, 5, &shape());
        assert_eq!(r.open(1), Some(vec![0, 1]));
        assert_eq!(r.open(3), Some(vec![0, 1]));
        assert_eq!((r.of(1).base, r.of(3).base, r.size(1), r.size(2)), (0, 2, 2, 0));
        assert_eq!(r.open(4), None, "a slab of five rows has two rings of two");
        r.close(3, vec![]);
        assert_eq!(r.open(4), Some(vec![0, 1]));
        assert_eq!(r.of(4).base, 2);
    }

    #[test]
    fn rows_that_a_step_reads_are_not_lent_again() {
        let mut r = Rings::new(3, 3, &shape());
        assert!(r.open(0).is_some());
        r.of(0).uses.copy_from_slice(&[1, 2, 1]);
        assert!(r.release(0, 0), "an open ring's rank hears of each free row");
        r.close(0, vec![1, 1]);
        assert_eq!(r.open(1), None, "the step still reads a row of this ring");
        assert_eq!(r.open(0), Some(vec![0, 2]), "its rank is back before the step is over");
        assert!(!r.release(0, 1));
        assert!(r.release(0, 1));
        r.of(0).uses[0] = 1;
        r.close(0, vec![0]);
        assert!(!r.release(0, 0), "nobody is there to hear of it");
        assert_eq!(r.open(1), Some(vec![0, 1, 2]));
    }
}
