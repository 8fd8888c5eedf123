//! Which μ-queue each policy runs next, against what the design says of it, in random states.

use super::hosting::{batch, hosting, serving};
use super::*;
use crate::sched::{Choice, Take, View};

/// A worker of both roles that holds all experts of three blocks.
pub(super) fn alone(policy: Policy) -> Bench {
    alone_with(WorkerConfig { policy, ..dense() })
}

pub(super) fn alone_with(config: WorkerConfig) -> Bench {
    let mut b = Bench::new(WorkerConfig {
        host: Some(HostConfig { slots: 12, ring: 4, linger: 0 }),
        shape: Shape { moe: vec![true; 3], ..dense().shape },
        ..config
    });
    let units = (0..12).map(|i| held(ME, unit(i / 4, i % 4))).collect();
    let asked = b.place(1, units);
    b.load(&asked);
    b
}

/// What the scheduler sees of a worker whose device is busy.
fn view(b: &Bench) -> View<'_> {
    let w = &b.worker;
    let (blocks, classes) = (w.config.shape.blocks(), w.config.classes());
    let (rank, host) = (w.rank.as_ref(), w.host.as_ref());
    View { now: b.now, blocks, rank, host, costs: &w.config.costs, cycle: CYCLE, floors: &[], classes }
}

