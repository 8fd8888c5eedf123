//! A rank asks experts of other workers: credit, redirects, orphans, and what comes back.

use super::*;

const A: u32 = 4;
const B: u32 = 5;

/// A rank whose two blocks have experts; its router chooses 0 and 1.
pub(super) fn asking() -> WorkerConfig {
    WorkerConfig { shape: Shape { moe: vec![true; 2], ..dense().shape }, ..dense() }
}

/// All experts of both blocks at one worker.
pub(super) fn all_at(worker: u32) -> Vec<Replica> {
    (0..8).map(|i| held(WorkerId(worker), unit(i / 4, i % 4))).collect()
}

/// One of two slices of all experts of block 0 at one worker.
pub(super) fn half(worker: u32, lo: u8) -> impl Iterator<Item = Replica> {
    let slice = Slice { lo, hi: lo + 1 };
    (0..4).map(move |e| held(WorkerId(worker), Unit { slice, ..unit(0, e) }))
}

/// A rank and a host that holds all of it, with a landing ring of so many rows.
pub(super) fn beside(config: WorkerConfig, ring: u32) -> (Bench, Peer) {
    let mut b = Bench::new(config);
    let host = b.meet(A, false, Some(ring));
    b.place(1, all_at(A));
    (b, host)
}

pub(super) fn batches(actions: &[Action]) -> Vec<(WorkerId, &TokenBatch)> {
    let sent = sent(actions).into_iter();
    sent.filter_map(|(to, body)| if let Body::Tokens(b) = body { Some((to, b)) } else { None }).collect()
}

pub(super) fn items(batch: &TokenBatch) -> Vec<ReturnItem> {
    batch.items.iter().map(|i| ReturnItem { back: i.back, slice: i.slice }).collect()
}

/// The outputs of items, with their landing rows.
pub(super) fn outputs(items: Vec<ReturnItem>, freed: Vec<u32>) -> Body {
    Body::Returns(ReturnBatch { rows: vec![0; items.len()], items, freed })
}

fn redirect(items: Vec<ReturnItem>, slice: Option<Arc<PlacementSlice>>) -> Body {
    Body::Redirect(Redirect { items, freed: vec![], slice })
}

