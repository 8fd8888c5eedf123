//! Plans whose outcome is known.

use sluice_core::cost::Curve;
use sluice_core::ids::{Slice, Unit, WorkerId};
use sluice_core::placement::ReplicaState;
use sluice_planner::{Bounds, Load, Plan, PlanError, Reason, Replicas, Request, Source, Worker, plan};
use std::collections::BTreeMap;

fn workers(count: u32, slots: u32) -> Vec<Worker> {
    (0..count).map(|id| Worker { id: WorkerId(id), slots }).collect()
}

/// Weights take 4, a row 0.05: the knee is at 80 rows.
fn roofline() -> Curve {
    Curve::new(vec![(80.0, 4.0), (160.0, 8.0)])
}

/// Rows of 8 experts, falling by a factor each.
fn skewed(total: f64, factor: f64) -> Load {
    let shares: Vec<f64> = (0..8).map(|expert| f64::powi(factor, expert)).collect();
    let sum: f64 = shares.iter().sum();
    Load { rows: vec![shares.iter().map(|share| total * share / sum).collect()] }
}

fn per_worker(plan: &Plan) -> BTreeMap<(u16, u32), usize> {
    let mut count = BTreeMap::new();
    for (unit, worker) in plan.held() {
        *count.entry((unit.block, worker.0)).or_default() += 1;
    }
    count
}

fn holders(plan: &Plan, block: u16, expert: u16) -> Vec<u32> {
    let of = plan.units.iter().filter(|unit| (unit.unit.block, unit.unit.expert) == (block, expert));
    of.flat_map(|unit| unit.holders.iter().map(|holder| holder.worker.0)).collect()
}

fn source(plan: &Plan) -> Source {
    match plan.reasons[0] {
        Reason::From { source, .. } => source,
        ref other => panic!("{other}"),
    }
}

fn copied(plan: &Plan) -> Vec<Unit> {
    let copied = plan.reasons.iter().filter_map(|reason| match reason {
        Reason::Copied { unit, .. } => Some(*unit),
        _ => None,
    });
    copied.collect()
}

#[test]
fn without_a_load_every_block_is_divided_evenly() {
    let request = Request::new(vec![true, false, true, true], 16, workers(4, 12));
    let made = plan(&request).unwrap();
    let count = per_worker(&made);
    assert_eq!(count.len(), 12);
    assert!(count.values().all(|&units| units == 4), "{count:?}");
    assert_eq!((made.pass, made.balance), (12.0, 1.0));
}

#[test]
fn without_a_limit_of_slots_it_is_the_same() {
    let mut request = Request::new(vec![true; 3], 10, workers(4, u32::MAX));
    request.replicas = Replicas::exactly(2);
    let unlimited = plan(&request).unwrap();
    assert!(per_worker(&unlimited).values().all(|&units| units == 5));
    request.workers = workers(4, 15);
    assert_eq!(plan(&request).unwrap().units, unlimited.units);
}

#[test]
fn few_experts_take_turns_over_many_workers() {
    let request = Request::new(vec![true; 4], 2, workers(8, 1));
    let made = plan(&request).unwrap();
    let mut all: Vec<_> = made.held().map(|(_, worker)| worker.0).collect();
    all.sort_unstable();
    assert_eq!(all, (0..8).collect::<Vec<_>>());
}

#[test]
fn without_a_limit_they_still_take_turns() {
    let request = Request::new(vec![true; 4], 2, workers(8, u32::MAX));
    let mut all: Vec<_> = plan(&request).unwrap().held().map(|(_, worker)| worker.0).collect();
    all.sort_unstable();
    assert_eq!(all, (0..8).collect::<Vec<_>>());
}

#[test]
fn below_the_knee_rows_still_count() {
    let mut request = Request::new(vec![true], 4, workers(2, u32::MAX));
    request.cost = Curve::new(vec![(1000.0, 5.0), (2000.0, 10.0)]);
    request.load = Some(Load { rows: vec![vec![10.0, 100.0, 20.0, 90.0]] });
    let made = plan(&request).unwrap();
    assert_eq!((holders(&made, 0, 1), holders(&made, 0, 0)), (vec![0], vec![0]));
    assert_eq!((holders(&made, 0, 3), holders(&made, 0, 2)), (vec![1], vec![1]));
}

