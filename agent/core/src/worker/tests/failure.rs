//! Workers that are lost: what they held is asked elsewhere, and nothing of their epoch counts any more.

use super::asking::{all_at, asking, batches, beside, half, items, outputs};
use super::hosting::{batch, hosting, serving};
use super::*;

const A: u32 = 4;
const B: u32 = 5;
const C: u32 = 6;

/// A rank that has two replicas of everything, `A` and `B`, with landing rings of eight rows.
fn two() -> (Bench, [Peer; 2]) {
    let mut b = Bench::new(asking());
    let peers = [A, B].map(|w| b.meet(w, false, Some(8)));
    b.place(1, [all_at(A), all_at(B)].concat());
    (b, peers)
}

fn lose(b: &mut Bench, worker: u32) -> Vec<Action> {
    b.handle(Event::PeerDown(WorkerId(worker)))
}

#[test]
fn what_a_lost_worker_held_is_asked_of_its_sibling() {
    let (mut b, [mut lost, mut sibling]) = two();
    b.bind(bind(1, 2, 2));
    let actions = b.done();
    let of = |w: u32| {
        let all = batches(&actions).into_iter().filter(move |t| t.0 == WorkerId(w));
        all.flat_map(|t| items(t.1)).collect::<Vec<_>>()
    };
    let (held, other) = (of(A), of(B));
    assert_eq!((held.len(), other.len()), (2, 2), "a token each");
    let actions = lose(&mut b, A);
    let [(to, again)] = batches(&actions)[..] else { panic!("{actions:?}") };
    assert_eq!((to, items(again)), (WorkerId(B), held.clone()));
    assert_eq!((again.block, again.progress, again.step_rows), (0, 0, 0));
    let n = *b.worker.counters();
    assert_eq!((n.masked, n.redispatched, n.orphaned), (1, 2, 0));
    let late = b.receive(&mut lost, outputs(held.clone(), vec![0]));
    assert_eq!((late.len(), b.worker.counters().duplicate_frames), (0, 1), "its epoch is over");
    b.hear(&mut sibling, outputs([held, other].concat(), vec![0, 1]));
    assert_eq!(b.attention().blocks, 1..2);
    assert!(lose(&mut b, A).is_empty(), "it was lost before");
    assert_eq!(b.worker.counters().masked, 1);
}

#[test]
fn what_was_in_line_for_a_lost_worker_goes_elsewhere_too() {
    let mut b = Bench::new(asking());
    b.meet(A, false, Some(1));
    b.meet(B, false, Some(8));
    b.place(1, all_at(A));
    b.bind(bind(1, 3, 2));
    b.done();
    assert_eq!(b.worker.pressure(0).stalled, 4);
    b.place(2, [all_at(A), all_at(B)].concat());
    let actions = lose(&mut b, A);
    let all: usize = batches(&actions).iter().map(|t| t.1.items.len()).sum();
    assert_eq!((all, b.worker.pressure(0).stalled), (6, 0));
    assert!(batches(&actions).iter().all(|t| t.0 == WorkerId(B)));
}

#[test]
fn the_last_replicas_tokens_wait_until_it_is_back() {
    let (mut b, _) = beside(asking(), 8);
    b.bind(bind(1, 2, 2));
    b.done();
    let actions = lose(&mut b, A);
    assert!(batches(&actions).is_empty());
    let total = |b: &Bench| b.worker.rank.as_ref().unwrap().clocks[2].total();
    assert_eq!((b.worker.pressure(0).orphans, total(&b)), (4, 0), "nobody waits for them");
    let mut again = Peer { id: WorkerId(A), link: Link::new(2, 3) };
    let up = PeerUp { worker: WorkerId(A), epoch: 2, is_rank: false, is_host: true };
    b.handle(Event::PeerUp(up));
    let actions = b.hear(&mut again, Body::Credit((0..8).collect()));
    let all = items(batches(&actions)[0].1);
    assert_eq!(all.len(), 4);
    b.hear(&mut again, outputs(all, vec![]));
    assert_eq!((b.attention().rows.len(), total(&b)), (2, 2), "whole, and counted again");
}

#[test]
fn outputs_that_nobody_wants_count_as_returned_when_their_worker_is_lost() {
    let (mut b, _) = beside(asking(), 8);
    b.bind(bind(1, 3, 2));
    b.done();
    b.cancel(1, 1);
    assert!(!b.worker.is_empty(), "somebody may still write to its rows");
    assert!(batches(&lose(&mut b, A)).is_empty());
    assert!(b.worker.is_empty());
    assert_eq!((b.worker.counters().redispatched, b.worker.wake()), (0, None));
}

