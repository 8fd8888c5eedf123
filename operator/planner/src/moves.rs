//! From the placement there is to the one that is planned, a table at a time. Nothing pauses: what joins is loaded
//! before it is asked, and what leaves goes once all that take its place serve.

use crate::Plan;
use sluice_core::ids::{Slice, Unit, WorkerId};
use sluice_core::placement::{Replica, ReplicaState};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A unit and one of its holders.
pub type Held = (Unit, WorkerId);

/// What is known when the next table is made.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    /// The rows of the table as it is.
    pub rows: &'a [Replica],
    /// The slots of every expert worker that counts. Rows of others (gone, or of no role any more) are dropped.
    pub slots: &'a BTreeMap<WorkerId, u32>,
    /// What workers say that they have loaded.
    pub loaded: &'a BTreeSet<Held>,
    /// Draining rows that nobody sends to any more: their slots are free.
    pub emptied: &'a BTreeSet<Held>,
}

/// One change of a table. Each is safe by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Move {
    /// Its worker does not count any more.
    Drop(Held),
    /// A draining row is gone.
    Release(Held),
    /// It takes tokens no more.
    Drain(Held),
    /// It is loaded, and takes tokens.
    Activate(Held),
    /// It begins to load.
    Join(Held),
    /// It has to be loaded again, and others serve meanwhile.
    Reload(Held),
}

impl fmt::Display for Move {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, (unit, worker)) = match *self {
            Self::Drop(held) => ("is dropped: it is not of the deployment any more", held),
            Self::Release(held) => ("is released", held),
            Self::Drain(held) => ("drains", held),
            Self::Activate(held) => ("takes tokens", held),
            Self::Join(held) => ("joins", held),
            Self::Reload(held) => ("loads again", held),
        };
        write!(f, "{unit} on {worker} {what}")
    }
}

/// The table that follows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NextTable {
    /// Its rows, in order of unit and worker.
    pub rows: Vec<Replica>,
    /// What changes in it, in order. Fractions may change without a move.
    pub moves: Vec<Move>,
    /// What is planned and finds no free slot. If nothing drains, nothing of it will ever come: the plan needs more
    /// slots.
    pub blocked: Vec<Held>,
    /// The plan is carried out: what is planned takes tokens, and nothing else is held.
    pub is_settled: bool,
}

/// Makes the next table on the way to `plan`.
pub fn next_table(now: &Situation<'_>, plan: &Plan) -> NextTable {
    let planned: BTreeMap<Held, f64> =
        plan.units.iter().flat_map(|u| u.holders.iter().map(|h| ((u.unit, h.worker), h.fraction))).collect();
    let mut rows: BTreeMap<Held, Replica> = now.rows.iter().map(|r| ((r.unit, r.worker), *r)).collect();
    let mut next = NextTable::default();
    let before = Serving::of(rows.values(), now);

    rows.retain(|held, row| {
        let leaves = if !now.slots.contains_key(&held.1) {
            Some(Move::Drop(*held))
        } else if row.state == ReplicaState::Draining && now.emptied.contains(held) {
            Some(Move::Release(*held))
        } else {
            None
        };
        next.moves.extend(leaves);
        leaves.is_none()
    });
    for (held, row) in &mut rows {
        let (is_planned, is_loaded) = (planned.contains_key(held), now.loaded.contains(held));
        let to = match row.state {
            ReplicaState::Active if !is_planned && before.is_replaced(held.0, &planned) => Move::Drain(*held),
            ReplicaState::Active if !is_loaded && before.is_covered(held.0) => Move::Reload(*held),
            // It took nothing yet: nothing has to be waited for but its load.
            ReplicaState::Joining if !is_planned => Move::Drain(*held),
            ReplicaState::Joining if is_loaded => Move::Activate(*held),
            ReplicaState::Draining if is_planned && is_loaded => Move::Activate(*held),
            ReplicaState::Draining if is_planned => Move::Join(*held),
            _ => continue,
        };
        row.state = match to {
            Move::Drain(_) => ReplicaState::Draining,
            Move::Activate(_) => ReplicaState::Active,
            _ => ReplicaState::Joining,
        };
        next.moves.push(to);
    }
    join(&mut rows, &planned, now, &mut next);
    share(&mut rows, &planned);
    next.moves.sort_unstable();
    let is_active = |row: &Replica| row.state == ReplicaState::Active;
    next.is_settled = next.moves.is_empty() && rows.keys().eq(planned.keys()) && rows.values().all(is_active);
    next.rows = rows.into_values().collect();
    next
}