/// Asks at every event of random runs.
fn in_random_states(policy: Policy, ask: impl Fn(&View<'_>, Choice)) {
    let mut asked = 0;
    for seed in 1..=40 {
        let mut b = alone(Policy::Mtfs);
        b.random = Random(seed);
        for request in 1..=60 {
            if b.running.is_none() || b.random.below(3) == 0 {
                let (prompt, tokens) = (1 + b.random.below(6), 1 + b.random.below(6));
                b.bind(bind(request, prompt as u32, tokens as u32));
            } else {
                b.done();
            }
            let view = view(&b);
            if view.attention().count() + view.experts().count() > 1 {
                asked += 1;
                ask(&view, make(policy).choose(&view));
            }
        }
    }
    assert!(asked > 1000, "{asked} states with a choice");
}

/// The queues of a view by (block, whether experts), with the score of each, and the highest score.
fn best(view: &View<'_>, attention: impl Fn(u16, u32) -> f64, experts: impl Fn(u16, u32) -> f64) -> Choice {
    let all = view.attention().map(|q| (attention(q.block, q.rows), q.block, false));
    let all = all.chain(view.experts().map(|q| (experts(q.block, q.largest), q.block, true)));
    // Of equal ones the first.
    let (_, block, is_experts) =
        all.reduce(|a, b| if b.0 > a.0 + 1e-9 { b } else { a }).expect("something waits");
    match is_experts {
        true => Choice::Experts { block, take: Take::Unit(fullest(view, block)) },
        false => Choice::Attention { block, classes: 0b111 },
    }
}

/// The unit of a block with the most rows over all classes; of equals the first.
fn fullest(view: &View<'_>, block: u16) -> u32 {
    let host = view.host.unwrap();
    let rows = |u: u32| (0..3).map(|c| host.queues.queue(u, c).items.len()).sum::<usize>();
    let of = |u: &u32| host.held[*u as usize].as_ref().is_some_and(|h| h.unit.block == block);
    (0..host.held.len() as u32).filter(of).rev().max_by_key(|u| rows(*u)).unwrap()
}

#[test]
fn mtfs_runs_the_queue_with_the_most_tokens() {
    in_random_states(Policy::Mtfs, |view, choice| {
        assert_eq!(choice, best(view, |_, n| f64::from(n), |_, n| f64::from(n)));
    });
}

#[test]
fn flfs_runs_the_first_layer_attention_before_experts_and_the_first_unit() {
    in_random_states(Policy::Flfs, |view, choice| {
        let attention = view.attention().map(|q| (q.block, 0)).min();
        let (block, experts) =
            view.experts().map(|q| (q.block, 1)).min().into_iter().chain(attention).min().unwrap();
        let host = view.host.unwrap();
        let waits = |u: &u32| {
            let held = host.held[*u as usize].as_ref();
            held.is_some_and(|h| h.unit.block == block) && !host.queues.is_empty(*u)
        };
        let due = match (0..12).find(waits) {
            Some(unit) if experts == 1 => Choice::Experts { block, take: Take::Unit(unit) },
            _ => Choice::Attention { block, classes: 0b111 },
        };
        assert_eq!(choice, due);
    });
}

#[test]
fn defrag_runs_the_highest_score_of_algorithm_1() {
    in_random_states(Policy::Defrag, |view, choice| {
        let waiting = |block: usize| -> f64 {
            let attention = view.attention().filter(|q| q.block as usize == block).map(|q| q.rows);
            let experts = view.experts().filter(|q| q.block as usize == block).map(|q| q.rows);
            attention.chain(experts).map(f64::from).sum()
        };
        // Three blocks and the head go round.
        let ahead =
            |b: u16| (1..8).map(|h| 0.8f64.powi(h) * waiting((b as usize + h as usize) % 4)).sum::<f64>();
        let due = best(view, |b, n| f64::from(n) + ahead(b), |b, n| f64::from(n) + ahead(b) / 4.0);
        assert_eq!(choice, due);
    });
}

#[test]
fn nothing_that_waits_is_slept_on() {
    for policy in [Policy::Mtfs, Policy::Flfs, Policy::Defrag, Policy::Frontier, Policy::Sync] {
        let mut b = alone(policy);
        b.random = Random(9);
        for request in 1..=5 {
            b.bind(bind(request, 5, 6));
        }
        let told = b.run();
        let ends = told.iter().filter(|t| t.2 == RankEvent::Finished(Finish::Length)).count();
        assert!(ends == 5 && b.worker.is_empty(), "{}: {told:?}", policy.name());
        assert_eq!(b.worker.counters().urgent, 0);
    }
}

#[test]
fn many_small_experts_run_in_one_launch() {
    for (experts, units) in [(16, 1), (17, 2)] {
        for policy in [Policy::Mtfs, Policy::Flfs, Policy::Defrag] {
            let mut b = Bench::new(WorkerConfig {
                shape: Shape { experts, ..hosting().shape },
                host: Some(HostConfig { slots: 17, ring: 4, linger: 0 }),
                policy,
                ..hosting()
            });
            let asked = b.place(1, (0..experts).map(|e| held(ME, unit(0, e))).collect());
            b.load(&asked);
            let mut rank = b.meet(7, true, None);
            b.hear(&mut rank, Body::Tokens(batch(0, 0, &[(0, 3), (1, 5)])));
            assert_eq!(b.experts().units.len(), units, "{experts} {}", policy.name());
            // Experts that left are no longer held.
            b.run();
            b.place(2, (1..experts).map(|e| held(ME, unit(0, e))).collect());
            b.hear(&mut rank, Body::Tokens(batch(0, 0, &[(0, 3), (1, 5)])));
            assert_eq!(b.experts().units.len(), 1);
        }
    }
}

#[test]
fn of_equal_units_the_first_runs_and_all_its_classes_count() {
    let (mut b, mut rank) = serving(WorkerConfig { policy: Policy::Mtfs, ..hosting() });
    b.receive(&mut rank, Body::Tokens(batch(0, 0, &[(0, 1)])));
    b.receive(&mut rank, Body::Tokens(batch(0, 0, &[(1, 0)])));
    b.settle();
    assert_eq!(b.experts().units[0].unit, unit(0, 0));
    // Expert 1 has two rows now, over two classes.
    b.hear(&mut rank, Body::Tokens(batch(1, 0, &[(2, 1)])));
    b.hear(&mut rank, Body::Tokens(batch(0, 0, &[(3, 0)])));
    b.done();
    assert_eq!((b.experts().units[0].unit, b.experts().items.len()), (unit(0, 1), 2));
}
