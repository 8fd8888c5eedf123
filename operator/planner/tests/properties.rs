//! What holds of every plan, over random requests.

use proptest::collection::vec;
use proptest::prelude::*;
use sluice_core::cost::Curve;
use sluice_core::ids::{Unit, WorkerId};
use sluice_planner::Reason;
use sluice_planner::{Bounds, Load, Plan, PlanError, Replicas, Request, Source, Worker, plan};
use std::collections::{BTreeMap, BTreeSet};

fn cost() -> impl Strategy<Value = Curve> {
    prop_oneof![
        Just(Curve::default()),
        (1.0..50.0f64, 0.1..10.0f64, 0.0..2.0f64)
            .prop_map(|(knee, flat, slope)| { Curve::new(vec![(knee, flat), (knee + 1.0, flat + slope)]) }),
    ]
}

fn slicing() -> impl Strategy<Value = (u8, u8)> {
    prop_oneof![Just((1, 1)), Just((8, 1)), Just((2, 2)), Just((8, 2)), Just((4, 4)), Just((8, 8))]
}

fn request() -> impl Strategy<Value = Request> {
    (vec(any::<bool>(), 0..4), 1u16..7, slicing(), cost(), any::<bool>()).prop_flat_map(
        |(moe, experts, (segments, slices), cost, loaded)| {
            let blocks = moe.len() as u16;
            let load: Vec<_> = moe
                .iter()
                .map(|&moe| {
                    vec(
                        prop_oneof![1 => Just(0.0), 4 => 0.0..300.0f64],
                        if moe { experts as usize } else { 0 },
                    )
                })
                .collect();
            let workers = vec((0u32..40, prop_oneof![1 => 0u32..6, 3 => 0u32..120]), 0..9);
            let bounds = (1u32..4, 0u32..3);
            let own = vec((0..blocks.max(1), 0..experts, 1u32..5, 0u32..3), 0..3);
            (load, workers, bounds, own, 0.0..0.3f64).prop_map(
                move |(load, workers, bounds, own, tolerance)| {
                    let slots: BTreeMap<u32, u32> = workers.into_iter().collect();
                    let workers =
                        slots.iter().map(|(&id, &slots)| Worker { id: WorkerId(id), slots }).collect();
                    let mut replicas = Replicas::between(bounds.0, bounds.0 + bounds.1);
                    for (block, expert, min, more) in own {
                        if moe.get(block as usize) == Some(&true) {
                            replicas.experts.insert((block, expert), Bounds { min, max: min + more });
                        }
                    }
                    let mut request = Request::new(moe.clone(), experts, workers);
                    request.segments = segments;
                    request.slices = slices;
                    request.replicas = replicas;
                    request.load = loaded.then_some(Load { rows: load });
                    request.cost = cost.clone();
                    request.tolerance = tolerance;
                    request
                },
            )
        },
    )
}

/// Rows of a unit, as the documentation of [`Load`] has it.
fn rows(request: &Request, unit: Unit) -> f64 {
    let Some(load) = &request.load else { return 1.0 };
    let block = &load.rows[unit.block as usize];
    if block.iter().sum::<f64>() > 0.0 { block[unit.expert as usize] } else { 1.0 }
}

fn time(request: &Request, rows: f64) -> f64 {
    match &request.cost {
        curve if curve.is_empty() => rows,
        curve if rows < 1.0 => rows * curve.at(1.0),
        curve => curve.at(rows),
    }
}

fn pass(request: &Request, plan: &Plan) -> f64 {
    let mut times: BTreeMap<u16, BTreeMap<WorkerId, f64>> = BTreeMap::new();
    for unit in &plan.units {
        for holder in &unit.holders {
            let time = time(request, rows(request, unit.unit) * holder.fraction);
            *times.entry(unit.unit.block).or_default().entry(holder.worker).or_default() += time;
        }
    }
    times.values().map(|block| block.values().copied().fold(0.0, f64::max)).sum()
}

fn check(request: &Request, plan: &Plan) {
    let mut expected = BTreeSet::new();
    for block in (0..request.moe.len()).filter(|&block| request.moe[block]) {
        for expert in 0..request.experts {
            for part in 0..request.slices {
                expected.insert((block as u16, expert, part));
            }
        }
    }
    let width = request.segments / request.slices;
    let found: Vec<_> =
        plan.units.iter().map(|u| (u.unit.block, u.unit.expert, u.unit.slice.lo / width)).collect();
    assert!(found.is_sorted());
    assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), expected);
    assert_eq!(plan.units.len(), expected.len());

    let mut used: BTreeMap<WorkerId, u32> = BTreeMap::new();
    for unit in &plan.units {
        assert_eq!(unit.unit.slice.hi - unit.unit.slice.lo, width);
        let bounds = request.replicas.of(unit.unit.block, unit.unit.expert);
        let copies = unit.holders.len() as u32;
        assert!(bounds.min <= copies && copies <= bounds.max, "{}: {copies} copies of {bounds:?}", unit.unit);
        if request.load.is_none() {
            assert_eq!(copies, bounds.min);
        }
        let ids: Vec<_> = unit.holders.iter().map(|holder| holder.worker).collect();
        assert!(ids.windows(2).all(|pair| pair[0] < pair[1]), "{}: {ids:?}", unit.unit);
        let sum: f64 = unit.holders.iter().map(|holder| holder.fraction).sum();
        assert!((sum - 1.0).abs() < 1e-9, "{}: fractions sum to {sum}", unit.unit);
        assert!(unit.holders.iter().all(|holder| holder.fraction >= 0.0));
        for id in ids {
            *used.entry(id).or_default() += 1;
        }
    }
    let slots: BTreeMap<_, _> = request.workers.iter().map(|worker| (worker.id, worker.slots)).collect();
    for (id, used) in used {
        assert!(slots.get(&id).is_some_and(|&slots| used <= slots), "{id} holds {used}");
    }
    let pass = pass(request, plan);
    assert!((pass - plan.pass).abs() <= 1e-9 * pass.max(1.0), "{} for {pass}", plan.pass);
    assert!(plan.balance > 0.0 && plan.balance <= 1.0 + 1e-9, "{}", plan.balance);
}

