//! What a rank says of its frontier, to whom, and when its own attention is complete.

use super::asking::{all_at, asking, batches, beside, items, outputs};
use super::*;
use crate::cost::Curve;
use crate::ids::IDLE;

/// The marks that travel alone: (to, class, progress, frames).
fn alone(actions: &[Action]) -> Vec<(u32, u8, Progress, u64)> {
    let mark = |(to, body): (WorkerId, &Body)| match body {
        Body::Mark(m) => Some((to.0, m.class.0, m.progress, m.frames)),
        _ => None,
    };
    sent(actions).into_iter().filter_map(mark).collect()
}

#[test]
fn a_mark_rides_on_the_batch_it_describes_or_goes_alone_once() {
    let (mut b, mut host) = beside(asking(), 8);
    let up = PeerUp { worker: WorkerId(5), epoch: 1, is_rank: false, is_host: true };
    assert!(b.handle(Event::PeerUp(up)).is_empty());
    let mut other = Peer { id: WorkerId(5), link: Link::new(1, 3) };
    let actions = b.hear(&mut other, Body::Credit(vec![0]));
    assert!(actions.is_empty(), "a rank without tokens has nothing to say");
    let actions = b.handle(Event::Bind(bind(1, 1, 2)));
    assert_eq!(alone(&actions), [(4, 2, 0, 0), (5, 2, 0, 0)], "prefill begins at 0");
    let actions = b.done();
    let sent = batches(&actions)[0].1;
    let mark = sent.mark.unwrap();
    assert_eq!((mark.progress, mark.frames, mark.tokens, mark.blocked, mark.cycle), (1, 1, 1, false, CYCLE));
    assert_eq!(alone(&actions), [(5, 2, 1, 0)], "to whom no batch goes");
    assert!(b.handle(Event::Tick).is_empty(), "nothing new");
    b.hear(&mut host, outputs(items(sent), vec![0]));
    let actions = b.done();
    let second = batches(&actions)[0].1;
    assert_eq!((second.mark.unwrap().frames, second.frames), (2, 1));
    assert!(second.mark.unwrap().order > mark.order);
    b.hear(&mut host, outputs(items(second), vec![0]));
    let actions = b.done();
    // Decode begins at 2, the first multiple of L that is not below what was said; prefill is idle.
    let due = |to, frames| vec![(to, 0, 0, 0), (to, 2, IDLE, frames)];
    assert_eq!(alone(&actions), [due(4, 2), due(5, 0)].concat());
}

#[test]
fn only_the_last_batch_of_a_class_carries_the_mark() {
    let (mut b, mut host) = beside(asking(), 8);
    b.place(2, all_at(4).into_iter().filter(|r| r.unit.expert < 2).collect());
    // One is left behind by an expert that nobody holds; then both meet at block 1, a pass apart.
    b.bind(bind(1, 1, 2));
    b.running = None;
    b.handle(Event::Done(Outcome::Routed(vec![2, 3])));
    // The second says where it is on its whole way, so the next two begin a pass later.
    b.bind(bind(2, 1, 1));
    while b.running.is_some() {
        let actions = b.done();
        for (_, sent) in batches(&actions) {
            b.hear(&mut host, outputs(items(sent), vec![]));
        }
    }
    b.bind(bind(3, 1, 2));
    b.bind(bind(4, 1, 2));
    let ahead = [b.done(), b.done()].concat();
    let behind = b.place(3, all_at(4));
    for (_, sent) in [batches(&ahead), batches(&behind)].concat() {
        b.receive(&mut host, outputs(items(sent), vec![]));
    }
    b.settle();
    let actions = b.done();
    let marks: Vec<_> = batches(&actions)
        .iter()
        .map(|(_, t)| (t.progress, t.step_rows, t.frames, t.mark.map(|m| m.progress)))
        .collect();
    assert_eq!(marks, [(3, 2, 5, None), (1, 1, 6, Some(2))]);
}

#[test]
fn ranks_tell_each_other_once_a_pass_where_they_are() {
    let (mut b, mut host) = beside(asking(), 8);
    b.meet(6, true, None);
    let mut told = vec![];
    b.bind(bind(1, 1, 6));
    for _ in 0..40 {
        if b.running.is_none() {
            break;
        }
        let actions = b.done();
        told.extend(alone(&actions).into_iter().filter(|m| m.0 == 6));
        for (_, sent) in batches(&actions) {
            let freed = sent.rows.iter().map(|r| r.dst).collect();
            let actions = b.hear(&mut host, outputs(items(sent), freed));
            told.extend(alone(&actions).into_iter().filter(|m| m.0 == 6));
        }
    }
    let passes: Vec<_> = told.iter().map(|m| (m.1, m.2)).collect();
    assert_eq!(passes, [(2, 2), (0, 2), (0, 4), (0, 6), (0, 8), (0, 10)]);
}

