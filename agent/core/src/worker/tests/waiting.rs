//! What the frontier lets run, and how long an idle worker waits for more.

use super::hosting::{batch, hosting, serving};
use super::*;
use crate::cost::Curve;
use crate::ids::IDLE;

/// A straight line through the origin.
fn line(per_row: f64) -> Curve {
    Curve::new(vec![(1.0, per_row), (2.0, 2.0 * per_row)])
}

/// Flat up to eight rows, then steep.
fn knee() -> Curve {
    Curve::new(vec![(1.0, 100.0), (8.0, 100.0), (16.0, 900.0)])
}

/// A host of two experts per block, under `frontier`, whose expert steps cost this.
fn waits(unit: Curve, launch: Nanos) -> (Bench, Peer) {
    let costs = Costs { unit, launch, ..Costs::default() };
    serving(WorkerConfig { policy: Policy::Frontier, costs, ..hosting() })
}

fn mark(order: u64, progress: Progress, frames: u64) -> Mark {
    Mark { class: Class(0), order, progress, frames, tokens: 8, blocked: false, cycle: CYCLE }
}

#[test]
fn a_batch_runs_when_the_frontier_has_passed_it() {
    let (mut b, mut rank) = waits(Curve::default(), 0);
    b.hear(&mut rank, Body::Mark(mark(1, 2, 0)));
    b.hear(&mut rank, Body::Tokens(batch(0, 2, &[(0, 0)])));
    assert!(b.running.is_none(), "more of progress 2 can still come");
    b.hear(&mut rank, Body::Mark(mark(2, 3, 2)));
    assert!(b.running.is_none(), "the mark was sent behind a second batch");
    let second = TokenBatch { frames: 1, ..batch(0, 2, &[(1, 0), (2, 1)]) };
    b.hear(&mut rank, Body::Tokens(second));
    assert_eq!((b.experts().units.len(), b.experts().items.len()), (2, 3), "the whole block in one launch");
    b.done();
    b.hear(&mut rank, Body::Tokens(TokenBatch { frames: 2, ..batch(0, 2, &[(0, 0), (1, 1)]) }));
    assert!(b.running.is_some(), "a token below the frontier runs at once");
    assert_eq!(b.worker.counters().late, 2);
}

#[test]
fn nobody_waits_for_a_rank_that_is_idle_or_blocked_or_silent() {
    let tokens = || Body::Tokens(batch(0, 2, &[(0, 0)]));
    for free in [mark(2, IDLE, 1), Mark { blocked: true, ..mark(2, 2, 1) }] {
        let (mut b, mut rank) = waits(knee(), 0);
        b.hear(&mut rank, Body::Mark(mark(1, 2, 0)));
        b.hear(&mut rank, tokens());
        assert!(b.running.is_none());
        b.hear(&mut rank, Body::Mark(free));
        assert!(b.running.is_some(), "{free:?}");
    }
    let (mut b, mut rank) = waits(knee(), 0);
    b.now = 50;
    b.hear(&mut rank, Body::Mark(mark(1, 2, 0)));
    b.now = 60;
    b.hear(&mut rank, tokens());
    b.hear(&mut rank, Body::Mark(mark(2, 2, 1)));
    let silent = 50 + 3 * CYCLE;
    assert_eq!(b.worker.wake(), Some(silent), "saying the same again is no advance");
    b.tick(silent - 1);
    assert!(b.running.is_none());
    b.tick(silent);
    assert!(b.running.is_some());
    assert_eq!(b.worker.counters().urgent, 0);
}

#[test]
fn every_rank_is_waited_for() {
    let (mut b, mut rank) = waits(knee(), 0);
    let mut other = b.meet(8, true, None);
    b.hear(&mut rank, Body::Mark(mark(1, 3, 0)));
    b.hear(&mut other, Body::Mark(mark(1, 2, 0)));
    b.hear(&mut rank, Body::Tokens(batch(0, 2, &[(0, 0)])));
    assert!(b.running.is_none());
    b.hear(&mut other, Body::Mark(Mark { class: Class(1), ..mark(2, 9, 0) }));
    assert!(b.running.is_none(), "a mark of another wave");
    b.hear(&mut other, Body::Mark(mark(3, 3, 0)));
    assert!(b.running.is_some());
}