#[test]
fn what_is_missing_goes_where_least_is_held() {
    let mut request = Request::new(vec![true], 4, workers(3, u32::MAX));
    request.load = Some(Load { rows: vec![vec![50.0, 30.0, 40.0, 10.0]] });
    request.tolerance = 100.0;
    let unit = |expert| Unit { block: 0, expert, slice: Slice::whole(1) };
    request.current = vec![(unit(0), WorkerId(0)), (unit(1), WorkerId(1)), (unit(3), WorkerId(2))];
    let made = plan(&request).unwrap();
    assert_eq!(made.changes(&request.current).loads, [(unit(2), WorkerId(2))]);
    // Half of expert 0 each: 25, 45 and 20.
    request.replicas.experts.insert((0, 0), Bounds { min: 1, max: 2 });
    request.current =
        vec![(unit(0), WorkerId(0)), (unit(0), WorkerId(1)), (unit(1), WorkerId(2)), (unit(3), WorkerId(1))];
    let made = plan(&request).unwrap();
    assert_eq!(made.changes(&request.current).loads, [(unit(2), WorkerId(0))]);
}

#[test]
fn a_copy_weighs_its_part_of_the_expert() {
    // 40 goes first, then 30 and 30 of the 60, then 20.
    let mut request = Request::new(vec![true], 3, workers(3, u32::MAX));
    request.replicas.experts.insert((0, 0), Bounds { min: 2, max: 2 });
    request.load = Some(Load { rows: vec![vec![60.0, 40.0, 20.0]] });
    let made = plan(&request).unwrap();
    assert_eq!(source(&made), Source::Load);
    assert!((made.pass - 40.0).abs() < 0.2, "{}", made.pass);
}

#[test]
fn workers_without_slots_do_not_count() {
    let mut request = Request::new(vec![true], 4, workers(3, 4));
    request.workers[1].slots = 0;
    let made = plan(&request).unwrap();
    assert_eq!((made.pass, made.balance), (2.0, 1.0));
}

#[test]
fn more_than_the_slots_hold_is_not_kept() {
    let mut request = Request::new(vec![true], 2, workers(2, 1));
    let unit = |expert| Unit { block: 0, expert, slice: Slice::whole(1) };
    request.current = vec![(unit(0), WorkerId(0)), (unit(1), WorkerId(0))];
    let made = plan(&request).unwrap();
    assert_eq!(source(&made), Source::Current);
    assert_eq!((holders(&made, 0, 0), holders(&made, 0, 1)), (vec![0], vec![1]));
}

#[test]
fn replicas_without_a_load_share_evenly() {
    let mut request = Request::new(vec![true], 8, workers(4, 6));
    request.replicas = Replicas::exactly(3);
    let made = plan(&request).unwrap();
    for unit in &made.units {
        assert_eq!(unit.holders.iter().map(|holder| holder.fraction).collect::<Vec<_>>(), [1.0 / 3.0; 3]);
    }
    assert!(per_worker(&made).values().all(|&units| units == 6));
}

#[test]
fn a_heavy_expert_is_kept_apart() {
    let mut request = Request::new(vec![true], 4, workers(2, 3));
    request.load = Some(Load { rows: vec![vec![30.0, 10.0, 10.0, 10.0]] });
    let made = plan(&request).unwrap();
    assert_eq!(source(&made), Source::Load);
    assert_eq!(made.pass, 30.0);
    assert_eq!(made.balance, 1.0);
    let heavy = holders(&made, 0, 0);
    assert!((1..4).all(|expert| holders(&made, 0, expert) != heavy));
}

#[test]
fn a_big_skewed_batch_is_replicated_and_balanced() {
    let mut request = Request::new(vec![true], 8, workers(8, 2));
    request.cost = roofline();
    request.load = Some(skewed(8000.0, 0.6));
    let whole = plan(&request).unwrap();
    request.replicas = Replicas::between(1, 8);
    let made = plan(&request).unwrap();
    assert!(whole.balance < 0.35, "{}", whole.balance);
    assert!(made.balance > 0.9, "{}", made.balance);
    assert!(!copied(&made).is_empty());
    assert!(holders(&made, 0, 0).len() > holders(&made, 0, 7).len());
}

