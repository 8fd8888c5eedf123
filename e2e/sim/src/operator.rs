//! The operator as the core sees it: generations of placement slices, published while tokens flow.

use crate::rng::Rng;
use crate::scenario::SPARE_SLOTS;
use sluice_core::ids::{Nanos, Slice, Unit, WorkerId};
use sluice_core::placement::{PlacementSlice, Replica, ReplicaState};
use std::sync::Arc;

/// What the operator sets out to do.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A unit joins a worker, under any slicing.
    Join,
    /// A replica drains, if its expert is served without it.
    Drain,
    /// Other fractions.
    Weigh,
    /// An expert loses all its replicas, and is placed again later.
    Orphan,
}

/// One thing the operator does.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// What.
    pub kind: Kind,
    /// How long a draining replica has, or an orphan waits.
    pub hold: Nanos,
}

impl Operation {
    /// Any.
    pub fn draw(r: &mut Rng, cycle: Nanos) -> Self {
        let kind = match r.below(100) {
            0..45 => Kind::Join,
            45..80 => Kind::Drain,
            80..92 => Kind::Weigh,
            _ => Kind::Orphan,
        };
        Self { kind, hold: r.below(cycle * 8) + 1 }
    }
}

/// What follows later.
#[derive(Clone, Copy, Debug)]
pub enum Later {
    /// A drained replica leaves the table.
    Retire(WorkerId, Unit),
    /// An expert without a holder is placed again.
    Restore(Unit),
}

/// The placement, and what is decided about it.
pub struct Operator {
    tables: Vec<PlacementSlice>,
    /// Per worker.
    slots: Vec<u32>,
    segments: u8,
    rng: Rng,
    /// Slices that changed and are to be published.
    pub changed: Vec<Arc<PlacementSlice>>,
    /// What follows, and after how long.
    pub later: Vec<(Nanos, Later)>,
    /// Replicas that became active, and that were drained.
    pub moved: (u64, u64),
}

impl Operator {
    /// With a first placement. `slots` per worker.
    pub fn new(tables: Vec<PlacementSlice>, slots: Vec<u32>, segments: u8, rng: Rng) -> Self {
        Self { tables, slots, segments, rng, changed: vec![], later: vec![], moved: (0, 0) }
    }

    /// All slices as they are.
    pub fn all(&self) -> Vec<Arc<PlacementSlice>> {
        self.tables.iter().cloned().map(Arc::new).collect()
    }

    /// Whether a worker's row is in the table, in whatever state.
    pub fn state(&self, worker: WorkerId, unit: Unit) -> Option<ReplicaState> {
        let t = &self.tables[self.of(unit.block)?];
        t.replicas.iter().find(|r| r.worker == worker && r.unit == unit).map(|r| r.state)
    }

    /// Does something, if it can be done now.
    pub fn apply(&mut self, op: Operation) {
        let t = self.rng.below(self.tables.len() as u64) as usize;
        if self.tables[t].replicas.is_empty() {
            return;
        }
        let i = self.rng.below(self.tables[t].replicas.len() as u64) as usize;
        let replica = self.tables[t].replicas[i];
        match op.kind {
            Kind::Join => {
                let slices = 1u8 << self.rng.below(u64::from(self.segments.ilog2()) + 1);
                let width = self.segments / slices;
                for s in 0..slices {
                    let slice = Slice { lo: s * width, hi: (s + 1) * width };
                    self.place(t, Unit { slice, ..replica.unit }, SPARE_SLOTS);
                }
            }
            Kind::Drain => {
                if replica.state != ReplicaState::Active || !self.served_without(t, i) {
                    return;
                }
                self.tables[t].replicas[i].state = ReplicaState::Draining;
                self.moved.1 += 1;
                self.later.push((op.hold, Later::Retire(replica.worker, replica.unit)));
            }
            Kind::Weigh => {
                for r in &mut self.tables[t].replicas {
                    r.fraction = self.rng.unit() as f32;
                }
            }
            Kind::Orphan => {
                let (block, expert) = (replica.unit.block, replica.unit.expert);
                self.tables[t].replicas.retain(|r| (r.unit.block, r.unit.expert) != (block, expert));
                let whole = Unit { slice: Slice::whole(self.segments), ..replica.unit };
                self.later.push((op.hold, Later::Restore(whole)));
            }
        }
        self.publish(t);
    }