#[test]
fn an_incomplete_batch_runs_if_at_most_a_fifth_of_it_would_be_paid_again() {
    // A hundred per row, and the launch of two units at two hundred: n rows now save n / (n + 1).
    for (rows, runs) in [(3, false), (4, true)] {
        let (mut b, mut rank) = waits(line(100.0), 200);
        b.hear(&mut rank, Body::Mark(mark(1, 2, 0)));
        let items: Vec<_> = (0..rows).map(|row| (row, 0)).collect();
        b.hear(&mut rank, Body::Tokens(batch(0, 2, &items)));
        assert_eq!(b.running.is_some(), runs, "{rows} rows");
    }
    // Four rows of a step that is flat up to eight: whatever more than four comes late costs as much again. Of the
    // rank's tokens half are expected at this unit.
    for (tokens, runs) in [(9, false), (10, true)] {
        let (mut b, mut rank) = waits(knee(), 0);
        b.hear(&mut rank, Body::Mark(Mark { tokens, ..mark(1, 2, 0) }));
        b.hear(&mut rank, Body::Tokens(batch(0, 2, &[(0, 0), (1, 0), (2, 0), (3, 0)])));
        assert_eq!(b.running.is_some(), runs, "{tokens} tokens");
    }
    let (mut b, mut rank) = waits(knee(), 0);
    b.hear(&mut rank, Body::Mark(mark(1, 2, 0)));
    b.hear(&mut rank, Body::Tokens(batch(0, 2, &[(0, 0)])));
    assert!(b.running.is_none());
    b.hear(&mut rank, Body::Mark(Mark { tokens: 0, ..mark(2, 2, 1) }));
    assert!(b.running.is_some(), "nothing is missing");
}

#[test]
fn only_what_may_run_goes_along() {
    let (mut b, mut rank) = waits(line(100.0), 200);
    b.hear(&mut rank, Body::Mark(mark(1, 2, 0)));
    b.hear(&mut rank, Body::Tokens(batch(0, 2, &[(0, 0), (0, 1), (1, 0), (2, 0), (3, 0)])));
    assert_eq!((b.experts().units.len(), b.experts().items.len()), (1, 4), "expert 1 waits for more");
    b.hear(&mut rank, Body::Mark(mark(2, 3, 1)));
    b.done();
    assert_eq!(b.experts().units[0].unit, unit(0, 1));
}

#[test]
fn complete_before_useful_and_least_progress_first() {
    let (mut b, mut rank) = waits(line(100.0), 0);
    b.hear(&mut rank, Body::Mark(mark(1, 4, 0)));
    b.receive(&mut rank, Body::Tokens(batch(0, 5, &[(0, 0)])));
    b.receive(&mut rank, Body::Tokens(TokenBatch { frames: 1, ..batch(0, 4, &[(1, 0)]) }));
    b.receive(&mut rank, Body::Mark(mark(2, 5, 2)));
    b.settle();
    assert_eq!(b.experts().block, 0, "progress 4 is complete, 5 only useful");
    b.done();
    assert_eq!(b.experts().block, 1);
    b.receive(&mut rank, Body::Tokens(TokenBatch { frames: 2, ..batch(0, 6, &[(2, 0)]) }));
    b.receive(&mut rank, Body::Tokens(TokenBatch { frames: 3, ..batch(0, 7, &[(3, 0)]) }));
    b.done();
    assert_eq!(b.experts().block, 0, "of two useful ones the least progress");
}

#[test]
fn of_two_waves_the_one_that_waits_longest_goes_first() {
    for first in [0, 1] {
        let (mut b, mut rank) = waits(Curve::default(), 0);
        b.receive(&mut rank, Body::Tokens(batch(first, 5, &[(0, 0)])));
        b.now = 1;
        b.receive(&mut rank, Body::Tokens(batch(1 - first, 4, &[(1, 0)])));
        b.settle();
        assert_eq!(b.experts().block, 1, "wave {first} came first");
    }
    let (mut b, mut rank) = waits(Curve::default(), 0);
    b.receive(&mut rank, Body::Tokens(batch(1, 5, &[(0, 0)])));
    b.receive(&mut rank, Body::Tokens(batch(0, 4, &[(1, 0)])));
    b.settle();
    assert_eq!(b.experts().block, 0, "of equal ones the first wave");
}