#[test]
fn a_small_batch_stays_whole() {
    let mut request = Request::new(vec![true], 8, workers(8, 3));
    request.cost = roofline();
    request.load = Some(skewed(64.0, 0.6));
    request.replicas = Replicas::between(1, 8);
    let made = plan(&request).unwrap();
    assert_eq!(copied(&made), [], "below the knee a copy gains nothing");
    request.replicas = Replicas::exactly(3);
    let made = plan(&request).unwrap();
    for unit in &made.units {
        let mut fractions: Vec<_> = unit.holders.iter().map(|holder| holder.fraction).collect();
        fractions.sort_by(f64::total_cmp);
        assert_eq!(fractions, [0.0, 0.0, 1.0], "{}", unit.unit);
    }
}

#[test]
fn copies_stop_at_their_maximum_and_at_the_slots() {
    let mut request = Request::new(vec![true], 8, workers(8, 2));
    request.cost = roofline();
    request.load = Some(skewed(8000.0, 0.6));
    request.replicas = Replicas::between(1, 2);
    let made = plan(&request).unwrap();
    assert_eq!(holders(&made, 0, 0).len(), 2);
    request.replicas.experts.insert((0, 0), Bounds { min: 1, max: 3 });
    let made = plan(&request).unwrap();
    assert_eq!(holders(&made, 0, 0).len(), 3);
    request.workers = workers(8, 1);
    assert_eq!(copied(&plan(&request).unwrap()), []);
}

#[test]
fn slices_of_a_hot_expert_are_copied_together() {
    let mut request = Request::new(vec![true], 4, workers(8, 4));
    (request.segments, request.slices) = (8, 2);
    request.replicas = Replicas::between(1, 4);
    request.load = Some(Load { rows: vec![vec![700.0, 100.0, 100.0, 100.0]] });
    let made = plan(&request).unwrap();
    let copies: Vec<_> = made.units[..2].iter().map(|unit| unit.holders.len()).collect();
    assert!(copies.iter().all(|&copies| copies > 1), "{copies:?}");
    assert!(made.balance > 0.9, "{}", made.balance);
    assert_eq!(made.units[0].unit.slice, Slice { lo: 0, hi: 4 });
    assert_eq!(made.units[1].unit.slice, Slice { lo: 4, hi: 8 });
}

#[test]
fn slices_share_workers_only_for_lack_of_them() {
    let mut request = Request::new(vec![true], 2, workers(2, 16));
    (request.segments, request.slices) = (8, 8);
    let made = plan(&request).unwrap();
    assert!(made.reasons.contains(&Reason::SlicesShareWorkers { experts: 2 }));
    let count = per_worker(&made);
    assert_eq!(count.values().copied().collect::<Vec<_>>(), [8, 8]);
    request.workers = workers(8, 2);
    assert_eq!(plan(&request).unwrap().reasons.len(), 1);
}

#[test]
fn uneven_slots_do_not_strand_the_last_units() {
    // Two replicas each: the big worker must hold one of every unit.
    let mut request = Request::new(vec![true, true], 3, workers(3, 3));
    request.workers[2].slots = 6;
    request.replicas = Replicas::exactly(2);
    let made = plan(&request).unwrap();
    assert!(made.units.iter().all(|unit| unit.holders.iter().any(|holder| holder.worker == WorkerId(2))));
}

#[test]
fn tight_slots_leave_the_last_block_as_balanced_as_the_first() {
    // Whatever is heavy in the first blocks, each worker keeps its part of slots for the last one.
    let mut request = Request::new(vec![true; 4], 8, workers(4, 8));
    let rows = vec![50.0, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0];
    request.load = Some(Load { rows: vec![rows; 4] });
    let made = plan(&request).unwrap();
    let count = per_worker(&made);
    assert!((0..4).all(|worker| count.get(&(3, worker)).is_some_and(|&units| units <= 3)), "{count:?}");
}

#[test]
fn the_current_placement_stays_within_the_tolerance() {
    let mut request = Request::new(vec![true], 4, workers(2, 3));
    request.load = Some(Load { rows: vec![vec![30.0, 10.0, 10.0, 10.0]] });
    let unit = |expert| Unit { block: 0, expert, slice: Slice::whole(1) };
    // 40 against 20.
    request.current =
        [(0, 0), (1, 0), (2, 1), (3, 1)].map(|(expert, worker)| (unit(expert), WorkerId(worker))).to_vec();
    request.tolerance = 0.34;
    let kept = plan(&request).unwrap();
    assert_eq!((source(&kept), kept.pass), (Source::Current, 40.0));
    assert_eq!(kept.changes(&request.current), Default::default());
    request.tolerance = 0.33;
    let made = plan(&request).unwrap();
    assert_eq!((source(&made), made.pass), (Source::Load, 30.0));
    let changes = made.changes(&request.current);
    assert!(!changes.loads.is_empty());
    assert_eq!(changes.loads.len(), changes.drops.len());
}