#[test]
fn a_lost_slice_makes_its_choice_start_anew_under_another_slicing() {
    let mut b = Bench::new(asking());
    let mut peers = [A, B, C].map(|w| b.meet(w, false, Some(8)));
    b.place(1, half(A, 0).chain(half(B, 1)).collect());
    b.bind(bind(1, 1, 2));
    let actions = b.done();
    let of_b = batches(&actions).into_iter().find(|t| t.0 == WorkerId(B)).map(|t| items(t.1)).unwrap();
    b.place(2, half(A, 0).chain(half(B, 1)).chain(all_at(C)).collect());
    let actions = lose(&mut b, A);
    let [(to, whole)] = batches(&actions)[..] else { panic!("{actions:?}") };
    assert_eq!((to, whole.items.len()), (WorkerId(C), 2));
    assert!(whole.items.iter().all(|i| i.slice == Slice::whole(2)));
    assert!(b.receive(&mut peers[1], outputs(of_b, vec![])).is_empty(), "of the slicing before");
    assert_eq!(b.worker.counters().duplicate_returns, 2);
    b.hear(&mut peers[2], outputs(items(whole), vec![]));
    assert_eq!(b.attention().slicing, [1, 1]);
}

#[test]
fn a_worker_that_owes_something_and_gives_no_sign_is_taken_for_lost() {
    let (mut b, mut a) = beside(asking(), 8);
    b.now = 10;
    b.bind(bind(1, 1, 2));
    let actions = b.done();
    let first = items(batches(&actions)[0].1);
    assert_eq!(b.worker.wake(), Some(10 + PATIENCE));
    b.now = 50;
    b.hear(&mut a, Body::Credit(vec![]));
    b.now = 49 + PATIENCE;
    assert!(b.handle(Event::Tick).is_empty(), "any frame is a sign");
    b.now = 50 + PATIENCE;
    let severs =
        |actions: &[Action]| actions.iter().filter(|a| **a == Action::Sever { worker: WorkerId(A) }).count();
    assert_eq!(severs(&b.handle(Event::Tick)), 1);
    let n = *b.worker.counters();
    assert_eq!((n.suspected, n.masked, n.redispatched), (1, 1, 1 + 1));
    // It was only slow: it comes back, and gets twice the time.
    let mut again = Peer { id: WorkerId(A), link: Link::new(2, 3) };
    b.handle(Event::PeerUp(PeerUp { worker: WorkerId(A), epoch: 2, is_rank: false, is_host: true }));
    b.hear(&mut again, Body::Credit((0..8).collect()));
    assert_eq!(b.worker.wake(), Some(b.now + 2 * PATIENCE));
    b.hear(&mut again, outputs(first, vec![0]));
    let actions = b.done();
    assert_eq!(b.worker.wake(), Some(b.now + 2 * PATIENCE), "its next step may be the slow one");
    b.now += 64 * PATIENCE;
    b.hear(&mut again, outputs(items(batches(&actions)[0].1), vec![1]));
    b.done();
    assert_eq!(b.worker.wake(), Some(b.now + PATIENCE), "time in which it returns restores the trust");
}

#[test]
fn what_a_lost_rank_asked_is_given_up_and_its_rows_are_lent_anew_when_no_step_reads_them() {
    let (mut b, mut rank) = serving(hosting());
    b.hear(&mut rank, Body::Tokens(batch(0, 0, &[(0, 0), (1, 0)])));
    assert_eq!(b.experts().items.len(), 2);
    b.hear(&mut rank, Body::Tokens(TokenBatch { frames: 1, ..batch(0, 2, &[(2, 0)]) }));
    b.handle(Event::PeerDown(rank.id));
    assert_eq!(b.worker.pressure(0).experts.len(), 0, "what waited is gone");
    let up = PeerUp { worker: rank.id, epoch: 2, is_rank: true, is_host: false };
    let actions = b.handle(Event::PeerUp(up));
    assert_eq!(sent(&actions), [(rank.id, &Body::Credit(vec![2, 3]))], "the running step reads 0 and 1");
    let actions = b.done();
    assert_eq!(sent(&actions), [(rank.id, &Body::Credit(vec![0, 1]))], "and no outputs");
    let mut again = Peer { id: rank.id, link: Link::new(2, 3) };
    b.hear(&mut again, Body::Tokens(batch(0, 4, &[(0, 0)])));
    assert_eq!(sent(&b.done()).len(), 1, "it serves on");
    assert!(b.worker.is_empty() && b.running.is_none());
}

#[test]
fn a_ring_of_a_lost_rank_is_the_next_ones() {
    let (mut b, mut rank) = serving(hosting());
    b.meet(8, true, None);
    let up = |worker, epoch| Event::PeerUp(PeerUp { worker, epoch, is_rank: true, is_host: false });
    assert!(sent(&b.handle(up(WorkerId(9), 1))).is_empty(), "two rings are there for two ranks");
    b.hear(&mut rank, Body::Tokens(batch(0, 0, &[(3, 0)])));
    b.handle(Event::PeerDown(rank.id));
    assert!(sent(&b.handle(up(WorkerId(9), 2))).is_empty(), "a step still reads the lost one's ring");
    b.done();
    let actions = b.handle(up(WorkerId(9), 3));
    assert_eq!(sent(&actions), [(WorkerId(9), &Body::Credit(vec![0, 1, 2, 3]))]);
}
