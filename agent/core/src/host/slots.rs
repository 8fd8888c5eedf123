//! Slots: what the placement wants held here is loaded in the background; what it no longer wants is freed when its
//! queues are empty and no token has come for a time, or its slot is wanted. A worker accepts a token by what its slots
//! hold, not by its table.

use super::{Held, HeldState, Host};
use crate::event::Action;
use crate::ids::{Nanos, SECOND, Unit, WorkerId};
use crate::placement::PlacementSlice;
use crate::pressure::SlotCounts;
use std::collections::BTreeSet;
use std::sync::Arc;

/// What could not be loaded is tried again after so long: a volume may be late, a download not be over.
const LOAD_AGAIN: Nanos = 2 * SECOND;

impl Host {
    /// Takes a slice of the placement, if it is newer.
    pub fn place(&mut self, now: Nanos, me: WorkerId, slice: &Arc<PlacementSlice>, out: &mut Vec<Action>) {
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
                (HeldState::Ready, false) => {
                    h.used = now;
                    HeldState::Leaving
                }
                (other, _) => other,
            };
        }
        let is_leaving =
            |i: &u32| self.held[*i as usize].as_ref().is_some_and(|h| h.state == HeldState::Leaving);
        self.leaving = (0..self.held.len() as u32).filter(is_leaving).collect();
        self.wanted.retain(|u| !is_fresh(u.block));
        self.failed.retain(|(_, u)| !is_fresh(u.block));
        for u in &mine {
            let sound = u.expert < self.experts && u.slice.cuts(self.segments);
            if sound && is_fresh(u.block) && self.held_as(u).is_none() {
                self.wanted.push_back(*u);
            }
        }
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
            let Some(slot) = self.take_slot(out) else { return };
            self.wanted.pop_front();
            let held = Held { unit, slot, state: HeldState::Loading, items: 0.0, used: 0 };
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

    /// A free slot, or that of the idle leaving unit that was asked for least lately.
    fn take_slot(&mut self, out: &mut Vec<Action>) -> Option<u32> {
        if self.free_slots.is_empty() {
            let (_, unit) = self.idle_leaving().min()?;
            self.free(unit, out);
        }
        self.free_slots.pop()
    }

    /// Asks again for what could not be loaded, when it is time, and frees units that have left.
    pub fn tend_slots(&mut self, now: Nanos, out: &mut Vec<Action>) {
        self.wanted.extend(self.failed.extract_if(.., |(at, _)| *at <= now).map(|(_, unit)| unit));
        let is_due = |used: Nanos| used.saturating_add(self.linger) <= now;
        let due: Vec<u32> = self.idle_leaving().filter(|i| is_due(i.0)).map(|(_, unit)| unit).collect();
        for unit in due {
            self.free(unit, out);
        }
        self.load_wanted(out);
    }

    /// When [`Self::tend_slots`] has something to do next.
    pub fn next_tending(&self) -> Option<Nanos> {
        let freed = self.idle_leaving().map(|(used, _)| used.saturating_add(self.linger));
        self.failed.iter().map(|(at, _)| *at).chain(freed).min()
    }

    /// Leaving units whose queues are empty and of which nothing runs, and when each was asked for last.
    fn idle_leaving(&self) -> impl Iterator<Item = (Nanos, u32)> {
        self.leaving.iter().filter_map(|unit| {
            let h = self.held[*unit as usize].as_ref()?;
            let is_running = self.running.as_ref().is_some_and(|r| r.uses(h.slot));
            (!is_running && self.queues.is_empty(*unit)).then_some((h.used, *unit))
        })
    }

    /// A leaving unit is gone.
    fn free(&mut self, unit: u32, out: &mut Vec<Action>) {
        self.leaving.retain(|u| *u != unit);
        if let Some(h) = &self.held[unit as usize] {
            self.per_block[h.unit.block as usize] -= 1;
        }
        self.drop_unit(unit as usize, out);
    }

    fn drop_unit(&mut self, index: usize, out: &mut Vec<Action>) {
        let Some(h) = self.held[index].take() else { return };
        self.by_expert[h.unit.block as usize * self.experts as usize + h.unit.expert as usize]
            .retain(|u| *u != index as u32);
        self.free_slots.push(h.slot);
        out.push(Action::FreeSlot { slot: h.slot, unit: h.unit });
    }

    /// What the placement wants here and is not loaded.
    fn not_loaded(&self) -> impl Iterator<Item = &Unit> {
        let loading = self.held.iter().flatten().filter(|h| h.state == HeldState::Loading).map(|h| &h.unit);
        self.wanted.iter().chain(self.failed.iter().map(|(_, unit)| unit)).chain(loading)
    }

    /// Whether all that the placement wants here is loaded.
    pub fn is_ready(&self) -> bool {
        self.not_loaded().next().is_none()
    }

    /// What the slots hold.
    pub fn slot_counts(&self) -> SlotCounts {
        let mut counts = SlotCounts::default();
        for h in self.held.iter().flatten() {
            *match h.state {
                HeldState::Ready => &mut counts.serving,
                HeldState::Loading => &mut counts.loading,
                HeldState::Leaving => &mut counts.leaving,
            } += 1;
        }
        counts
    }

    /// By block: what the placement wants here and is not loaded.
    pub fn missing(&self) -> Vec<Vec<Unit>> {
        let mut missing = vec![vec![]; self.placement.len()];
        for unit in self.not_loaded() {
            missing[unit.block as usize].push(*unit);
        }
        missing
    }
}
