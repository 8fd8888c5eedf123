//! Slots: what the placement wants held here is loaded in the background; what it no longer wants is freed when its
//! queues are empty. A worker accepts a token by what its slots hold, not by its table.

use super::{Held, HeldState, Host};
use crate::event::Action;
use crate::ids::{Nanos, SECOND, Unit, WorkerId};
use crate::placement::PlacementSlice;
use std::collections::BTreeSet;
use std::sync::Arc;

/// What could not be loaded is tried again after so long: a volume may be late, a download not be over.
const LOAD_AGAIN: Nanos = 2 * SECOND;

impl Host {
    /// Takes a slice of the placement, if it is newer.
    pub fn place(&mut self, me: WorkerId, slice: &Arc<PlacementSlice>, out: &mut Vec<Action>) {
        let mut blocks = slice.blocks.clone();
        blocks.end = blocks.end.min(self.placement.len() as u16);
        blocks.start = blocks.start.min(blocks.end);
        let newer =
            |p: &Option<Arc<PlacementSlice>>| p.as_ref().is_none_or(|p| p.generation < slice.generation);
        let fresh: Vec<bool> = self.placement.iter().map(newer).collect();
        let is_fresh = |b: u16| blocks.contains(&b) && fresh[b as usize];
        let mine: BTreeSet<Unit> = slice.replicas.iter().filter(|r| r.worker == me).map(|r| r.unit).collect();
        for b in blocks.clone().filter(|b| is_fresh(*b)) {
            self.placement[b as usize] = Some(Arc::clone(slice));
        }
        for h in self.held.iter_mut().flatten().filter(|h| is_fresh(h.unit.block)) {
            h.state = match (h.state, mine.contains(&h.unit)) {
                (HeldState::Leaving, true) => HeldState::Ready,
                (HeldState::Ready, false) => HeldState::Leaving,
                (other, _) => other,
            };
        }
        self.leaving = self.held.iter().flatten().filter(|h| h.state == HeldState::Leaving).count();
        self.wanted.retain(|u| !is_fresh(u.block));
        self.failed.retain(|(_, u)| !is_fresh(u.block));
        for u in &mine {
            let sound = u.expert < self.experts && u.slice.cuts(self.segments);
            if sound && is_fresh(u.block) && self.held_as(u).is_none() {
                self.wanted.push_back(*u);
            }
        }
        self.free_left(out);
        self.load_wanted(out);
        for b in blocks {
            self.settle_whole(me, b);
        }
    }

    /// Whether all units that the placement names for a block are held here, and ready.
    fn settle_whole(&mut self, me: WorkerId, block: u16) {
        let ready = |u: &Unit| self.held_as(u).is_some_and(|h| h.state == HeldState::Ready);
        let whole = self.placement[block as usize].as_ref().is_some_and(|p| {
            let mut rows = p.replicas.iter().filter(|r| r.unit.block == block).peekable();
            rows.peek().is_some() && rows.all(|r| r.worker == me && ready(&r.unit))
        });
        self.whole[block as usize] = whole;
    }

    fn held_as(&self, unit: &Unit) -> Option<&Held> {
        let of = self.by_expert.get(unit.block as usize * self.experts as usize + unit.expert as usize)?;
        of.iter().filter_map(|i| self.held[*i as usize].as_ref()).find(|h| h.unit == *unit)
    }

    fn load_wanted(&mut self, out: &mut Vec<Action>) {
        while let Some(&unit) = self.wanted.front() {
            let Some(slot) = self.free_slots.pop() else { return };
            self.wanted.pop_front();
            let held = Held { unit, slot, state: HeldState::Loading, items: 0.0 };
            let index = match self.held.iter().position(Option::is_none) {
                Some(i) => i,
                None => {
                    self.held.push(None);
                    self.held.len() - 1
                }
            };
            self.held[index] = Some(held);
            self.queues.admit_unit(index as u32);
            self.by_expert[unit.block as usize * self.experts as usize + unit.expert as usize]
                .push(index as u32);
            out.push(Action::LoadSlot { slot, unit });
        }
    }

    /// A slot's weights are there, or could not be had: then they are asked for again after a while.
    pub fn loaded(
        &mut self,
        now: Nanos,
        me: WorkerId,
        (slot, unit): (u32, Unit),
        ok: bool,
        out: &mut Vec<Action>,
    ) {
        let found =
            self.held.iter().position(|h| h.as_ref().is_some_and(|h| h.slot == slot && h.unit == unit));
        let Some(i) = found else { return };
        let rows = self.placement[unit.block as usize].as_ref().map_or(&[][..], |p| &p.replicas);
        let wanted = rows.iter().any(|r| r.worker == me && r.unit == unit);
        let Some(h) = self.held[i].as_mut().filter(|h| h.state == HeldState::Loading) else { return };
        if ok && wanted {
            h.state = HeldState::Ready;
            self.per_block[unit.block as usize] += 1;
            self.settle_whole(me, unit.block);
        } else {
            self.drop_unit(i, out);
            if wanted {
                self.failed.push((now + LOAD_AGAIN, unit));
            }
            self.load_wanted(out);
        }
    }

    /// Asks again for what could not be loaded, when it is time.
    pub fn load_again(&mut self, now: Nanos, out: &mut Vec<Action>) {
        if self.next_load().is_some_and(|at| at <= now) {
            self.wanted.extend(self.failed.extract_if(.., |(at, _)| *at <= now).map(|(_, unit)| unit));
            self.load_wanted(out);
        }
    }

    /// When something is to be asked for again.
    pub fn next_load(&self) -> Option<Nanos> {
        self.failed.iter().map(|(at, _)| *at).min()
    }

    /// Frees leaving units whose queues are empty and of which nothing runs.
    pub fn free_left(&mut self, out: &mut Vec<Action>) {
        if self.leaving == 0 {
            return;
        }
        for i in 0..self.held.len() {
            let Some(h) = &self.held[i] else { continue };
            let running = self.running.as_ref().is_some_and(|r| r.uses(h.slot));
            if h.state == HeldState::Leaving && !running && self.queues.is_empty(i as u32) {
                self.per_block[h.unit.block as usize] -= 1;
                self.leaving -= 1;
                self.drop_unit(i, out);
            }
        }
        self.load_wanted(out);
    }

    fn drop_unit(&mut self, index: usize, out: &mut Vec<Action>) {
        let Some(h) = self.held[index].take() else { return };
        self.by_expert[h.unit.block as usize * self.experts as usize + h.unit.expert as usize]
            .retain(|u| *u != index as u32);
        self.free_slots.push(h.slot);
        out.push(Action::FreeSlot { slot: h.slot, unit: h.unit });
    }

    /// Whether all that the placement wants here is loaded.
    pub fn is_ready(&self) -> bool {
        self.wanted.is_empty()
            && self.failed.is_empty()
            && self.held.iter().flatten().all(|h| h.state != HeldState::Loading)
    }

    /// Units that can serve.
    pub fn serving(&self) -> impl Iterator<Item = &Held> {
        self.held.iter().flatten().filter(|h| h.state != HeldState::Loading)
    }
}
