//! The rank decides who comes in, who has to go, and in which order.

use super::*;

const ACCEPTED: RankEvent = RankEvent::Accepted;
const BUSY: RankEvent = RankEvent::Refused(Refusal::Busy);
const BACK: RankEvent = RankEvent::HandedBack;

fn over(why: Finish) -> RankEvent {
    RankEvent::Finished(why)
}

fn attempt(attempt: Attempt, bind: Bind) -> Bind {
    Bind { attempt, ..bind }
}

#[test]
fn only_a_newer_attempt_takes_the_place_of_a_running_one() {
    let mut b = Bench::new(dense());
    assert_eq!(b.bind(attempt(2, bind(1, 4, 4))), [(1, 2, ACCEPTED)]);
    for stale in [1, 2] {
        assert!(b.handle(Event::Bind(attempt(stale, bind(1, 4, 4)))).is_empty());
    }
    assert_eq!(b.bind(attempt(3, bind(1, 4, 4))), [(1, 3, ACCEPTED)]);
    assert_eq!(b.worker.rank_load().unwrap().free_blocks, 14, "the old one's page until its step is over");
    let told = b.run();
    assert_eq!(told.len(), 5);
    assert!(told.iter().all(|t| t.1 == 3), "the superseded attempt is heard of no more");
    assert!(b.worker.is_empty());
}

#[test]
fn only_a_newer_attempt_takes_the_place_of_a_waiting_one() {
    let mut b = dense_with(|r| r.max_sequences = 1);
    b.bind(bind(1, 4, 4));
    let again = |n| attempt(n, replay(bind(2, 4, 4)));
    assert_eq!(b.bind(again(2)), [(2, 2, ACCEPTED)]);
    assert!(b.bind(again(1)).is_empty() && b.bind(again(2)).is_empty());
    assert_eq!(b.bind(again(3)), [(2, 3, ACCEPTED)]);
    assert_eq!(b.bind(replay(bind(3, 4, 4))), [(3, 1, ACCEPTED)]);
    assert_eq!(b.worker.rank_load().unwrap().queue, 2);
    let told = b.run();
    let ends: Vec<_> = told.iter().filter(|t| t.2 == over(Finish::Length)).map(|t| (t.0, t.1)).collect();
    assert_eq!(ends, [(1, 1), (2, 3), (3, 1)]);
}

#[test]
fn a_sequence_that_is_complete_ends_at_the_door() {
    let mut b = Bench::new(dense());
    let done = [(1, 1, ACCEPTED), (1, 1, over(Finish::Length))];
    assert_eq!(b.bind(bind(1, 0, 4)), done, "nothing to compute");
    assert_eq!(b.bind(Bind { produced: 4, ..bind(1, 6, 4) }), done, "all produced");
    assert_eq!(b.bind(Bind { produced: 3, ..bind(1, 6, 4) }), [(1, 1, ACCEPTED)]);
}

#[test]
fn what_fits_the_pool_to_the_token_is_taken_and_what_does_not_is_refused() {
    // The last token is never attended to: ten of a prompt and seven produced take sixteen positions.
    for (max, produced, fits) in [(7, 0, true), (8, 0, false), (10, 3, true), (11, 3, false)] {
        let mut b = dense_with(|r| r.pages = 4);
        let due = if fits { ACCEPTED } else { RankEvent::Refused(Refusal::TooLarge { room: 16 }) };
        assert_eq!(b.bind(Bind { produced, ..bind(1, 10, max) }), [(1, 1, due)], "{max} {produced}");
        assert_eq!(b.run().len(), if fits { max as usize - produced as usize + 1 } else { 0 });
    }
}

#[test]
fn new_work_is_refused_at_exactly_the_limit_and_behind_whatever_waits() {
    let mut b = dense_with(|r| (r.max_sequences, r.pages) = (2, 4));
    assert_eq!(b.bind(bind(1, 4, 4)), [(1, 1, ACCEPTED)]);
    assert_eq!(b.bind(bind(2, 4, 4)), [(2, 1, ACCEPTED)]);
    assert_eq!(b.bind(bind(3, 4, 4)), [(3, 1, BUSY)], "two sequences at one time");
    b.cancel(2, 1);
    assert_eq!(b.bind(replay(bind(4, 16, 1))), [(4, 1, ACCEPTED)], "a replay that has to wait for pages");
    assert_eq!(b.bind(bind(5, 4, 4)), [(5, 1, BUSY)], "there is room, but nobody overtakes a replay");
}

#[test]
fn new_work_leaves_the_watermark_free() {
    let mut b = dense_with(|r| (r.pages, r.watermark) = (6, 2));
    assert_eq!(b.bind(bind(1, 8, 1)), [(1, 1, ACCEPTED)]);
    assert_eq!(b.bind(bind(2, 9, 1)), [(2, 1, BUSY)]);
    assert_eq!(b.bind(bind(2, 8, 1)), [(2, 1, ACCEPTED)], "two pages are left");
}

#[test]
fn a_replay_takes_the_place_of_the_youngest_only_if_that_is_younger() {
    let run = |age| {
        let mut b = dense_with(|r| (r.max_sequences, r.prefill_chunk) = (2, 4));
        b.bind(bind(1, 4, 9));
        b.bind(bind(5, 4, 9));
        let told = b.bind(Bind { age, ..replay(bind(9, 4, 9)) });
        (told, b.worker.counters().preemptions)
    };
    assert_eq!(run(4), (vec![(9, 1, ACCEPTED), (5, 1, BACK)], 1));
    assert_eq!(run(5), (vec![(9, 1, ACCEPTED)], 0), "of equals the one that runs stays");
    assert_eq!(run(6), (vec![(9, 1, ACCEPTED)], 0));
}

