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
    /// What is planned and finds no free slot. If nothing joins or drains either, nothing of it will ever come: the plan
    /// needs more slots.
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
    let segments = planned.keys().map(|(unit, _)| unit.slice.hi).max().unwrap_or(0);
    let before = Serving::of(rows.values(), now, segments);

    rows.retain(|held, row| {
        let (is_planned, is_loaded) = (planned.contains_key(held), now.loaded.contains(held));
        let is_covered = before.is_covered(held.0);
        let to = match row.state {
            _ if !now.slots.contains_key(&held.1) => Move::Drop(*held),
            ReplicaState::Active if !is_planned && before.is_replaced(held.0, &planned) => Move::Drain(*held),
            ReplicaState::Active if is_planned && !is_loaded && is_covered => Move::Reload(*held),
            // It took nothing yet: nothing has to be waited for but its load.
            ReplicaState::Joining if !is_planned => Move::Drain(*held),
            ReplicaState::Joining if is_loaded => Move::Activate(*held),
            // Also if who was to take its place was lost meanwhile.
            ReplicaState::Draining if is_loaded && (is_planned || !is_covered) => Move::Activate(*held),
            ReplicaState::Draining if is_planned => Move::Join(*held),
            ReplicaState::Draining if now.emptied.contains(held) => Move::Release(*held),
            _ => return true,
        };
        row.state = match to {
            Move::Drain(_) => ReplicaState::Draining,
            Move::Activate(_) => ReplicaState::Active,
            _ => ReplicaState::Joining,
        };
        next.moves.push(to);
        !matches!(to, Move::Drop(_) | Move::Release(_))
    });
    join(&mut rows, &planned, &before, now, &mut next);
    make_room(&mut rows, &planned, &before, &mut next);
    share(&mut rows, &planned);
    next.moves.sort_unstable();
    let is_active = |row: &Replica| row.state == ReplicaState::Active;
    next.is_settled = next.moves.is_empty() && rows.keys().eq(planned.keys()) && rows.values().all(is_active);
    next.rows = rows.into_values().collect();
    next
}

/// What is planned and not there begins to load, where there is a slot: first what nobody serves.
fn join(
    rows: &mut BTreeMap<Held, Replica>,
    planned: &BTreeMap<Held, f64>,
    before: &Serving,
    now: &Situation<'_>,
    next: &mut NextTable,
) {
    let mut free = now.slots.clone();
    for (_, worker) in rows.keys() {
        if let Some(slots) = free.get_mut(worker) {
            *slots = slots.saturating_sub(1);
        }
    }
    let mut due: Vec<Held> = planned.keys().filter(|held| !rows.contains_key(held)).copied().collect();
    due.sort_by_key(|held| before.is_covered(held.0));
    for held in due {
        let (unit, worker) = held;
        let Some(slots) = free.get_mut(&worker) else { continue };
        if *slots == 0 {
            next.blocked.push(held);
            continue;
        }
        *slots -= 1;
        next.moves.push(Move::Join(held));
        rows.insert(held, Replica { worker, unit, state: ReplicaState::Joining, fraction: 1.0 });
    }
}

/// Workers that are full may wait for each other in a ring. One row that others can serve for leaves then, though not
/// all of its replicas are where they should be.
fn make_room(
    rows: &mut BTreeMap<Held, Replica>,
    planned: &BTreeMap<Held, f64>,
    before: &Serving,
    next: &mut NextTable,
) {
    let is_moving = !next.moves.is_empty() || rows.values().any(|r| r.state != ReplicaState::Active);
    if is_moving || next.blocked.is_empty() {
        return;
    }
    let full: BTreeSet<WorkerId> = next.blocked.iter().map(|(_, worker)| *worker).collect();
    let can_go = |held: &Held| {
        full.contains(&held.1)
            && !planned.contains_key(held)
            && before.is_covered_without(held.0, Some(*held))
    };
    if let Some((held, row)) = rows.iter_mut().find(|(held, _)| can_go(held)) {
        row.state = ReplicaState::Draining;
        next.moves.push(Move::Drain(*held));
    }
}

/// The planned fractions. What falls to holders that do not serve yet is taken by those that are to leave.
fn share(rows: &mut BTreeMap<Held, Replica>, planned: &BTreeMap<Held, f64>) {
    let (mut total, mut missing) = (BTreeMap::<Unit, f64>::new(), BTreeMap::<Unit, f64>::new());
    for (held, fraction) in planned {
        *total.entry(held.0).or_default() += fraction;
        if rows.get(held).is_none_or(|r| r.state != ReplicaState::Active) {
            *missing.entry(held.0).or_default() += fraction;
        }
    }
    let mut leaving: BTreeMap<Unit, f64> = BTreeMap::new();
    for (held, row) in rows.iter() {
        if row.state == ReplicaState::Active && !planned.contains_key(held) {
            *leaving.entry(held.0).or_default() += 1.0;
        }
    }
    let of = |sums: &BTreeMap<Unit, f64>, unit: Unit| sums.get(&unit).copied().unwrap_or(0.0);
    for (held, row) in rows {
        let fraction = match (planned.get(held), row.state) {
            // Nobody has any: all alike.
            (_, ReplicaState::Active) if of(&total, held.0) == 0.0 => 1.0,
            (None, ReplicaState::Active) => of(&missing, held.0) / of(&leaving, held.0),
            (planned, _) => planned.copied().unwrap_or(0.0),
        };
        row.fraction = fraction as f32;
    }
}

/// The rows that take tokens and have their weights, and the segments of an expert.
struct Serving(BTreeSet<Held>, u8);

impl Serving {
    fn of<'a>(rows: impl Iterator<Item = &'a Replica>, now: &Situation<'_>, segments: u8) -> Self {
        let serves = |r: &&Replica| {
            r.state == ReplicaState::Active
                && now.slots.contains_key(&r.worker)
                && now.loaded.contains(&(r.unit, r.worker))
        };
        Self(rows.filter(serves).map(|r| (r.unit, r.worker)).collect(), segments)
    }

    /// Whether all that is planned for a unit's expert serves, so that what is not planned can go.
    fn is_replaced(&self, unit: Unit, planned: &BTreeMap<Held, f64>) -> bool {
        let of_expert = planned.range(first_of(unit)..).map(|(held, _)| held).take_while(of_expert_of(unit));
        let mut of_expert = of_expert.peekable();
        of_expert.peek().is_some() && of_expert.all(|held| self.0.contains(held))
    }

    /// Whether a unit's expert is served whole: a token goes to equal slices of it.
    fn is_covered(&self, unit: Unit) -> bool {
        self.is_covered_without(unit, None)
    }

    fn is_covered_without(&self, unit: Unit, but: Option<Held>) -> bool {
        let of_expert = || {
            let rows = self.0.range(first_of(unit)..).take_while(of_expert_of(unit));
            rows.filter(|held| Some(**held) != but).map(|(u, _)| u.slice)
        };
        of_expert().filter(|s| s.lo == 0).any(|first| {
            let mut at = 0;
            while of_expert().any(|s| s.lo == at && s.hi == at + first.hi) {
                at += first.hi;
            }
            at == self.1
        })
    }
}

/// What comes first of a unit's expert, in the order of rows.
fn first_of(unit: Unit) -> Held {
    (Unit { slice: Slice { lo: 0, hi: 0 }, ..unit }, WorkerId(0))
}

fn of_expert_of<'a>(unit: Unit) -> impl Fn(&&'a Held) -> bool {
    move |(u, _)| (u.block, u.expert) == (unit.block, unit.expert)
}