/// What the errors claim must be so.
fn check_error(request: &Request, error: &PlanError) {
    let slots: u64 = request.workers.iter().map(|worker| u64::from(worker.slots)).sum();
    match *error {
        PlanError::TooFewWorkers { block, expert, replicas, workers } => {
            assert_eq!(replicas, request.replicas.of(block, expert).min);
            assert_eq!(workers, request.workers.iter().filter(|worker| worker.slots > 0).count());
            assert!(replicas as usize > workers);
        }
        PlanError::TooFewSlots { needed, have } => {
            assert_eq!(have, slots);
            assert!(needed > have);
        }
        PlanError::SlotsTooUneven { needed, have, .. } => assert!(needed > have && have < slots),
        ref other => panic!("{other}"),
    }
}

fn workers_apart(request: &Request, plan: &Plan) -> bool {
    let mut held = BTreeSet::new();
    plan.units.iter().all(|unit| {
        unit.holders.iter().all(|holder| held.insert((unit.unit.block, unit.unit.expert, holder.worker)))
    }) || request.slices == 1
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_is_whole_or_says_what_is_short(request in request()) {
        match plan(&request) {
            Ok(made) => check(&request, &made),
            Err(error) => check_error(&request, &error),
        }
    }

    #[test]
    fn the_order_of_workers_does_not_matter(request in request(), turn in 0usize..9) {
        let mut turned = request.clone();
        if !turned.workers.is_empty() {
            let by = turn % turned.workers.len();
            turned.workers.rotate_left(by);
        }
        prop_assert_eq!(plan(&request), plan(&turned));
    }

    #[test]
    fn a_plan_of_a_plan_changes_nothing(mut request in request()) {
        let Ok(first) = plan(&request) else { return Ok(()) };
        request.current = first.held().collect();
        let second = plan(&request).unwrap();
        prop_assert_eq!(&second.units, &first.units);
        prop_assert_eq!(second.changes(&request.current), Default::default());
    }

    #[test]
    fn knowing_the_load_is_never_worse(request in request()) {
        if request.load.is_none() {
            return Ok(());
        }
        let mut blind = request.clone();
        blind.load = None;
        let (Ok(with), Ok(without)) = (plan(&request), plan(&blind)) else { return Ok(()) };
        // What the blind placement is worth under the load: keep it whatever it costs.
        let mut keep = request.clone();
        keep.current = without.held().collect();
        keep.tolerance = 1e12;
        let kept = plan(&keep).unwrap();
        prop_assert!(request.workers.is_empty() || kept.changes(&keep.current) == Default::default());
        prop_assert!(with.pass <= kept.pass + 1e-9, "{} with the load, {} without", with.pass, kept.pass);
    }

    #[test]
    fn slices_are_apart_where_there_is_room(mut request in request(), count in 1u32..3, more in 0u32..3) {
        let per_worker = request.moe.len() as u32 * u32::from(request.experts) * u32::from(request.slices) * 2;
        let workers = u32::from(request.slices) * count + more;
        request.workers = (0..workers).map(|id| Worker { id: WorkerId(id), slots: per_worker.max(1) }).collect();
        request.replicas = Replicas::between(count, count + 1);
        let made = plan(&request).unwrap();
        check(&request, &made);
        prop_assert!(workers_apart(&request, &made));
    }

    #[test]
    fn a_lost_worker_costs_no_other_move(mut request in request(), lost in 0usize..9) {
        request.tolerance = 1e12;
        let Ok(first) = plan(&request) else { return Ok(()) };
        let Some(lost) = lost.checked_rem(request.workers.len()) else { return Ok(()) };
        let lost = request.workers.remove(lost).id;
        request.current = first.held().collect();
        let Ok(second) = plan(&request) else { return Ok(()) };
        check(&request, &second);
        let Reason::From { source, .. } = second.reasons[0] else { panic!("the first reason is where it comes from") };
        if source == Source::Current {
            let changes = second.changes(&request.current);
            prop_assert!(changes.drops.iter().all(|&(_, worker)| worker == lost));
            prop_assert!(changes.loads.len() <= changes.drops.len());
        }
    }
}