/// What is planned and not there begins to load, where there is a slot.
fn join(
    rows: &mut BTreeMap<Held, Replica>,
    planned: &BTreeMap<Held, f64>,
    now: &Situation<'_>,
    next: &mut NextTable,
) {
    let mut free = now.slots.clone();
    for (_, worker) in rows.keys() {
        if let Some(slots) = free.get_mut(worker) {
            *slots = slots.saturating_sub(1);
        }
    }
    for &held in planned.keys() {
        let Some(slots) = free.get_mut(&held.1).filter(|_| !rows.contains_key(&held)) else { continue };
        let (unit, worker) = held;
        if *slots == 0 {
            next.blocked.push(held);
            continue;
        }
        *slots -= 1;
        next.moves.push(Move::Join(held));
        rows.insert(held, Replica { worker, unit, state: ReplicaState::Joining, fraction: 1.0 });
    }
}

/// The planned fractions, where one who has any serves; else whoever serves goes on as before.
fn share(rows: &mut BTreeMap<Held, Replica>, planned: &BTreeMap<Held, f64>) {
    let share = |held: &Held| planned.get(held).copied().unwrap_or(0.0) as f32;
    let shared: BTreeSet<Unit> = rows
        .iter()
        .filter(|(held, row)| row.state == ReplicaState::Active && share(held) > 0.0)
        .map(|(held, _)| held.0)
        .collect();
    for (held, row) in rows {
        if shared.contains(&held.0) || row.state == ReplicaState::Joining {
            row.fraction = share(held);
        } else if row.state == ReplicaState::Active && row.fraction == 0.0 {
            row.fraction = 1.0;
        }
    }
}

/// The rows that take tokens and have their weights.
struct Serving(BTreeSet<Held>);

impl Serving {
    fn of<'a>(rows: impl Iterator<Item = &'a Replica>, now: &Situation<'_>) -> Self {
        let serves = |r: &&Replica| {
            r.state == ReplicaState::Active
                && now.slots.contains_key(&r.worker)
                && now.loaded.contains(&(r.unit, r.worker))
        };
        Self(rows.filter(serves).map(|r| (r.unit, r.worker)).collect())
    }

    /// Whether all that is planned for a unit's expert serves, so that what is not planned can go.
    fn is_replaced(&self, unit: Unit, planned: &BTreeMap<Held, f64>) -> bool {
        let mut of_expert =
            planned.range(first_of(unit)..).map(|(held, _)| held).take_while(of_expert_of(unit));
        let mut any = false;
        of_expert.all(|held| {
            any = true;
            self.0.contains(held)
        }) && any
    }

    /// Whether every part of a unit is served.
    fn is_covered(&self, unit: Unit) -> bool {
        let mut at = unit.slice.lo;
        while at < unit.slice.hi {
            let mut of_expert = self.0.range(first_of(unit)..).take_while(of_expert_of(unit));
            let Some((over, _)) = of_expert.find(|(u, _)| u.slice.lo <= at && at < u.slice.hi) else {
                return false;
            };
            at = over.slice.hi;
        }
        true
    }
}

/// What comes first of a unit's expert, in the order of rows.
fn first_of(unit: Unit) -> Held {
    (Unit { slice: Slice { lo: 0, hi: 0 }, ..unit }, WorkerId(0))
}

fn of_expert_of<'a>(unit: Unit) -> impl Fn(&&'a Held) -> bool {
    move |(u, _)| (u.block, u.expert) == (unit.block, unit.expert)
}
