//! The way from one placement to another: nothing pauses on it, and it ends where it should.

use proptest::collection::vec;
use proptest::prelude::*;
use sluice_core::ids::{Slice, Unit, WorkerId};
use sluice_core::placement::{Replica, ReplicaState};
use sluice_planner::{Held, Move, NextTable, Plan, Replicas, Request, Situation, Worker, next_table, plan};
use std::collections::{BTreeMap, BTreeSet};

const EXPERTS: u16 = 5;

/// A deployment as the one who makes its tables sees it.
struct Site {
    rows: Vec<Replica>,
    slots: BTreeMap<WorkerId, u32>,
    loaded: BTreeSet<Held>,
    emptied: BTreeSet<Held>,
}

impl Site {
    fn next(&self, plan: &Plan) -> NextTable {
        let Self { rows, slots, loaded, emptied } = self;
        next_table(&Situation { rows, slots, loaded, emptied }, plan)
    }

    fn of(&self, state: ReplicaState) -> impl Iterator<Item = Held> {
        self.rows.iter().filter(move |r| r.state == state).map(|r| (r.unit, r.worker))
    }

    fn all_served(&self, blocks: usize) -> BTreeMap<(u16, u16), bool> {
        let all = (0..blocks as u16).flat_map(|b| (0..EXPERTS).map(move |e| (b, e)));
        all.map(|(b, e)| ((b, e), self.serves(b, e))).collect()
    }

    /// An expert's weights are all where tokens are sent: to who drains, if nobody else has them.
    fn serves(&self, block: u16, expert: u16) -> bool {
        let segments = 8;
        let serving: Vec<Slice> = self
            .of(ReplicaState::Active)
            .chain(self.of(ReplicaState::Draining))
            .filter(|held| self.loaded.contains(held) && self.slots.contains_key(&held.1))
            .filter(|(u, _)| (u.block, u.expert) == (block, expert))
            .map(|(u, _)| u.slice)
            .collect();
        [1, 2, 4, 8].into_iter().filter(|n| *n <= segments).any(|n| {
            let width = segments / n;
            (0..n).all(|i| serving.contains(&Slice { lo: i * width, hi: (i + 1) * width }))
        })
    }
}