    /// What was put off.
    pub fn follow(&mut self, later: Later) {
        match later {
            Later::Retire(worker, unit) => {
                let Some(t) = self.of(unit.block) else { return };
                let all = &mut self.tables[t].replicas;
                let before = all.len();
                all.retain(|r| (r.worker, r.unit) != (worker, unit) || r.state != ReplicaState::Draining);
                if all.len() != before {
                    self.publish(t);
                }
            }
            Later::Restore(unit) => {
                let Some(t) = self.of(unit.block) else { return };
                if self.is_placed(t, unit) {
                    return;
                }
                if self.place(t, unit, 0) {
                    self.publish(t);
                } else {
                    self.later.push((1_000_000, later));
                }
            }
        }
    }

    /// A worker says that a joining unit's weights are there, or cannot be had.
    pub fn loaded(&mut self, worker: WorkerId, unit: Unit, ok: bool) {
        let Some(t) = self.of(unit.block) else { return };
        let all = &mut self.tables[t].replicas;
        let Some(i) =
            all.iter().position(|r| (r.worker, r.unit, r.state) == (worker, unit, ReplicaState::Joining))
        else {
            return;
        };
        if ok {
            all[i].state = ReplicaState::Active;
            self.moved.0 += 1;
        } else {
            all.remove(i);
            let whole = Unit { slice: Slice::whole(self.segments), ..unit };
            self.later.push((1_000_000, Later::Restore(whole)));
        }
        self.publish(t);
    }

    fn publish(&mut self, t: usize) {
        self.tables[t].generation += 1;
        self.changed.push(Arc::new(self.tables[t].clone()));
    }

    fn of(&self, block: u16) -> Option<usize> {
        self.tables.iter().position(|t| t.blocks.contains(&block))
    }

    /// Puts a unit on some worker that has more than `spare` slots left and does not hold it.
    fn place(&mut self, t: usize, unit: Unit, spare: u32) -> bool {
        let used =
            |w: u32| self.tables.iter().flat_map(|t| &t.replicas).filter(|r| r.worker.0 == w).count() as u32;
        let open: Vec<WorkerId> = (0..self.slots.len() as u32)
            .filter(|w| used(*w) + spare < self.slots[*w as usize])
            .map(WorkerId)
            .filter(|w| !self.tables[t].replicas.iter().any(|r| r.worker == *w && r.unit == unit))
            .collect();
        if open.is_empty() {
            return false;
        }
        let worker = self.rng.pick(&open);
        self.tables[t].replicas.push(Replica { worker, unit, state: ReplicaState::Joining, fraction: 1.0 });
        true
    }

    /// Whether somebody holds, or will hold, the expert whole.
    fn is_placed(&self, t: usize, unit: Unit) -> bool {
        let all = &self.tables[t].replicas;
        self.is_whole(all.iter().filter(|r| (r.unit.block, r.unit.expert) == (unit.block, unit.expert)))
    }

    fn served_without(&self, t: usize, i: usize) -> bool {
        let all = &self.tables[t].replicas;
        let unit = all[i].unit;
        let same = |r: &Replica| (r.unit.block, r.unit.expert) == (unit.block, unit.expert);
        self.is_whole(
            all.iter()
                .enumerate()
                .filter(|(j, r)| *j != i && same(r) && r.state == ReplicaState::Active)
                .map(|(_, r)| r),
        )
    }

    fn is_whole<'a>(&self, all: impl Iterator<Item = &'a Replica>) -> bool {
        let mut masks = [0u8; 9];
        for r in all {
            masks[(r.unit.slice.hi - r.unit.slice.lo) as usize] |= r.unit.slice.mask();
        }
        masks.contains(&Slice::whole(self.segments).mask())
    }
}