#[test]
fn a_token_that_waited_four_cycles_releases_its_queue_at_most_every_second_step() {
    let (mut b, mut rank) = waits(Curve::default(), 0);
    // A rank that always goes on a little, so that it never counts as silent.
    let mut order = 0;
    let mut advance = |b: &mut Bench, rank: &mut Peer, progress, frames| {
        order += 1;
        b.hear(rank, Body::Mark(mark(order, progress, frames)));
    };
    b.now = 10;
    advance(&mut b, &mut rank, 1, 0);
    b.hear(&mut rank, Body::Tokens(batch(0, 2, &[(0, 0), (0, 1)])));
    b.now = 20;
    b.hear(&mut rank, Body::Tokens(TokenBatch { frames: 1, ..batch(0, 3, &[(1, 0)]) }));
    b.now = 2 * CYCLE;
    advance(&mut b, &mut rank, 2, 2);
    let due = 10 + 4 * CYCLE;
    assert_eq!((b.worker.wake(), b.worker.oldest(b.now)), (Some(due), Some((10, due))));
    b.tick(due - 1);
    assert!(b.running.is_none());
    b.tick(due);
    assert_eq!((b.experts().units[0].unit, b.experts().units.len()), (unit(0, 0), 1), "its queue, no other");
    assert_eq!(b.worker.counters().urgent, 1);
    // Both others are due by now, and nothing else may run: the bound alone decides.
    b.now = due + 20;
    b.done();
    assert_eq!((b.experts().units[0].unit, b.worker.counters().urgent), (unit(0, 1), 2));
    b.done();
    assert_eq!((b.experts().units[0].unit, b.worker.counters().urgent), (unit(1, 0), 3));
}

#[test]
fn between_two_releases_the_scheduler_has_its_turn() {
    let (mut b, mut rank) = waits(Curve::default(), 0);
    b.hear(&mut rank, Body::Mark(mark(1, 2, 0)));
    b.hear(&mut rank, Body::Tokens(batch(0, 2, &[(0, 0), (0, 1)])));
    b.now = 2 * CYCLE;
    b.hear(&mut rank, Body::Mark(Mark { blocked: true, ..mark(2, 2, 1) }));
    assert!(b.running.is_some(), "runs both");
    // While that runs, three more come; when they are due, a complete one of another wave is there too.
    b.receive(&mut rank, Body::Mark(mark(3, 1, 1)));
    b.receive(&mut rank, Body::Tokens(TokenBatch { frames: 1, ..batch(0, 2, &[(1, 0), (1, 1)]) }));
    b.now = 6 * CYCLE;
    b.receive(&mut rank, Body::Mark(mark(4, 2, 2)));
    b.receive(&mut rank, Body::Mark(Mark { class: Class(1), ..mark(5, 9, 0) }));
    b.receive(&mut rank, Body::Tokens(batch(1, 3, &[(2, 0)])));
    b.done();
    assert_eq!((b.experts().units[0].unit, b.worker.counters().urgent), (unit(0, 0), 1));
    b.done();
    assert_eq!((b.experts().units[0].unit, b.worker.counters().urgent), (unit(1, 0), 1), "its turn");
    b.done();
    assert_eq!((b.experts().units[0].unit, b.worker.counters().urgent), (unit(0, 1), 2));
}

#[test]
fn a_units_share_of_its_blocks_tokens_is_what_was_seen_once_enough_was() {
    let (mut b, mut rank) =
        serving(WorkerConfig { host: Some(HostConfig { slots: 4, ring: 5, linger: 0 }), ..hosting() });
    let share = |b: &Bench, unit| b.worker.host.as_ref().unwrap().share(unit);
    let mut frames = 0;
    let mut see = |b: &mut Bench, step_rows, items: &[(u32, u16)]| {
        b.receive(&mut rank, Body::Tokens(TokenBatch { step_rows, frames, ..batch(0, 0, items) }));
        frames += 1;
    };
    see(&mut b, 511, &[(0, 0), (0, 1), (1, 0), (2, 0)]);
    assert_eq!([0, 1, 2].map(|u| share(&b, u)), [0.5; 3], "top 2 of 4 experts");
    see(&mut b, 1, &[(3, 0)]);
    assert_eq!([0, 1, 2].map(|u| share(&b, u)), [4.0 / 512.0, 1.0 / 512.0, 0.5], "of its own block");
    see(&mut b, 0, &[(4, 0)]);
    assert_eq!(share(&b, 0), 4.0 / 512.0, "an item of another step than its rows were counted with");
    // What is old fades: 8192 rows stay, one more halves them.
    see(&mut b, 8192 - 512, &[]);
    assert_eq!(share(&b, 0), 4.0 / 8192.0);
    see(&mut b, 1, &[]);
    assert_eq!([0, 1].map(|u| share(&b, u)), [2.0, 0.5].map(|items: f32| f64::from(items / 4096.5)));
}