fn planned(slots: &BTreeMap<WorkerId, u32>, blocks: usize, slices: u8, replicas: u32) -> Option<Plan> {
    let workers = slots.iter().map(|(&id, &slots)| Worker { id, slots }).collect();
    let mut request = Request::new(vec![true; blocks], EXPERTS, workers);
    (request.segments, request.slices, request.replicas) = (8, slices, Replicas::exactly(replicas));
    plan(&request).ok()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    /// Workers load and empty in any order, some lose what they hold, and one goes for good; the plan changes on the
    /// way. An expert that somebody could serve whole is served whole after every table, unless who held it is lost; no
    /// worker is asked to hold more than it has room for; and in the end the plan is carried out.
    #[test]
    fn nothing_pauses_and_the_plan_is_reached(
        blocks in 1usize..4,
        workers in 2u32..6,
        kinds in vec((0u32..3, 1u32..3), 3),
        members in vec(vec(any::<bool>(), 6), 3),
        (spare, lost) in (0u32..12, (any::<bool>(), 1u32..6)),
        coins in vec(0u8..8, 600),
    ) {
        let plans: Vec<_> = kinds.iter().zip(&members).filter_map(|(&(slices, replicas), member)| {
            let is_member = |w: &u32| *w == 0 || member[*w as usize];
            let those = (0..workers).filter(is_member).map(|w| (WorkerId(w), 600)).collect();
            planned(&those, blocks, 1 << slices, replicas)
        }).collect();
        prop_assume!(plans.len() == 3);
        // Room for each placement beside the one before, or for a little more than the largest.
        let count = |plan: &Plan, w: u32| plan.held().filter(|(_, worker)| worker.0 == w).count() as u32;
        let slots = |w: u32| {
            let both = plans.windows(2).map(|p| count(&p[0], w) + count(&p[1], w)).max().unwrap_or(0);
            both + spare
        };
        let mut site = Site {
            rows: plans[0].placement(blocks as u16, blocks as u16, 1).remove(0).replicas,
            slots: (0..workers).map(|w| (WorkerId(w), slots(w))).collect(),
            loaded: plans[0].held().collect(),
            emptied: BTreeSet::new(),
        };
        let mut coins = coins.into_iter();
        let mut toss = move |below: u8| coins.next().is_some_and(|c| c < below);
        let (mut plan, mut settled) = (plans[1].clone(), false);
        for step in 0..900 {
            if step == 6 {
                plan = plans[2].clone();
            }
            if step == 9 && lost.0 && lost.1 < workers {
                // It is gone, with all it held; what was planned for it has to be planned anew.
                site.slots.remove(&WorkerId(lost.1));
                let left = site.slots.keys().map(|w| (*w, 600)).collect();
                plan = planned(&left, blocks, 1 << kinds[2].0, kinds[2].1.min(workers - 1)).expect("room");
                site.slots.values_mut().for_each(|slots| *slots += 600);
            }
            let before = site.all_served(blocks);
            let next = site.next(&plan);
            site.rows.clone_from(&next.rows);
            for (&(block, expert), was) in &before {
                prop_assert!(!was || site.serves(block, expert), "step {step}: {block}, {expert}: {:?}", next.moves);
            }
            for (worker, slots) in &site.slots {
                let held = site.rows.iter().filter(|r| r.worker == *worker).count();
                prop_assert!(held as u32 <= *slots, "step {step}: {worker}");
            }
            for unit in site.of(ReplicaState::Active).map(|(unit, _)| unit) {
                let of_unit = site.rows.iter().filter(|r| r.unit == unit && r.state == ReplicaState::Active);
                let sum: f32 = of_unit.map(|r| r.fraction).sum();
                prop_assert!(sum > 0.0, "step {step}: nobody takes what is sent for {unit}");
            }
            settled = next.is_settled;
            if settled && step > 9 {
                break;
            }
            // The world goes on: some loads end, some draining rows are empty, a worker starts again with nothing.
            let draining: BTreeSet<Held> = site.of(ReplicaState::Draining).collect();
            let others: Vec<Held> = site.rows.iter().map(|r| (r.unit, r.worker)).collect();
            site.emptied.retain(|held| draining.contains(held));
            site.loaded.retain(|held| others.contains(held));
            for held in others {
                if draining.contains(&held) {
                    if toss(4) || step > 200 {
                        site.emptied.insert(held);
                    }
                } else if toss(4) || step > 200 {
                    site.loaded.insert(held);
                }
            }
            if toss(1) && step < 200 {
                let who = WorkerId(step % workers);
                site.loaded.retain(|(_, worker)| *worker != who);
            }
        }
        prop_assert!(settled, "the plan is reached");
        let reached: BTreeSet<Held> = site.rows.iter().map(|r| (r.unit, r.worker)).collect();
        prop_assert_eq!(reached, plan.held().collect::<BTreeSet<_>>());
        prop_assert_eq!(site.next(&plan).rows, site.rows, "nothing more to do");
    }
}

#[test]
fn those_that_leave_take_what_falls_to_those_that_do_not_serve_yet() {
    let slots: BTreeMap<_, _> = (0..4).map(|w| (WorkerId(w), 10)).collect();
    let of = |workers: [u32; 2]| {
        let those = workers.map(|w| (WorkerId(w), 10)).into_iter().collect();
        planned(&those, 1, 1, 2).unwrap()
    };
    let (old, new) = (of([0, 1]), of([2, 3]));
    let mut site = site(&old, slots);
    site.rows = site.next(&new).rows;
    site.loaded.extend(new.held().filter(|(_, w)| w.0 == 2));
    site.rows = site.next(&new).rows;
    let unit = old.units[0].unit;
    let fraction = |w: u32| {
        let row = site.rows.iter().find(|r| r.unit == unit && r.worker == WorkerId(w)).unwrap();
        (row.state, row.fraction)
    };
    use ReplicaState::{Active, Joining};
    assert_eq!([0, 1, 2].map(fraction), [(Active, 0.25), (Active, 0.25), (Active, 0.5)]);
    assert_eq!(fraction(3).0, Joining);
}