#[test]
fn replays_come_in_oldest_first() {
    let mut b = dense_with(|r| r.max_sequences = 1);
    b.bind(bind(1, 4, 2));
    for request in [4, 2, 3] {
        assert_eq!(b.bind(replay(bind(request, 4, 2))), [(request, 1, ACCEPTED)]);
    }
    let ends: Vec<u64> = b.run().iter().filter(|t| t.2 == over(Finish::Length)).map(|t| t.0).collect();
    assert_eq!(ends, [1, 2, 3, 4]);
    assert!(b.worker.is_empty());
}

#[test]
fn out_of_pages_the_youngest_is_handed_back_and_the_oldest_proceeds() {
    // Three sequences of one page each, which all need a second one at their second token; a spare page in all.
    let mut b = dense_with(|r| r.pages = 4);
    for request in [2, 1, 3] {
        b.bind(bind(request, 4, 4));
    }
    let told = b.run();
    let backs: Vec<u64> = told.iter().filter(|t| t.2 == BACK).map(|t| t.0).collect();
    assert_eq!(backs, [3], "the two that are left have two pages each");
    assert_eq!(b.worker.counters().preemptions, 1);
    let ends: Vec<u64> = told.iter().filter(|t| t.2 == over(Finish::Length)).map(|t| t.0).collect();
    assert_eq!(ends.len(), 2);
    assert!(b.worker.is_empty());
}

#[test]
fn a_cancel_ends_its_own_attempt_and_older_ones_whether_they_run_or_wait() {
    let mut b = dense_with(|r| r.max_sequences = 2);
    b.bind(attempt(3, bind(1, 4, 4)));
    b.bind(attempt(3, bind(2, 4, 4)));
    b.bind(attempt(3, replay(bind(3, 4, 4))));
    b.bind(attempt(3, replay(bind(4, 4, 4))));
    // Two that wait, then two that run.
    for (request, attempt) in [(3, 3), (4, 9), (1, 3), (2, 9)] {
        assert!(b.cancel(request, 2).is_empty(), "a newer attempt stays");
        assert_eq!(b.cancel(request, attempt), [(request, 3, over(Finish::Cancelled))]);
        assert!(b.cancel(request, attempt).is_empty(), "once");
    }
    b.run();
    assert!(b.worker.is_empty());
}

#[test]
fn a_deadline_ends_what_runs_and_what_waits_when_it_is_reached() {
    let mut b = dense_with(|r| r.max_sequences = 1);
    let late = |at, bind: Bind| Bind { deadline: Some(at), ..bind };
    b.bind(late(30, bind(1, 4, 9)));
    b.bind(late(20, replay(bind(2, 4, 9))));
    b.bind(late(40, replay(bind(3, 4, 9))));
    b.bind(replay(bind(4, 4, 9)));
    assert_eq!(b.worker.wake(), Some(20));
    assert!(b.tick(19).is_empty());
    assert_eq!(b.tick(20), [(2, 1, over(Finish::Deadline))]);
    assert_eq!(b.worker.wake(), Some(30));
    assert!(b.tick(29).is_empty());
    assert_eq!(b.tick(30), [(1, 1, over(Finish::Deadline))]);
    assert_eq!(b.worker.wake(), Some(40));
}

#[test]
fn a_draining_rank_takes_nothing_and_hands_back_what_runs_and_waits_if_asked() {
    let mut b = dense_with(|r| r.max_sequences = 2);
    for request in [1, 2] {
        b.bind(bind(request, 4, 4));
    }
    b.bind(replay(bind(3, 4, 4)));
    assert!(b.handle(Event::Drain { hand_back: false }).is_empty());
    assert_eq!(b.bind(replay(bind(4, 4, 4))), [(4, 1, RankEvent::Refused(Refusal::Draining))]);
    assert!(b.worker.rank_load().unwrap().draining);
    let told = told(&b.handle(Event::Drain { hand_back: true }));
    assert_eq!(told, [(2, 1, BACK), (1, 1, BACK), (3, 1, BACK)]);
    b.run();
    assert!(b.worker.is_empty() && !b.worker.is_busy());
}

#[test]
fn a_lost_device_hands_everything_back() {
    let mut b = Bench::new(dense());
    b.bind(bind(1, 4, 4));
    b.running = None;
    let told = told(&b.handle(Event::Done(Outcome::Failed("out of memory".into()))));
    assert_eq!(told, [(1, 1, BACK)]);
    assert_eq!(b.worker.failure(), Some("out of memory"));
    assert!(b.running.is_none(), "it runs nothing any more");
    let mut b = Bench::new(dense());
    b.bind(bind(1, 4, 4));
    b.running = None;
    b.handle(Event::Done(Outcome::Experts));
    assert!(b.worker.failure().is_some_and(|why| why.contains("Attention")), "an outcome of another kind");
}

#[test]
fn a_gateway_chooses_by_what_is_neither_taken_nor_promised() {
    let mut b = dense_with(|r| r.prefill_chunk = 4);
    let idle = b.worker.rank_load().unwrap();
    assert_eq!((idle.free_blocks, idle.pool_blocks, idle.block_tokens), (16, 16, 4));
    b.bind(bind(1, 12, 4));
    assert_eq!(b.attention().rows.len(), 4, "one page of three is taken");
    assert_eq!(b.worker.rank_load().unwrap(), RankLoad { free_blocks: 13, ..idle });
    assert!(b.worker.is_busy() && !b.worker.is_empty());
}