#[test]
fn a_token_travels_once_for_all_its_experts_at_a_worker() {
    let (mut b, _) = beside(asking(), 8);
    b.bind(bind(1, 3, 2));
    let actions = b.done();
    let [(to, batch)] = batches(&actions)[..] else { panic!("{actions:?}") };
    assert_eq!((to, batch.class, batch.block, batch.generation), (WorkerId(A), Class(2), 0, 1));
    assert_eq!((batch.progress, batch.step_rows, batch.frames), (0, 3, 0));
    let slab = b.worker.config.slab;
    let rows: Vec<_> = batch.rows.iter().map(|r| (r.src, r.dst)).collect();
    let tokens: Vec<u32> = b.worker.rank.as_ref().unwrap().segments[0].as_ref().unwrap().tokens.clone();
    assert_eq!(rows, [0, 1, 2].map(|i| (slab.input(tokens[i as usize]), i)));
    let asked: Vec<_> = batch.items.iter().map(|i| (i.row, i.expert, i.back.k)).collect();
    assert_eq!(asked, [(0, 0, 0), (0, 1, 1), (1, 0, 0), (1, 1, 1), (2, 0, 0), (2, 1, 1)]);
    assert_eq!(b.worker.pressure(0).loads, [3, 3, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_segment_goes_on_when_all_its_tokens_have_all_their_outputs_whatever_the_order() {
    let (mut b, mut host) = beside(asking(), 8);
    b.bind(bind(1, 2, 2));
    let actions = b.done();
    let mut back = items(batches(&actions)[0].1);
    back.swap(0, 3);
    for (i, item) in back.iter().enumerate() {
        assert!(b.running.is_none(), "{i} of 4 are there");
        let landing = b.receive(&mut host, outputs(vec![*item, *item], vec![]));
        let row = b.worker.rank.as_ref().unwrap().return_row(item.back, item.slice);
        assert_eq!(landing, [(0, row)], "the second is a duplicate");
        b.settle();
    }
    assert_eq!(b.worker.counters().duplicate_returns, 4);
    assert_eq!((b.attention().blocks.clone(), b.attention().rows.len()), (1..2, 2));
    assert_eq!(b.attention().slicing, [1; 4]);
    b.done();
    let only_the_last = [2, 2, 0, 0, 1, 1, 0, 0];
    assert_eq!(b.worker.pressure(0).loads, only_the_last, "is wanted of the last block's experts");
}

#[test]
fn without_a_landing_row_items_wait_in_order_and_the_rank_says_so() {
    let (mut b, mut host) = beside(asking(), 2);
    b.bind(bind(1, 4, 2));
    let actions = b.done();
    let first = batches(&actions)[0].1;
    assert_eq!((first.rows.len(), first.items.len()), (2, 4));
    let mark = first.mark.unwrap();
    assert_eq!((mark.progress, mark.blocked, mark.frames, mark.tokens), (1, true, 1, 4));
    assert_eq!((b.worker.counters().credit_stalls, b.worker.pressure(0).stalled), (4, 4));
    let actions = b.hear(&mut host, Body::Credit(vec![1]));
    let [(_, second)] = batches(&actions)[..] else { panic!("{actions:?}") };
    assert_eq!((second.rows[0].dst, second.items.len(), second.frames), (1, 2, 1));
    assert_eq!((second.mark, b.worker.pressure(0).stalled), (None, 2), "still blocked: nothing new");
    let actions = b.hear(&mut host, outputs(items(first), vec![0]));
    let third = batches(&actions)[0].1;
    assert_eq!((third.rows[0].dst, third.items.len()), (0, 2), "a return brings credit too");
    assert_eq!(third.mark.map(|m| m.blocked), Some(false));
    assert_eq!(b.worker.counters().credit_stalls, 4, "counted once each");
}

#[test]
fn each_step_sends_batches_of_its_own() {
    let (mut b, _) = beside(asking(), 8);
    for request in [1, 2, 3] {
        b.bind(bind(request, 1, 2));
    }
    for (frames, tokens) in [(0, 1), (1, 2)] {
        let actions = b.done();
        let [(_, batch)] = batches(&actions)[..] else { panic!("{actions:?}") };
        assert_eq!((batch.progress, batch.frames, batch.rows.len()), (0, frames, tokens));
        assert_eq!((batch.items.len(), batch.step_rows), (2 * tokens, tokens as u32));
    }
}

#[test]
fn a_sequence_that_ends_between_attention_and_its_experts_takes_nothing_along() {
    let mut b = super::scheduling::alone(Policy::Flfs);
    b.bind(bind(9, 1, 1));
    b.bind(bind(1, 1, 2));
    b.bind(Bind { deadline: Some(30), ..bind(2, 1, 2) });
    b.done();
    assert_eq!(b.attention().rows.len(), 2);
    b.now = 30;
    assert_eq!(told(&b.done()), [(2, 1, RankEvent::Finished(Finish::Deadline))]);
    assert_eq!(b.experts().items.len(), 2, "of the first and of the one that goes on");
    let ends = b.run().iter().filter(|t| t.2 == RankEvent::Finished(Finish::Length)).count();
    assert_eq!((ends, b.worker.is_empty()), (2, true));
}

#[test]
fn behind_one_that_waits_for_credit_nobody_overtakes() {
    let (mut b, mut host) = beside(asking(), 1);
    b.bind(bind(1, 1, 2));
    b.bind(bind(2, 1, 2));
    let actions = b.done();
    let sent = items(batches(&actions)[0].1);
    b.done();
    assert_eq!(b.worker.pressure(0).stalled, 2);
    let actions = b.hear(&mut host, Body::Credit(vec![]));
    assert!(batches(&actions).is_empty());
    let actions = b.hear(&mut host, outputs(sent, vec![0]));
    assert_eq!(batches(&actions)[0].1.items.len(), 2);
}

#[test]
fn what_nobody_holds_waits_for_a_placement_and_leaves_the_count() {
    let mut b = Bench::new(asking());
    b.meet(A, false, Some(8));
    b.place(1, vec![held(WorkerId(A), unit(0, 0))]);
    b.bind(bind(1, 2, 2));
    let actions = b.done();
    let sent = batches(&actions);
    assert_eq!(sent[0].1.items.len(), 2);
    assert_eq!((b.worker.counters().orphaned, b.worker.pressure(0).orphans), (2, 2));
    let clocks = |b: &Bench| b.worker.rank.as_ref().unwrap().clocks[2].total();
    assert_eq!(clocks(&b), 0, "nobody waits for a token that waits for an expert");
    let back = items(sent[0].1);
    let actions = b.place(2, vec![held(WorkerId(A), unit(0, 0)), held(WorkerId(A), unit(0, 1))]);
    let late = batches(&actions);
    assert_eq!((late[0].1.items.len(), late[0].1.generation), (2, 2));
    assert_eq!((b.worker.counters().orphaned, b.worker.pressure(0).orphans), (2, 0));
    let mut host = Peer { id: WorkerId(A), link: Link::new(1, 3) };
    b.hear(&mut host, outputs([back, items(late[0].1)].concat(), vec![]));
    assert_eq!((clocks(&b), b.attention().rows.len()), (2, 2), "whole, and counted again");
}

#[test]
fn a_worker_that_sends_back_what_this_table_gives_it_is_asked_again_in_a_cycle() {
    let (mut b, mut host) = beside(asking(), 8);
    b.now = 100;
    b.bind(bind(1, 1, 2));
    let actions = b.done();
    let back = items(batches(&actions)[0].1);
    b.now = 200;
    assert!(batches(&b.hear(&mut host, redirect(vec![back[1]], None))).is_empty());
    assert_eq!((b.worker.counters().redirected, b.worker.wake()), (1, Some(200 + CYCLE)));
    b.now = 199 + CYCLE;
    assert!(b.handle(Event::Tick).is_empty());
    b.now = 200 + CYCLE;
    let again = b.handle(Event::Tick);
    let again = batches(&again)[0].1;
    assert_eq!((items(again), again.block, again.progress), (vec![back[1]], 0, 0));
    assert_eq!((again.items[0].expert, again.class), (1, Class(2)));
    assert_eq!(b.worker.wake(), Some(200 + PATIENCE), "until it is taken for lost");
    b.hear(&mut host, outputs(back.clone(), vec![]));
    b.hear(&mut host, redirect(vec![back[1]], None));
    assert_eq!(b.worker.counters().duplicate_returns, 1, "nobody waits for it any more");
    assert_eq!(b.worker.counters().redirected, 1);
}

#[test]
fn what_a_worker_lacks_is_asked_of_its_sibling_until_it_is_time_to_see_whether_it_still_does() {
    let mut b = Bench::new(asking());
    let mut peers = [A, B].map(|w| b.meet(w, false, Some(32)));
    b.place(1, [all_at(A), all_at(B)].concat());
    b.worker.config.max_step_rows = 1;
    (1..=8).for_each(|r| drop(b.bind(bind(r, 1, 2))));
    let asked = |actions: &[Action], w| -> Vec<ReturnItem> {
        batches(actions).iter().filter(|t| t.0 == WorkerId(w)).flat_map(|t| items(t.1)).collect()
    };
    let first = [b.done(), b.done()].concat();
    let (of_a, of_b) = (asked(&first, A), asked(&first, B));
    assert_eq!((of_a.len(), of_b.len()), (2, 2));
    let again = b.hear(&mut peers[0], redirect(of_a.clone(), None));
    assert_eq!(asked(&again, B), of_a, "at once");
    let both = [b.done(), b.done()].concat();
    assert_eq!((asked(&both, A).len(), asked(&both, B).len()), (0, 4), "nor does anything new go there");
    b.now += CYCLE;
    let both = [b.done(), b.done()].concat();
    assert_eq!((asked(&both, A).len(), asked(&both, B).len()), (2, 2));
    let again = b.hear(&mut peers[0], redirect(asked(&both, A), None));
    assert_eq!(asked(&again, B), asked(&both, A));
    b.now += CYCLE;
    let both = [b.done(), b.done()].concat();
    assert_eq!(asked(&both, A).len(), 0, "twice as long");
    assert_eq!(b.worker.counters().redirected, 4);
}

#[test]
fn a_unit_that_is_to_be_here_is_asked_of_its_sibling_until_it_is_loaded() {
    let mut b =
        Bench::new(WorkerConfig { host: Some(HostConfig { slots: 8, ring: 4, linger: 0 }), ..asking() });
    b.meet(B, false, Some(8));
    let asked = b.place(1, [all_at(ME.0), all_at(B)].concat());
    b.bind(bind(1, 2, 2));
    let actions = b.done();
    let all: usize = batches(&actions).iter().map(|t| t.1.items.len()).sum();
    assert_eq!((all, b.worker.counters().redirected), (4, 2));
    b.load(&asked);
    b.bind(bind(2, 2, 2));
    b.done();
    assert_eq!((b.experts().items.len(), b.worker.counters().redirected), (1, 2), "at once");
}

#[test]
fn a_redirect_brings_the_newer_table_and_the_item_goes_on_at_once() {
    let (mut b, mut host) = beside(asking(), 8);
    b.meet(B, false, Some(8));
    b.bind(bind(1, 1, 2));
    let actions = b.done();
    let back = items(batches(&actions)[0].1);
    let newer = PlacementSlice { blocks: 0..2, generation: 2, replicas: all_at(B) };
    let actions = b.hear(&mut host, redirect(back.clone(), Some(Arc::new(newer))));
    let [(to, batch)] = batches(&actions)[..] else { panic!("{actions:?}") };
    assert_eq!((to, items(batch), batch.generation), (WorkerId(B), back, 2));
    assert_eq!(b.worker.counters().redirected, 2);
}

#[test]
fn a_table_that_nobody_else_knows_does_not_count_for_ever() {
    let (mut b, mut host) = beside(asking(), 8);
    let mut rank = b.meet(B, true, None);
    b.bind(bind(1, 1, 2));
    let actions = b.done();
    let back = items(batches(&actions)[0].1);
    let wrong = || Some(Arc::new(PlacementSlice { blocks: 0..2, generation: u64::MAX, replicas: vec![] }));
    b.hear(&mut rank, redirect(back.clone(), wrong()));
    assert_eq!((b.worker.counters().bad_frames, b.worker.counters().redirected), (1, 0), "it holds nothing");
    let all = Redirect { items: back.clone(), freed: vec![0], slice: wrong() };
    assert!(batches(&b.hear(&mut host, Body::Redirect(all))).is_empty());
    b.place(2, all_at(A));
    assert_eq!((b.worker.counters().bad_frames, b.worker.pressure(0).orphans), (1, 2));
    b.now = 10 * SECOND;
    assert_eq!(b.worker.wake(), Some(b.now));
    let actions = b.handle(Event::Tick);
    let [(to, batch)] = batches(&actions)[..] else { panic!("{actions:?}") };
    assert_eq!((to, items(batch), batch.generation), (host.id, back, 2));
}

#[test]
fn what_is_sent_back_of_a_token_that_was_not_sent_is_passed_over() {
    let (mut b, mut host) = beside(asking(), 8);
    b.bind(bind(1, 2, 2));
    let item = |(group, k)| ReturnItem { back: ReturnTo { group, tag: 0, k }, slice: Slice::whole(2) };
    let all: Vec<_> = (0..32).flat_map(|group| [(group, 0), (group, 1), (group, 2)]).map(item).collect();
    assert!(b.hear(&mut host, redirect(all, None)).is_empty());
    assert_eq!(batches(&b.done())[0].1.items.len(), 4);
}

#[test]
fn a_worker_that_nobody_has_met_is_asked_when_it_is_met_and_gives_credit() {
    let mut b = Bench::new(asking());
    b.place(1, all_at(A));
    b.bind(bind(1, 1, 2));
    assert!(sent(&b.done()).is_empty());
    b.meet(B, true, None);
    assert_eq!((b.worker.wake(), b.worker.pressure(0).orphans), (None, 2));
    let mut a = b.meet(A, false, Some(0));
    assert_eq!((b.worker.pressure(0).stalled, b.worker.pressure(0).orphans), (0, 2), "it may have no ring");
    let actions = b.hear(&mut a, Body::Credit((0..8).collect()));
    assert_eq!(batches(&actions)[0].1.items.len(), 2);
}

#[test]
fn credits_that_no_host_can_mean_are_counted_and_not_taken() {
    let (mut b, mut host) = beside(asking(), 4);
    let mut rank = b.meet(B, true, None);
    b.hear(&mut rank, Body::Credit(vec![0]));
    assert_eq!(b.worker.counters().bad_frames, 1, "it holds no experts");
    b.hear(&mut host, Body::Credit(vec![3, 0, 3, u32::MAX, 1 << 20]));
    assert_eq!(b.worker.counters().bad_frames, 2);
    b.bind(bind(1, 6, 2));
    let actions = b.done();
    let first = batches(&actions)[0].1;
    assert_eq!((first.rows.len(), b.worker.pressure(0).stalled), (4, 4), "as many as there are, each once");
    b.hear(&mut host, outputs(vec![], vec![2, 2]));
    assert_eq!((b.worker.counters().bad_frames, b.worker.pressure(0).stalled), (3, 2));
}

#[test]
fn who_has_no_ring_for_this_rank_is_passed_over_and_told_nothing() {
    let mut b = Bench::new(asking());
    let mut without = b.meet(A, false, Some(0));
    b.meet(B, false, Some(32));
    b.place(1, [all_at(A), all_at(B)].concat());
    b.bind(bind(1, 4, 2));
    let actions = b.done();
    assert!(sent(&actions).iter().all(|s| s.0 == WorkerId(B)), "{actions:?}");
    assert_eq!(b.worker.counters().credit_stalls, 0);
    b.hear(&mut without, Body::Credit((0..8).collect()));
    b.bind(bind(2, 4, 2));
    assert_eq!(batches(&b.done()).len(), 2, "a ring became free");
}

#[test]
fn an_expert_in_slices_is_asked_in_all_of_them() {
    let mut b = Bench::new(asking());
    let mut peers = [A, B].map(|w| b.meet(w, false, Some(8)));
    b.place(1, half(A, 0).chain(half(B, 1)).collect());
    b.bind(bind(1, 1, 2));
    let actions = b.done();
    let mut to: Vec<_> = batches(&actions).iter().map(|(to, t)| (*to, items(t))).collect();
    to.sort_by_key(|t| t.0);
    assert_eq!(to.iter().map(|t| (t.0.0, t.1.len())).collect::<Vec<_>>(), [(A, 2), (B, 2)]);
    assert!(to[0].1.iter().all(|i| i.slice.lo == 0) && to[1].1.iter().all(|i| i.slice.lo == 1));
    assert_eq!(b.worker.counters().sliced, 2);
    for (peer, (_, back)) in peers.iter_mut().zip(to) {
        assert!(b.running.is_none());
        b.hear(peer, outputs(back, vec![]));
    }
    assert_eq!(b.attention().slicing, [2, 2]);
}

#[test]
fn another_slicing_asks_the_whole_choice_anew() {
    let mut b = Bench::new(asking());
    let mut peers = [A, B].map(|w| b.meet(w, false, Some(8)));
    let half = |worker, lo| held(WorkerId(worker), Unit { slice: Slice { lo, hi: lo + 1 }, ..unit(0, 0) });
    let whole = |worker, expert| held(WorkerId(worker), unit(0, expert));
    b.place(1, vec![half(A, 0), half(B, 1), whole(A, 1)]);
    b.bind(bind(1, 1, 2));
    let actions = b.done();
    let of = |worker| items(batches(&actions).iter().find(|t| t.0 == WorkerId(worker)).unwrap().1);
    b.hear(&mut peers[0], outputs(of(A), vec![]));
    // B lost its half; A holds the expert whole.
    let newer = PlacementSlice { blocks: 0..2, generation: 2, replicas: vec![whole(A, 0), whole(A, 1)] };
    let again = b.hear(&mut peers[1], redirect(of(B), Some(Arc::new(newer))));
    let [(to, batch)] = batches(&again)[..] else { panic!("{again:?}") };
    assert_eq!((to, batch.items[0].slice, batch.items.len()), (WorkerId(A), Slice::whole(2), 1));
    assert!(b.receive(&mut peers[1], outputs(of(B), vec![])).is_empty(), "the old slicing is given up");
    b.hear(&mut peers[0], outputs(items(batch), vec![]));
    assert_eq!(b.attention().slicing, [1, 1]);
}

#[test]
fn no_other_slicing_is_asked_while_a_step_here_may_write_the_rows_of_the_one_before() {
    [false, true].into_iter().for_each(reslice_during_a_step);
}

fn reslice_during_a_step(cancelled: bool) {
    let mut b =
        Bench::new(WorkerConfig { host: Some(HostConfig { slots: 8, ring: 4, linger: 0 }), ..asking() });
    let mut other = b.meet(B, false, Some(8));
    let half = |worker, lo| held(worker, Unit { slice: Slice { lo, hi: lo + 1 }, ..unit(0, 0) });
    let asked = b.place(1, vec![half(ME, 0), half(other.id, 1), held(ME, unit(0, 1))]);
    b.load(&asked);
    b.bind(bind(1, 1, 2));
    let actions = b.done();
    let back = items(batches(&actions)[0].1);
    assert_eq!(b.experts().items.len(), 1, "the half that is here");
    let whole = vec![held(other.id, unit(0, 0)), held(ME, unit(0, 1))];
    let newer = PlacementSlice { blocks: 0..2, generation: 2, replicas: whole };
    let actions = b.hear(&mut other, redirect(back, Some(Arc::new(newer))));
    assert!(batches(&actions).is_empty());
    for _ in 0..2 {
        assert!(b.handle(Event::Tick).is_empty());
        assert_eq!((b.worker.pressure(0).orphans, b.worker.counters().orphaned), (1, 1));
    }
    if cancelled {
        b.cancel(1, 1);
        b.run();
        return assert!(b.worker.is_empty(), "what was to be asked anew counts as returned");
    }
    let actions = b.done();
    assert_eq!(batches(&actions)[0].1.items[0].slice, Slice::whole(2));
    assert_eq!(b.worker.pressure(0).orphans, 0);
}

#[test]
fn a_chunk_enters_a_block_behind_the_one_ahead() {
    let mut config = WorkerConfig { shape: Shape { moe: vec![true; 3], ..asking().shape }, ..asking() };
    config.rank.as_mut().unwrap().prefill_chunk = 2;
    let (mut b, mut host) = beside(config, 8);
    b.place(2, (0..12).map(|i| held(host.id, unit(i / 4, i % 4))).collect());
    b.bind(bind(1, 4, 2));
    let start = |b: &Bench| (b.attention().blocks.start, b.attention().segments[0].start);
    let ask = |b: &mut Bench| items(batches(&b.done())[0].1);
    assert_eq!(start(&b), (0, 0));
    let first = ask(&mut b);
    assert_eq!(start(&b), (0, 2));
    let second = ask(&mut b);
    b.hear(&mut host, outputs(first, vec![]));
    assert_eq!(start(&b), (1, 0));
    b.hear(&mut host, outputs(second, vec![]));
    let first = ask(&mut b);
    assert_eq!((start(&b), b.attention().segments.len()), ((1, 2), 1), "as soon as the one ahead is past");
    let second = ask(&mut b);
    b.hear(&mut host, outputs(second, vec![]));
    assert!(b.running.is_none(), "whole, but the one ahead is not");
    b.hear(&mut host, outputs(first, vec![]));
    assert_eq!((start(&b), b.attention().segments.len()), ((2, 0), 2), "beside it");
}

#[test]
fn rows_of_a_cancelled_sequence_are_free_when_what_was_sent_is_back() {
    let (mut b, mut host) = beside(asking(), 1);
    b.bind(bind(1, 3, 2));
    let actions = b.done();
    let back = items(batches(&actions)[0].1);
    b.cancel(1, 1);
    assert!(!b.worker.is_empty() && b.worker.pressure(0).stalled == 0, "what waits in line is forgone");
    let landing = b.receive(&mut host, outputs(vec![back[0]], vec![]));
    assert!(landing.is_empty(), "nobody wants it");
    b.settle();
    assert!(!b.worker.is_empty());
    b.hear(&mut host, redirect(vec![back[1]], None));
    assert!(b.worker.is_empty(), "unrun counts as returned");
    // The same for what was postponed and for orphans.
    b.hear(&mut host, Body::Credit(vec![0]));
    b.bind(bind(2, 1, 2));
    let actions = b.done();
    let back = items(batches(&actions)[0].1);
    b.hear(&mut host, redirect(back, None));
    assert_eq!(b.worker.wake(), Some(b.now + CYCLE));
    b.cancel(2, 1);
    assert!(b.worker.is_empty());
    assert_eq!(b.worker.wake(), Some(b.now + PATIENCE), "its landing rows are still out");
    b.place(2, vec![]);
    b.bind(bind(3, 2, 2));
    b.done();
    assert_eq!(b.worker.pressure(0).orphans, 4);
    b.cancel(3, 1);
    assert!(b.worker.is_empty() && b.worker.pressure(0).orphans == 0);
}

#[test]
fn a_sequence_cancelled_while_its_step_runs_goes_when_the_step_is_over() {
    let (mut b, _) = beside(asking(), 8);
    b.bind(bind(1, 2, 2));
    b.bind(bind(2, 2, 2));
    b.cancel(1, 1);
    assert!(!b.worker.is_empty());
    let actions = b.done();
    assert!(batches(&actions).is_empty());
    assert!(actions.iter().any(|a| matches!(a, Action::Close { .. })));
    let actions = b.done();
    assert_eq!(batches(&actions)[0].1.items.len(), 4, "the other goes on");
}

#[test]
fn a_unit_that_is_to_be_here_is_asked_again_until_it_is_loaded() {
    let mut b =
        Bench::new(WorkerConfig { host: Some(HostConfig { slots: 8, ring: 4, linger: 0 }), ..asking() });
    let asked = b.place(1, all_at(ME.0));
    b.bind(bind(1, 1, 2));
    b.done();
    assert_eq!((b.worker.counters().redirected, b.worker.wake()), (2, Some(CYCLE)));
    b.load(&asked);
    b.now = CYCLE;
    b.handle(Event::Tick);
    assert_eq!((b.experts().block, b.experts().units.len()), (0, 1));
    let told = b.run();
    assert_eq!(told.last().unwrap().2, RankEvent::Finished(Finish::Length));
    assert_eq!(b.worker.counters().redirected, 2);
    assert!(b.worker.is_empty());
}

/// Each was looked for by a call inside the one before.
#[test]
fn rows_that_nobody_waits_for_any_more_are_passed_over_however_many_they_are() {
    let narrow = std::thread::Builder::new().stack_size(256 << 10);
    narrow.spawn(pass_over_stale_rows).unwrap().join().unwrap();
}

fn pass_over_stale_rows() {
    const ROWS: u32 = 4_000;
    let config = asking();
    let rank = RankConfig { pages: ROWS, prefill_chunk: ROWS, prefill_tokens: ROWS, ..config.rank.unwrap() };
    let mut b = Bench::new(WorkerConfig {
        rank: Some(rank),
        host: Some(HostConfig { slots: 8, ring: 4, linger: 0 }),
        slab: SlabLayout { tokens: 2 * ROWS, groups: 2 * ROWS, ..config.slab },
        max_step_rows: ROWS,
        max_expert_rows: 1,
        ..asking()
    });
    let mut other = b.meet(B, false, Some(2 * ROWS));
    let half = |worker, lo| held(worker, Unit { slice: Slice { lo, hi: lo + 1 }, ..unit(0, 0) });
    let asked = b.place(1, vec![half(ME, 0), half(other.id, 1), held(other.id, unit(0, 1))]);
    b.load(&asked);
    b.bind(bind(1, ROWS, 2));
    let actions = b.done();
    let halves = |(_, batch): &(WorkerId, &TokenBatch)| {
        items(batch).into_iter().filter(|i| i.slice.lo == 1).collect::<Vec<_>>()
    };
    let back: Vec<ReturnItem> = batches(&actions).iter().flat_map(halves).collect();
    assert_eq!((back.len() as u32, b.experts().items.len()), (ROWS, 1));
    // The halves here are of no use any more: they wait in the queue all the same.
    let whole = vec![held(other.id, unit(0, 0)), held(other.id, unit(0, 1))];
    let newer = PlacementSlice { blocks: 0..2, generation: 2, replicas: whole };
    b.hear(&mut other, redirect(back, Some(Arc::new(newer))));
    let actions = b.done();
    assert!(b.running.is_none() && b.worker.host.as_ref().is_some_and(|h| !h.is_busy()), "no half is left");
    assert_eq!(batches(&actions).iter().map(|(_, t)| t.items.len() as u32).sum::<u32>(), ROWS);
}