#[test]
fn what_nobody_serves_comes_first() {
    let slots = BTreeMap::from([(WorkerId(0), 6), (WorkerId(1), 5)]);
    let both = planned(&slots, 1, 1, 1).unwrap();
    let mut site = site(&both, BTreeMap::from([(WorkerId(0), 4)]));
    let lost: Vec<Held> = both.held().filter(|(_, w)| w.0 == 1).collect();
    // A copy of the first expert is planned as well, and there is room for one less than all.
    let mut new = planned(&BTreeMap::from([(WorkerId(0), 10)]), 1, 1, 1).unwrap();
    site.slots.insert(WorkerId(2), lost.len() as u32);
    for unit in &mut new.units {
        let is_lost = lost.iter().any(|(u, _)| *u == unit.unit);
        let holder = &mut unit.holders[0];
        if is_lost {
            holder.worker = WorkerId(2);
        } else {
            let copy = sluice_planner::Holder { worker: WorkerId(2), fraction: 0.5 };
            unit.holders.push(copy);
        }
    }
    let joins: BTreeSet<Unit> = site
        .next(&new)
        .moves
        .iter()
        .filter_map(|m| match m {
            Move::Join((unit, _)) => Some(*unit),
            _ => None,
        })
        .collect();
    assert_eq!(joins, lost.iter().map(|(u, _)| *u).collect::<BTreeSet<_>>());
}

#[test]
fn workers_that_are_full_and_wait_for_each_other_let_a_copy_go() {
    // Expert 0 is on 0 and 2 and is to be on 0 and 1; expert 1 is on 0 and 1 and is to be on 0 and 2.
    let unit = |expert| Unit { block: 0, expert, slice: Slice { lo: 0, hi: 8 } };
    let held = |e: u16, w: u32| (unit(e), WorkerId(w));
    let of = |all: &[(u16, [u32; 2])]| {
        let mut plan = planned(&BTreeMap::from([(WorkerId(0), 10), (WorkerId(1), 10)]), 1, 1, 2).unwrap();
        plan.units.truncate(2);
        for (planned, (_, workers)) in plan.units.iter_mut().zip(all) {
            for (holder, w) in planned.holders.iter_mut().zip(workers) {
                holder.worker = WorkerId(*w);
            }
        }
        plan
    };
    let (old, new) = (of(&[(0, [0, 2]), (1, [0, 1])]), of(&[(0, [0, 1]), (1, [0, 2])]));
    let mut site = site(&old, BTreeMap::from([(WorkerId(0), 2), (WorkerId(1), 1), (WorkerId(2), 1)]));
    let next = site.next(&new);
    assert_eq!(next.moves, [Move::Drain(held(0, 2))]);
    site.rows = next.rows;
    site.emptied.insert(held(0, 2));
    for _ in 0..8 {
        let next = site.next(&new);
        site.rows = next.rows;
        let rows: Vec<Held> = site.rows.iter().map(|r| (r.unit, r.worker)).collect();
        site.loaded = rows.into_iter().collect();
        site.emptied = site.of(ReplicaState::Draining).collect();
    }
    assert!(site.next(&new).is_settled);
}

#[test]
fn what_drains_comes_back_if_who_took_its_place_is_lost() {
    let slots: BTreeMap<_, _> = (0..2).map(|w| (WorkerId(w), 10)).collect();
    let old = planned(&BTreeMap::from([(WorkerId(0), 10)]), 1, 1, 1).unwrap();
    let new = planned(&BTreeMap::from([(WorkerId(1), 10)]), 1, 1, 1).unwrap();
    let mut site = site(&old, slots);
    for _ in 0..3 {
        site.rows = site.next(&new).rows;
        site.loaded.extend(new.held());
    }
    assert_eq!(site.of(ReplicaState::Draining).count(), usize::from(EXPERTS));
    site.emptied = old.held().collect();
    site.loaded = old.held().collect();
    let next = site.next(&new);
    assert!(next.moves.iter().all(|m| matches!(m, Move::Activate((_, WorkerId(0))))), "{:?}", next.moves);
}