#[test]
fn a_rank_that_was_idle_joins_at_the_newest_mark_heard() {
    let (mut b, _) = beside(asking(), 8);
    let mut other = b.meet(6, true, None);
    let mark = |class, progress| {
        let class = Class(class);
        Body::Mark(Mark { class, order: 0, progress, frames: 0, tokens: 0, blocked: false, cycle: CYCLE })
    };
    b.hear(&mut other, mark(2, 11));
    b.hear(&mut other, mark(2, 9));
    b.hear(&mut other, mark(2, IDLE));
    b.bind(bind(1, 1, 2));
    let actions = b.done();
    assert_eq!(batches(&actions)[0].1.progress, 12);
}

#[test]
fn hosts_are_served_in_turn_each_rank_starting_after_itself() {
    for (me, due) in [(0, [4, 5, 6]), (2, [5, 6, 4]), (3, [6, 4, 5])] {
        let mut b = Bench::new(WorkerConfig { id: WorkerId(me), ..asking() });
        for host in [4, 5, 6] {
            b.meet(host, false, Some(8));
        }
        let at = |e: u16| held(WorkerId(4 + u32::from(e % 3)), unit(0, e));
        b.place(1, (0..4).map(at).collect());
        b.random = Random(1);
        b.bind(bind(1, 8, 2));
        let actions = b.done();
        let to: Vec<_> = batches(&actions).iter().map(|t| t.0.0).collect();
        assert_eq!(to, due, "rank {me}");
    }
}

/// A rank under `frontier` of which this many sequences decode in one wave, and what they asked of block 0.
fn wave(n: usize, attention: Curve) -> (Bench, Peer, Vec<ReturnItem>) {
    let costs = Costs { attention, ..Costs::default() };
    let (mut b, mut host) =
        beside(WorkerConfig { policy: Policy::Frontier, waves: 1, costs, ..asking() }, 90);
    for request in 1..=n as u64 {
        b.bind(bind(request, 1, 9));
    }
    for _ in 0..40 {
        let actions = b.done();
        let together =
            matches!(&b.running, Some(Step::Attention(s)) if s.blocks.start == 0 && s.rows.len() == n);
        if together && b.worker.counters().sampled >= n as u64 {
            let actions = b.done();
            let back = items(batches(&actions)[0].1);
            return (b, host, back);
        }
        for (_, sent) in batches(&actions) {
            b.hear(&mut host, outputs(items(sent), vec![]));
        }
    }
    panic!("a wave does not come together: {b:?}", b = b.running)
}

#[test]
fn attention_waits_for_all_the_ranks_tokens_at_its_progress() {
    let flat = Curve::new(vec![(1.0, 100.0), (64.0, 100.0)]);
    let (mut b, mut host, back) = wave(3, flat);
    for (i, two) in back.chunks(2).enumerate() {
        assert!(b.running.is_none(), "{i} of the wave's three tokens are there");
        b.hear(&mut host, outputs(two.to_vec(), vec![]));
    }
    assert_eq!((b.attention().blocks.start, b.attention().rows.len()), (1, 3));
    // The same at the head, for which two are enough of a step: who was sampled waits at block 0 for the rest.
    let actions = b.done();
    b.worker.config.max_step_rows = 2;
    let back = items(batches(&actions)[0].1);
    b.hear(&mut host, outputs(back[..4].to_vec(), vec![]));
    assert!(b.running.is_none());
    b.hear(&mut host, outputs(back[4..].to_vec(), vec![]));
    assert_eq!(b.head().rows.len(), 2);
    b.done();
    assert_eq!(b.head().rows.len(), 1);
    b.worker.config.max_step_rows = 3;
    b.done();
    assert_eq!((b.attention().blocks.start, b.attention().rows.len()), (0, 3));
}

#[test]
fn attention_runs_early_if_at_most_a_fifth_of_it_would_be_paid_again() {
    // A hundred, and a hundred per row: of n rows now n / (n + 1) is saved.
    for (there, runs) in [(3, false), (4, true)] {
        let line = Curve::new(vec![(1.0, 200.0), (2.0, 300.0)]);
        let (mut b, mut host, back) = wave(5, line);
        b.hear(&mut host, outputs(back[..2 * there].to_vec(), vec![]));
        assert_eq!(b.running.is_some(), runs, "{there} of 5");
    }
}

#[test]
fn orphans_are_not_waited_for() {
    let attention = Curve::new(vec![(1.0, 100.0), (64.0, 100.0)]);
    let costs = Costs { attention, ..Costs::default() };
    let (mut b, mut host) =
        beside(WorkerConfig { policy: Policy::Frontier, waves: 1, costs, ..asking() }, 16);
    b.place(2, all_at(4).into_iter().filter(|r| r.unit.expert < 2).collect());
    b.bind(bind(1, 1, 9));
    b.bind(bind(2, 1, 9));
    let actions = b.done();
    let back = items(batches(&actions)[0].1);
    b.running = None;
    b.handle(Event::Done(Outcome::Routed(vec![2, 3])));
    assert_eq!(b.worker.pressure(0).orphans, 2);
    b.hear(&mut host, outputs(back, vec![]));
    assert_eq!((b.attention().blocks.start, b.attention().rows.len()), (1, 1));
}