#[test]
fn a_copy_is_tried_before_a_new_placement() {
    let mut request = Request::new(vec![true], 3, workers(3, 3));
    request.replicas = Replicas::between(1, 3);
    request.load = Some(Load { rows: vec![vec![90.0, 30.0, 30.0]] });
    let unit = |expert| Unit { block: 0, expert, slice: Slice::whole(1) };
    request.current =
        [(0, 0), (1, 1), (2, 2)].map(|(expert, worker)| (unit(expert), WorkerId(worker))).to_vec();
    let made = plan(&request).unwrap();
    assert_eq!(source(&made), Source::Current);
    let changes = made.changes(&request.current);
    assert_eq!(changes.drops, []);
    assert_eq!(changes.loads, [(unit(0), WorkerId(1)), (unit(0), WorkerId(2))]);
    assert!(made.pass < 53.0, "{}", made.pass);
}

#[test]
fn what_is_held_beyond_bounds_or_slots_goes() {
    let mut request = Request::new(vec![true], 1, workers(3, 1));
    let unit = Unit { block: 0, expert: 0, slice: Slice::whole(1) };
    let stranger = Unit { block: 7, ..unit };
    request.current = vec![
        (stranger, WorkerId(0)),
        (unit, WorkerId(9)),
        (unit, WorkerId(2)),
        (unit, WorkerId(1)),
        (unit, WorkerId(1)),
    ];
    let made = plan(&request).unwrap();
    assert_eq!(source(&made), Source::Current);
    assert_eq!(holders(&made, 0, 0), [1]);
    request.replicas = Replicas::between(1, 2);
    assert_eq!(holders(&plan(&request).unwrap(), 0, 0), [1, 2]);
    // Only strangers: nothing to keep.
    request.current.truncate(2);
    assert_eq!(source(&plan(&request).unwrap()), Source::Even);
}

#[test]
fn a_plan_becomes_placement_slices() {
    let mut request = Request::new(vec![true, false, true, true, true], 2, workers(2, 8));
    request.replicas = Replicas::exactly(2);
    let made = plan(&request).unwrap();
    let slices = made.placement(5, 2, 3);
    assert_eq!(slices.iter().map(|slice| slice.blocks.clone()).collect::<Vec<_>>(), [0..2, 2..4, 4..5]);
    let rows: Vec<_> = slices.iter().map(|slice| slice.replicas.len()).collect();
    assert_eq!(rows, [4, 8, 4]);
    let replicas: Vec<_> = slices.iter().flat_map(|slice| &slice.replicas).collect();
    assert!(replicas.iter().all(|r| r.state == ReplicaState::Active && r.fraction == 0.5));
    assert!(slices.iter().all(|slice| slice.generation == 3));
    assert!(slices.iter().all(|s| s.replicas.iter().all(|r| s.blocks.contains(&r.unit.block))));
    assert_eq!(
        replicas.iter().map(|r| (r.unit, r.worker)).collect::<Vec<_>>(),
        made.held().collect::<Vec<_>>()
    );
    assert_eq!(made.placement(5, 0, 3).len(), 5);
    assert_eq!(made.placement(5, u16::MAX, 3).len(), 1);
}

#[test]
fn a_dense_model_has_an_empty_plan() {
    let made = plan(&Request::new(vec![false; 3], 0, Vec::new())).unwrap();
    assert_eq!((made.units.len(), made.pass, made.balance), (0, 0.0, 1.0));
}

#[test]
fn an_unmeasured_block_counts_as_even() {
    let mut request = Request::new(vec![true; 2], 4, workers(2, 4));
    request.load = Some(Load { rows: vec![vec![0.0; 4], vec![4.0, 0.0, 0.0, 0.0]] });
    let made = plan(&request).unwrap();
    let count = per_worker(&made);
    assert_eq!((count[&(0, 0)], count[&(0, 1)]), (2, 2));
    assert_eq!(made.pass, 6.0);
}