fn site(plan: &Plan, slots: BTreeMap<WorkerId, u32>) -> Site {
    Site {
        rows: plan.placement(1, 1, 1).remove(0).replicas,
        slots,
        loaded: plan.held().collect(),
        emptied: BTreeSet::new(),
    }
}

#[test]
fn a_worker_that_leaves_is_drained_once_the_others_have_what_it_held() {
    let slots: BTreeMap<_, _> = (0..2).map(|w| (WorkerId(w), 5)).collect();
    let old = planned(&slots, 1, 1, 1).unwrap();
    let new = planned(&BTreeMap::from([(WorkerId(0), 5)]), 1, 1, 1).unwrap();
    let mut site = site(&old, slots);
    let left: Vec<Held> = old.held().filter(|(_, w)| w.0 == 1).collect();
    let moves = |next: &NextTable| next.moves.clone();

    let next = site.next(&new);
    assert_eq!(moves(&next), left.iter().map(|(u, _)| Move::Join((*u, WorkerId(0)))).collect::<Vec<_>>());
    site.rows = next.rows;
    assert!(site.next(&new).moves.is_empty(), "nothing is loaded yet");
    site.loaded.extend(left.iter().map(|(u, _)| (*u, WorkerId(0))));
    let next = site.next(&new);
    assert!(next.moves.iter().all(|m| matches!(m, Move::Activate(_))), "{:?}", next.moves);
    site.rows = next.rows;
    let next = site.next(&new);
    assert_eq!(moves(&next), left.iter().map(|held| Move::Drain(*held)).collect::<Vec<_>>());
    site.rows = next.rows;
    assert!(site.next(&new).moves.is_empty(), "somebody may still send to it");
    site.emptied.extend(left.iter().copied());
    let next = site.next(&new);
    assert_eq!(moves(&next), left.iter().map(|held| Move::Release(*held)).collect::<Vec<_>>());
    site.rows = next.rows;
    assert!(site.next(&new).is_settled);
}

#[test]
fn what_a_lost_worker_held_is_loaded_elsewhere_and_its_rows_are_dropped() {
    let slots: BTreeMap<_, _> = (0..2).map(|w| (WorkerId(w), 5)).collect();
    let old = planned(&slots, 1, 1, 1).unwrap();
    let mut site = site(&old, BTreeMap::from([(WorkerId(0), 5)]));
    let new = planned(&site.slots, 1, 1, 1).unwrap();
    let next = site.next(&new);
    let lost = old.held().filter(|(_, w)| w.0 == 1).count();
    let count = |what: fn(&Move) -> bool| next.moves.iter().filter(|m| what(m)).count();
    assert_eq!((count(|m| matches!(m, Move::Drop(_))), count(|m| matches!(m, Move::Join(_)))), (lost, lost));
    site.rows = next.rows;
    assert!(site.rows.iter().all(|r| r.worker == WorkerId(0)));
}

#[test]
fn what_finds_no_slot_is_said() {
    let slots: BTreeMap<_, _> = (0..2).map(|w| (WorkerId(w), 3)).collect();
    let old = planned(&slots, 1, 1, 1).unwrap();
    let site = site(&old, slots.clone());
    // The two change places with each other, and only one slot is free.
    let mut new = old.clone();
    for unit in &mut new.units {
        unit.holders[0].worker = WorkerId(1 - unit.holders[0].worker.0);
    }
    let next = site.next(&new);
    let joins = next.moves.iter().filter(|m| matches!(m, Move::Join(_))).count();
    assert_eq!((joins, next.blocked.len(), next.is_settled), (1, 4, false));
    assert!(next.rows.iter().filter(|r| r.state == ReplicaState::Active).count() == 5, "all serve as before");
}
