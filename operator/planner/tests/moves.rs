//! The way from one placement to another: nothing pauses on it, and it ends where it should.

use proptest::collection::vec;
use proptest::prelude::*;
use sluice_core::ids::{Slice, WorkerId};
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

    /// An expert's weights are all where tokens are sent.
    fn serves(&self, block: u16, expert: u16, segments: u8) -> bool {
        let serving: Vec<Slice> = self
            .of(ReplicaState::Active)
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
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Workers load and empty in any order, some lose what they hold, and one goes: an expert that was served whole is
    /// served whole at every step, unless who held it is lost; no worker is asked to hold more than it has room for.
    #[test]
    fn nothing_pauses_and_the_plan_is_reached(
        blocks in 1usize..4,
        workers in 2u32..6,
        (from, to) in ((0u32..3, 1u32..3), (0u32..3, 1u32..3)),
        changed in vec(any::<bool>(), 6),
        coins in vec(0u8..4, 400),
    ) {
        // Room for both placements at once.
        let all: BTreeMap<_, _> = (0..workers).map(|w| (WorkerId(w), 600)).collect();
        let some = |skip: bool| -> BTreeMap<_, _> {
            all.iter().filter(|(w, _)| !skip || w.0 == 0 || !changed[w.0 as usize]).map(|(w, s)| (*w, *s)).collect()
        };
        let old = planned(&some(true), blocks, 1 << from.0, from.1);
        let new = planned(&some(false), blocks, 1 << to.0, to.1);
        let (Some(old), Some(new)) = (old, new) else { return Ok(()) };
        let mut site = Site {
            rows: old.placement(blocks as u16, blocks as u16, 1).remove(0).replicas,
            slots: all.clone(),
            loaded: old.held().collect(),
            emptied: BTreeSet::new(),
        };
        let mut coins = coins.into_iter();
        let mut settled = false;
        for step in 0..600 {
            let before: Vec<bool> = (0..blocks as u16)
                .flat_map(|b| (0..EXPERTS).map(move |e| (b, e)))
                .map(|(b, e)| site.serves(b, e, 8))
                .collect();
            let next = site.next(&new);
            prop_assert!(next.blocked.is_empty(), "there is room for both");
            site.rows.clone_from(&next.rows);
            for (i, was) in before.iter().enumerate() {
                let (b, e) = (i as u16 / EXPERTS, i as u16 % EXPERTS);
                prop_assert!(!was || site.serves(b, e, 8), "step {step}: expert {e} of block {b} is not served");
            }
            for (worker, slots) in &site.slots {
                let held = site.rows.iter().filter(|r| r.worker == *worker).count();
                prop_assert!(held as u32 <= *slots);
            }
            prop_assert!(site.rows.iter().filter(|r| r.state == ReplicaState::Active).count() > 0);
            settled = next.is_settled;
            if settled {
                break;
            }
            // The world goes on: some loads end, some draining rows are empty.
            let wanted: Vec<Held> =
                site.of(ReplicaState::Joining).chain(site.of(ReplicaState::Active)).collect();
            let draining: Vec<Held> = site.of(ReplicaState::Draining).collect();
            site.emptied.retain(|held| draining.contains(held));
            for held in wanted {
                if coins.next().unwrap_or(0) < 2 {
                    site.loaded.insert(held);
                }
            }
            for held in draining {
                if coins.next().unwrap_or(0) < 2 {
                    site.emptied.insert(held);
                }
            }
            let rows: BTreeSet<Held> = site.rows.iter().map(|r| (r.unit, r.worker)).collect();
            site.loaded.retain(|held| rows.contains(held));
            if coins.next() == Some(3) {
                // A worker starts again with nothing loaded.
                let who = WorkerId(u32::from(coins.next().unwrap_or(0)) % workers);
                site.loaded.retain(|(_, worker)| *worker != who);
            }
        }
        prop_assert!(settled, "the plan is reached");
        let reached: BTreeSet<Held> = site.rows.iter().map(|r| (r.unit, r.worker)).collect();
        prop_assert_eq!(reached, new.held().collect::<BTreeSet<_>>());
        prop_assert_eq!(site.next(&new).rows, site.rows, "nothing more to do");
    }
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