#[test]
fn reasons_are_sentences() {
    let from = Reason::From {
        source: Source::Current,
        passes: vec![(Source::Even, 2.5), (Source::Load, 2.0), (Source::Current, 2.0)],
    };
    assert_eq!(
        from.to_string(),
        "placement taken: current; predicted pass even 2.500000, by load 2.000000, current 2.000000"
    );
    let unit = Unit { block: 3, expert: 7, slice: Slice::whole(1) };
    assert_eq!(
        Reason::Copied { unit, worker: WorkerId(1) }.to_string(),
        "expert 7 of block 3 (segments 0..1) also on worker 1: it shortens the block's longest step"
    );
    let shared = Reason::SlicesShareWorkers { experts: 2 }.to_string();
    assert_eq!(shared, "slices of 2 experts share a worker: too few workers have free slots");
}

type Spoil = fn(&mut Request);

#[test]
fn each_contradiction_has_its_name() {
    let cases: Vec<(Spoil, PlanError)> = vec![
        (|r| r.segments = 3, PlanError::Segments(3)),
        (|r| r.slices = 0, PlanError::Slices { slices: 0, segments: 8 }),
        (|r| r.slices = 3, PlanError::Slices { slices: 3, segments: 8 }),
        (|r| r.moe = vec![false; 65536], PlanError::Blocks(65536)),
        (|r| r.experts = 0, PlanError::NoExperts(1)),
        (|r| r.tolerance = -0.1, PlanError::Tolerance(-0.1)),
        (|r| r.tolerance = f64::INFINITY, PlanError::Tolerance(f64::INFINITY)),
        (
            |r| r.replicas = Replicas::between(0, 1),
            PlanError::Bounds { what: "every expert".into(), min: 0, max: 1 },
        ),
        (
            |r| {
                r.replicas.experts.insert((1, 3), Bounds { min: 3, max: 2 });
            },
            PlanError::Bounds { what: "expert 3 of block 1".into(), min: 3, max: 2 },
        ),
        (
            |r| {
                r.replicas.experts.insert((0, 0), Bounds { min: 1, max: 1 });
            },
            PlanError::UnknownExpert { block: 0, expert: 0 },
        ),
        (
            |r| {
                r.replicas.experts.insert((1, 4), Bounds { min: 1, max: 1 });
            },
            PlanError::UnknownExpert { block: 1, expert: 4 },
        ),
        (|r| r.workers[1].id = WorkerId(0), PlanError::DuplicateWorker(WorkerId(0))),
        (
            |r| r.replicas = Replicas::exactly(4),
            PlanError::TooFewWorkers { block: 1, expert: 0, replicas: 4, workers: 3 },
        ),
        (|r| r.replicas = Replicas::exactly(2), PlanError::TooFewSlots { needed: 8, have: 7 }),
        (
            |r| {
                r.replicas = Replicas::exactly(2);
                r.workers = workers(2, 1);
                r.workers[0].slots = 100;
            },
            PlanError::SlotsTooUneven { units: 4, needed: 8, have: 5 },
        ),
        (|r| r.load = Some(Load { rows: vec![] }), PlanError::LoadBlocks { found: 0, expected: 2 }),
        (
            |r| r.load = Some(Load { rows: vec![vec![1.0], vec![1.0; 4]] }),
            PlanError::LoadShape { block: 0, found: 1, expected: 0 },
        ),
        (
            |r| r.load = Some(Load { rows: vec![vec![], vec![1.0; 3]] }),
            PlanError::LoadShape { block: 1, found: 3, expected: 4 },
        ),
        (
            |r| r.load = Some(Load { rows: vec![vec![], vec![1.0, 1.0, -1.0, 1.0]] }),
            PlanError::LoadValue { block: 1, expert: 2, value: -1.0 },
        ),
        (
            |r| r.load = Some(Load { rows: vec![vec![], vec![f64::INFINITY, 1.0, 1.0, 1.0]] }),
            PlanError::LoadValue { block: 1, expert: 0, value: f64::INFINITY },
        ),
    ];
    let mut good = Request::new(vec![false, true], 4, workers(3, 2));
    good.workers[2].slots = 3;
    good.segments = 8;
    plan(&good).unwrap();
    for (spoil, error) in cases {
        let mut request = good.clone();
        spoil(&mut request);
        assert_eq!(plan(&request), Err(error));
    }
}
