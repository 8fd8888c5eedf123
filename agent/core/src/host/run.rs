//! Making expert steps, and returning what they leave.

use super::{Host, Item, LOCAL};
use crate::counters::Counters;
use crate::frame::{Body, ReturnBatch, ReturnItem};
use crate::ids::{Nanos, Slice};
use crate::net::{Net, SELF};
use crate::rank::Rank;
use crate::step::{ExpertItem, ExpertStep, Step, UnitBatch};

/// What the running expert step was made of.
#[derive(Debug)]
pub(crate) struct RunningExperts {
    /// Per item, where its output row is.
    items: Vec<(Item, Slice, u32)>,
    /// Items per home.
    homes: Vec<usize>,
    slots: Vec<u32>,
    /// Homes that are gone since the step began.
    lost: Vec<usize>,
}

impl RunningExperts {
    pub fn uses(&self, slot: u32) -> bool {
        self.slots.contains(&slot)
    }

    /// A home is gone. Gives the landing rows that the step reads for it, once for each item.
    pub fn lose(&mut self, home: usize) -> Vec<u32> {
        if !self.lost.contains(&home) {
            self.lost.push(home);
        }
        self.items.iter().filter(|(i, ..)| i.home as usize == home).map(|(i, ..)| i.landing).collect()
    }
}

impl Host {
    /// An expert step over the given (unit, class) queues of a block, up to `budget` rows.
    pub fn step(&mut self, block: u16, queues: &[(u32, u8)], budget: u32, rank: Option<&Rank>) -> Step {
        let waiting: usize = queues.iter().map(|&(u, c)| self.queues.queue(u, c).items.len()).sum();
        let rows = waiting.min(budget as usize);
        let mut step =
            ExpertStep { block, units: Vec::with_capacity(queues.len()), items: Vec::with_capacity(rows) };
        let mut running = RunningExperts {
            items: Vec::with_capacity(rows),
            homes: vec![0; self.rings.len()],
            slots: Vec::with_capacity(queues.len()),
            lost: vec![],
        };
        let mut taken = std::mem::take(&mut self.taken);
        let (mut left, mut remote) = (budget, 0);
        let bank = self.bank;
        self.bank ^= 1;
        for &(unit, class) in queues {
            if left == 0 {
                break;
            }
            let Some(h) = &self.held[unit as usize] else { continue };
            let (u, slot) = (h.unit, h.slot);
            taken.clear();
            left -= self.queues.take(unit, class, left, &mut taken);
            let first = step.items.len() as u32;
            for item in taken.drain(..) {
                let dst = match rank.filter(|_| item.landing == LOCAL) {
                    // Its group may be in other use by now, or its choice asked under another slicing, which has
                    // that row too: nothing may be written there.
                    Some(r) if !r.pool.takes(item.back, u.slice) => continue,
                    Some(r) => r.return_row(item.back, u.slice),
                    None => {
                        remote += 1;
                        self.slab.output(bank, remote - 1)
                    }
                };
                step.items.push(ExpertItem { src: item.src, dst });
                running.homes[item.home as usize] += 1;
                running.items.push((item, u.slice, dst));
            }
            let end = step.items.len() as u32;
            if first == end {
                continue;
            }
            match step.units.last_mut().filter(|b| b.slot == slot) {
                Some(b) => b.items.end = end,
                None => {
                    step.units.push(UnitBatch { unit: u, slot, items: first..end });
                    running.slots.push(slot);
                }
            }
        }
        self.taken = taken;
        for class in 0..self.classes {
            self.queues.settle(block, class);
        }
        self.running = Some(running);
        Step::Experts(step)
    }

    /// The step is over: outputs go home, one batch per rank, with the landing rows they no longer need.
    pub fn ran(&mut self, now: Nanos, rank: Option<&mut Rank>, net: &mut Net, n: &mut Counters) {
        let Some(running) = self.running.take() else { return };
        let mut batches: Vec<Option<ReturnBatch>> = vec![None; running.homes.len()];
        let mut freed: Vec<(usize, Vec<u32>)> = running.lost.iter().map(|h| (*h, vec![])).collect();
        let mut rank = rank;
        for (item, slice, row) in running.items {
            let back = ReturnItem { back: item.back, slice };
            if item.home as usize == SELF {
                if let Some(r) = rank.as_deref_mut() {
                    r.returned(now, back, n);
                }
                continue;
            }
            let home = item.home as usize;
            let free = self.rings.release(home, item.landing);
            if let Some((_, rows)) = freed.iter_mut().find(|(h, _)| *h == home) {
                rows.extend(free.then_some(item.landing));
                continue;
            }
            let batch = batches[item.home as usize].get_or_insert_with(|| {
                let n = running.homes[item.home as usize];
                ReturnBatch {
                    rows: Vec::with_capacity(n),
                    items: Vec::with_capacity(n),
                    freed: Vec::with_capacity(n),
                }
            });
            batch.rows.push(row);
            batch.items.push(back);
            if free {
                batch.freed.push(item.landing);
            }
        }
        for (peer, batch) in batches.into_iter().enumerate() {
            if let Some(b) = batch {
                self.give_back(peer, b, net);
            }
        }
        for (peer, rows) in freed.into_iter().filter(|(_, rows)| !rows.is_empty()) {
            net.send(peer, Body::Credit(rows));
        }
    }

    #[cfg(not(feature = "plant"))]
    fn give_back(&mut self, peer: usize, batch: ReturnBatch, net: &mut Net) {
        net.send(peer, Body::Returns(batch));
    }

    #[cfg(feature = "plant")]
    fn give_back(&mut self, peer: usize, batch: ReturnBatch, net: &mut Net) {
        use crate::plant::{self, Plant};
        self.waiting.push((peer, batch));
        let waits = plant::is(Plant::ReturnWaits);
        for (peer, batch) in std::mem::take(&mut self.waiting) {
            let ring = self.rings.of(peer);
            let mut rows = ring.uses.iter().enumerate();
            if waits && rows.all(|(row, uses)| *uses > 0 || batch.freed.contains(&(row as u32))) {
                self.waiting.push((peer, batch));
            } else {
                net.send(peer, Body::Returns(batch));
            }
        }
    }
}
