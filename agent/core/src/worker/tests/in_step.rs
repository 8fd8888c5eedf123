//! The barrier-synchronous baseline: nobody starts a step before all have announced the end of the one before.

use super::*;
use crate::frame::StepEnd;

/// The ends that were announced: (step, data frames sent before it, whether busy).
fn ends(actions: &[Action]) -> Vec<(u64, u64, bool)> {
    let end = |(_, body): (WorkerId, &Body)| match body {
        Body::StepEnd(e) => Some((e.step, e.frames, e.busy)),
        _ => None,
    };
    sent(actions).into_iter().filter_map(end).collect()
}

fn end(step: u64, frames: u64) -> Body {
    Body::StepEnd(StepEnd { step, frames, busy: true })
}

fn in_step() -> Bench {
    Bench::new(WorkerConfig { policy: Policy::Sync, ..dense() })
}

#[test]
fn a_step_begins_when_all_have_ended_the_one_before() {
    let mut b = in_step();
    let mut peers = [6, 7].map(|w| b.meet(w, true, None));
    b.bind(bind(1, 4, 2));
    assert_eq!(b.attention().blocks, 0..1);
    let told = ends(&b.done());
    assert_eq!(told, [(0, 0, true), (0, 0, true)], "to each");
    // Experts of block 0, then attention of block 1.
    assert!(b.hear(&mut peers[0], end(0, 0)).is_empty());
    assert_eq!(ends(&b.hear(&mut peers[1], end(0, 0))), [(1, 0, true), (1, 0, true)], "nothing to do in it");
    b.hear(&mut peers[0], end(1, 0));
    assert!(b.running.is_none());
    b.hear(&mut peers[1], end(1, 0));
    assert_eq!(b.attention().blocks, 1..2);
    assert_eq!(b.worker.wake(), None);
}

#[test]
fn who_has_nothing_follows_only_steps_that_another_announced() {
    let mut b = in_step();
    let mut peer = b.meet(6, true, None);
    assert!(b.handle(Event::Tick).is_empty());
    assert_eq!(ends(&b.hear(&mut peer, end(0, 0))), [(0, 0, false)]);
    assert_eq!(ends(&b.hear(&mut peer, end(1, 0))), [(1, 0, false)]);
    assert!(b.handle(Event::Tick).is_empty());
    b.hear(&mut peer, end(2, 1));
    assert!(b.handle(Event::Tick).is_empty(), "its data frames have not arrived");
    let data = Body::Returns(ReturnBatch { rows: vec![], items: vec![], freed: vec![] });
    b.hear(&mut peer, data);
    b.bind(bind(1, 4, 2));
    assert!(b.running.is_none(), "the round is at the experts of block 1, and goes on when all are there");
    assert_eq!(ends(&b.hear(&mut peer, end(3, 1))), [(4, 0, true)]);
}

#[test]
fn who_is_alone_goes_round() {
    let mut b = Bench::new(WorkerConfig {
        policy: Policy::Sync,
        shape: Shape { moe: vec![false; 3], ..dense().shape },
        ..dense()
    });
    for request in 1..=3 {
        b.bind(bind(request, 4, 3));
        b.done();
    }
    let told = b.run();
    assert_eq!(told.iter().filter(|t| t.2 == RankEvent::Finished(Finish::Length)).count(), 3);
    assert!(b.worker.is_empty());
    assert_eq!(b.worker.counters().urgent, 0);
}

#[test]
fn nothing_is_released_by_age() {
    let mut b = in_step();
    let _peer = b.meet(6, true, None);
    b.bind(bind(1, 4, 2));
    b.done();
    b.tick(100 * CYCLE);
    assert!(b.running.is_none());
    assert_eq!((b.worker.oldest(b.now), b.worker.counters().urgent), (None, 0));
}

#[test]
fn an_end_tells_the_data_frames_sent_before_it() {
    let (mut b, _) =
        super::asking::beside(WorkerConfig { policy: Policy::Sync, ..super::asking::asking() }, 8);
    b.bind(bind(1, 1, 2));
    assert_eq!(ends(&b.done()), [(0, 1, true)]);
}
