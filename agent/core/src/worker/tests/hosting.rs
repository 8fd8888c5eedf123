//! A worker that holds experts: slots, the receptor, expert steps and what goes home.

use super::*;
use crate::pressure::{SlotCounts, TableReport};

const RANK: u32 = 7;

/// Four slots for two blocks of four experts; landing rings of four rows for two ranks.
pub(super) fn hosting() -> WorkerConfig {
    WorkerConfig {
        rank: None,
        host: Some(HostConfig { slots: 4, ring: 4, linger: 0 }),
        shape: Shape { moe: vec![true; 2], ..dense().shape },
        slab: SlabLayout { landing: 8, ..dense().slab },
        ..dense()
    }
}

/// One that serves experts 0 and 1 of both blocks, and the rank that it knows.
pub(super) fn serving(config: WorkerConfig) -> (Bench, Peer) {
    let mut b = Bench::new(config);
    let units = [unit(0, 0), unit(0, 1), unit(1, 0), unit(1, 1)];
    let asked = b.place(2, units.map(|u| held(ME, u)).to_vec());
    b.load(&asked);
    let rank = b.meet(RANK, true, None);
    (b, rank)
}

/// Tokens of a wave at a progress: (landing row, expert) of each item.
pub(super) fn batch(class: u8, progress: Progress, items: &[(u32, u16)]) -> TokenBatch {
    let mut rows: Vec<u32> = items.iter().map(|i| i.0).collect();
    rows.dedup();
    let at = |row: u32| rows.iter().position(|r| *r == row).unwrap() as u32;
    TokenBatch {
        class: Class(class),
        frames: 0,
        block: (progress % 2) as u16,
        generation: 1,
        step_rows: 0,
        progress,
        items: items.iter().map(|&(row, expert)| item(at(row), expert)).collect(),
        rows: rows.iter().map(|&dst| RowMove { src: 0, dst }).collect(),
        mark: None,
    }
}

fn item(row: u32, expert: u16) -> TokenItem {
    TokenItem { row, expert, slice: Slice::whole(2), back: ReturnTo { group: row, tag: 1, k: expert as u8 } }
}

fn rank_up(worker: u32, epoch: u32) -> Event {
    Event::PeerUp(PeerUp { worker: WorkerId(worker), epoch, is_rank: true, is_host: false })
}

fn loads(actions: &[Action]) -> Vec<(u32, Unit)> {
    let load = |a: &Action| match a {
        Action::LoadSlot { slot, unit } => Some((*slot, *unit)),
        _ => None,
    };
    actions.iter().filter_map(load).collect()
}

fn frees(actions: &[Action]) -> Vec<Unit> {
    let free = |a: &Action| match a {
        Action::FreeSlot { unit, .. } => Some(*unit),
        _ => None,
    };
    actions.iter().filter_map(free).collect()
}

fn slots(b: &Bench) -> (u32, u32) {
    let slots = b.worker.pressure(b.now).slots;
    (slots.serving + slots.leaving, slots.loading)
}

#[test]
fn it_loads_what_the_placement_names_here_and_is_ready_when_all_of_it_is() {
    let mut b = Bench::new(hosting());
    assert!(b.worker.is_ready(), "nothing is wanted");
    let sliced = |lo, hi| Unit { slice: Slice { lo, hi }, ..unit(0, 3) };
    let mut rows =
        [unit(0, 0), unit(1, 2), unit(0, 4), sliced(0, 3), sliced(1, 1)].map(|u| held(ME, u)).to_vec();
    rows.push(held(WorkerId(1), unit(0, 1)));
    let asked = loads(&b.place(1, rows));
    assert_eq!(asked.iter().map(|a| a.1).collect::<Vec<_>>(), [unit(0, 0), unit(1, 2)], "what can be held");
    assert_eq!(slots(&b), (0, 2));
    let load = |b: &mut Bench, slot, unit, ok| b.handle(Event::SlotLoaded { slot, unit, ok });
    load(&mut b, asked[0].0, asked[1].1, true);
    load(&mut b, asked[1].0, asked[0].1, true);
    assert_eq!(slots(&b), (0, 2), "another unit than was asked for");
    load(&mut b, asked[0].0, asked[0].1, true);
    assert_eq!((slots(&b), b.worker.is_ready()), ((1, 1), false));
    assert_eq!(frees(&load(&mut b, asked[1].0, asked[1].1, false)), [unit(1, 2)], "it could not be had");
    assert_eq!((slots(&b), b.worker.is_ready()), ((1, 0), false), "it is still wanted");
    let again = b.worker.wake().expect("it is asked for again");
    assert!(again > b.now && loads(&b.handle(Event::Tick)).is_empty());
    b.now = again;
    let asked_again = loads(&b.handle(Event::Tick));
    assert_eq!(asked_again.iter().map(|a| a.1).collect::<Vec<_>>(), [unit(1, 2)]);
    assert_eq!((slots(&b), b.worker.is_ready()), ((1, 1), false));
    let report = TableReport { blocks: 0..2, generation: 1, missing: vec![unit(1, 2)] };
    assert_eq!(b.worker.pressure(b.now).tables, [report]);
    load(&mut b, asked_again[0].0, unit(1, 2), true);
    assert_eq!((slots(&b), b.worker.is_ready()), ((2, 0), true));
    load(&mut b, asked[0].0, asked[0].1, false);
    assert_eq!(slots(&b), (2, 0), "loaded is loaded");
}

#[test]
fn what_could_not_be_loaded_and_is_no_longer_wanted_is_forgotten() {
    let mut b = Bench::new(hosting());
    let asked = loads(&b.place(1, vec![held(ME, unit(0, 0))]));
    b.handle(Event::SlotLoaded { slot: asked[0].0, unit: asked[0].1, ok: false });
    assert!(!b.worker.is_ready());
    b.place(2, vec![]);
    assert_eq!((b.worker.is_ready(), b.worker.wake()), (true, None));
}

#[test]
fn what_has_no_slot_waits_until_one_is_free() {
    let mut b =
        Bench::new(WorkerConfig { host: Some(HostConfig { slots: 1, ring: 4, linger: 0 }), ..hosting() });
    let asked = b.place(1, vec![held(ME, unit(0, 0)), held(ME, unit(0, 1))]);
    b.load(&asked);
    assert_eq!((slots(&b), b.worker.is_ready()), ((1, 0), false), "the second waits");
    let next = b.place(2, vec![held(ME, unit(0, 1))]);
    assert_eq!((frees(&next), loads(&next)), (vec![unit(0, 0)], vec![(0, unit(0, 1))]));
    b.load(&next);
    assert!(b.worker.is_ready());
}

#[test]
fn an_older_placement_changes_nothing_and_a_newer_one_frees_what_it_no_longer_names() {
    let (mut b, _) = serving(hosting());
    for stale in [1, 2] {
        assert!(b.place(stale, vec![]).is_empty());
    }
    assert_eq!(slots(&b), (4, 0));
    let kept = vec![held(ME, unit(0, 0)), held(ME, unit(1, 1)), held(WorkerId(1), unit(0, 1))];
    assert_eq!(frees(&b.place(3, kept)), [unit(0, 1), unit(1, 0)]);
    assert_eq!(slots(&b), (2, 0));
    let some = PlacementSlice { blocks: 1..9, generation: 4, replicas: vec![held(ME, unit(0, 2))] };
    assert_eq!(frees(&b.handle(Event::Placement(Arc::new(some)))), [unit(1, 1)], "its own blocks only");
    let report = |blocks, generation| TableReport { blocks, generation, missing: vec![] };
    assert_eq!(b.worker.pressure(b.now).tables, [report(0..1, 3), report(1..2, 4)]);
    assert!(b.worker.is_ready());
}

#[test]
fn a_slot_that_is_used_again_serves_its_new_unit_only() {
    for (gone, new) in [(unit(0, 1), unit(1, 3)), (unit(1, 0), unit(0, 2)), (unit(1, 1), unit(1, 2))] {
        let (mut b, mut rank) = serving(hosting());
        let all = [unit(0, 0), unit(0, 1), unit(1, 0), unit(1, 1), new];
        let asked = b.place(3, all.into_iter().filter(|u| *u != gone).map(|u| held(ME, u)).collect());
        b.load(&asked);
        b.receive(&mut rank, Body::Tokens(batch(0, gone.block.into(), &[(0, gone.expert)])));
        assert_eq!(b.worker.counters().redirects_sent, 1);
        b.hear(&mut rank, Body::Tokens(batch(0, new.block.into(), &[(1, new.expert)])));
        let ran = &b.experts().units[0];
        assert_eq!((ran.unit, Some(ran.slot)), (new, loads(&asked).first().map(|l| l.0)));
    }
}

#[test]
fn a_unit_that_leaves_empties_its_queues_and_what_runs_first() {
    let (mut b, mut rank) = serving(hosting());
    b.hear(&mut rank, Body::Tokens(batch(0, 0, &[(0, 0)])));
    assert_eq!(b.experts().units[0].unit, unit(0, 0));
    b.hear(&mut rank, Body::Tokens(batch(0, 1, &[(1, 1)])));
    let gone = b.place(3, vec![held(ME, unit(1, 0))]);
    assert_eq!(frees(&gone), [unit(0, 1)], "one runs, one has a token waiting");
    assert_eq!(slots(&b), (3, 0), "a leaving unit serves");
    assert_eq!(b.worker.pressure(b.now).slots.leaving, 2);
    let landing = b.receive(&mut rank, Body::Tokens(batch(0, 1, &[(2, 1)])));
    assert_eq!((landing.len(), b.worker.counters().redirects_sent), (1, 0));
    let done = b.done();
    assert_eq!(frees(&done), [unit(0, 0)]);
    assert_eq!((b.experts().units[0].unit, b.experts().items.len()), (unit(1, 1), 2));
    assert_eq!(frees(&b.done()), [unit(1, 1)]);
    assert_eq!(slots(&b), (1, 0));
}

#[test]
fn a_unit_that_left_the_table_serves_until_nobody_asks_for_it_or_its_slot_is_wanted() {
    let host = Some(HostConfig { slots: 4, ring: 4, linger: 10 });
    let (mut b, mut rank) = serving(WorkerConfig { host: host.clone(), ..hosting() });
    let kept = || vec![held(ME, unit(0, 0)), held(ME, unit(0, 1))];
    assert!(frees(&b.place(3, kept())).is_empty());
    assert_eq!(b.worker.wake(), Some(10));
    b.now = 4;
    b.hear(&mut rank, Body::Tokens(batch(0, 1, &[(0, 1)])));
    assert_eq!((b.worker.counters().redirects_sent, b.experts().units[0].unit), (0, unit(1, 1)));
    b.now = 10;
    assert_eq!(frees(&b.handle(Event::Tick)), [unit(1, 0)], "the other one is in use");
    b.now = 20;
    assert_eq!(frees(&b.done()), [unit(1, 1)]);
    assert_eq!(slots(&b), (2, 0));

    let (mut b, _) = serving(WorkerConfig { host, ..hosting() });
    b.place(3, kept());
    b.now = 1;
    let all = [kept(), vec![held(ME, unit(0, 2))]].concat();
    let actions = b.place(4, all);
    assert_eq!((frees(&actions), loads(&actions)[0].1), (vec![unit(1, 0)], unit(0, 2)), "the slot is wanted");
    assert_eq!(slots(&b), (3, 1));
}

#[test]
fn a_unit_that_is_named_again_before_it_left_stays() {
    let (mut b, mut rank) = serving(hosting());
    b.hear(&mut rank, Body::Tokens(batch(0, 0, &[(0, 0)])));
    let rest = || vec![held(ME, unit(0, 1)), held(ME, unit(1, 0)), held(ME, unit(1, 1))];
    assert!(b.place(3, rest()).is_empty());
    let mut all = rest();
    all.push(held(ME, unit(0, 0)));
    assert!(b.place(4, all).is_empty(), "nor is it loaded anew");
    assert!(frees(&b.done()).is_empty());
    assert_eq!(slots(&b), (4, 0));
}

#[test]
fn a_unit_whose_weights_come_when_it_is_no_longer_wanted_is_freed() {
    let mut b = Bench::new(hosting());
    let asked = b.place(1, vec![held(ME, unit(0, 0)), held(ME, unit(1, 0))]);
    b.place(2, vec![held(WorkerId(1), unit(0, 0)), held(ME, unit(0, 3)), held(ME, unit(1, 0))]);
    let (slot, unit) = loads(&asked)[0];
    assert_eq!(frees(&b.handle(Event::SlotLoaded { slot, unit, ok: true })), [unit]);
    assert_eq!(slots(&b), (0, 2));
}

#[test]
fn a_batch_that_makes_no_sense_is_dropped_whole_and_counted() {
    let (mut b, mut rank) = serving(hosting());
    let sound = || batch(2, 1, &[(3, 1)]);
    let far = TokenItem { row: 1, ..sound().items[0] };
    // It would be expert 0 of the next block.
    let none = TokenItem { expert: 4, ..sound().items[0] };
    for bad in [
        TokenBatch { class: Class(3), ..sound() },
        TokenBatch { block: 2, ..sound() },
        batch(2, 1, &[(4, 1)]),
        TokenBatch { items: vec![far], ..sound() },
        TokenBatch { items: vec![none], ..sound() },
        TokenBatch { rows: vec![sound().rows[0]; 2], ..sound() },
        // Two experts a token, in two slices each.
        TokenBatch { items: vec![sound().items[0]; 5], ..sound() },
        TokenBatch { frames: 1 << 20, ..sound() },
    ] {
        assert!(b.receive(&mut rank, Body::Tokens(bad)).is_empty());
    }
    assert_eq!(b.worker.counters().bad_frames, 8);
    let mut stranger = b.meet(8, false, None);
    assert!(b.receive(&mut stranger, Body::Tokens(sound())).is_empty(), "who is no rank has no ring");
    assert_eq!(b.worker.counters().bad_frames, 9);
    let most = TokenBatch { items: vec![sound().items[0]; 4], ..sound() };
    let landing = b.receive(&mut rank, Body::Tokens(most));
    assert_eq!(landing, [(0, b.worker.config.slab.landing(3))]);
    assert_eq!(b.worker.counters().bad_frames, 9);
    assert!(b.receive(&mut rank, Body::Tokens(sound())).is_empty(), "the row is in use");
    let ahead = Frame { number: 1 << 20, ..rank.link.send(Channel::Control, Body::Credit(vec![])) };
    b.worker.receive(b.now, rank.id, ahead);
    assert_eq!(b.worker.counters().bad_frames, 11);
}

#[test]
fn frames_of_nobody_and_frames_seen_before_are_counted_apart() {
    let (mut b, mut rank) = serving(hosting());
    let frame = rank.link.send(Channel::Data, Body::Tokens(batch(0, 0, &[(0, 0)])));
    for (from, due) in [(WorkerId(9), (1, 0)), (ME, (2, 0)), (rank.id, (2, 0)), (rank.id, (2, 1))] {
        b.worker.receive(b.now, from, frame.clone());
        let n = b.worker.counters();
        assert_eq!((n.bad_frames, n.duplicate_frames), due);
    }
    b.settle();
    assert_eq!(b.experts().items.len(), 1);
}

#[test]
fn each_rank_has_a_ring_of_its_own_and_one_without_room_is_named() {
    let (mut b, _) = serving(hosting());
    let mut second = b.meet(8, true, None);
    let landing = b.receive(&mut second, Body::Tokens(batch(0, 0, &[(1, 0)])));
    assert_eq!(landing, [(0, b.worker.config.slab.landing(5))], "behind the first rank's");
    assert_eq!(b.worker.counters().bad_frames, 0);
    b.meet(8, true, None);
    assert_eq!(b.worker.counters().bad_frames, 0, "a new connection keeps its ring");
    let actions = b.handle(rank_up(9, 1));
    assert_eq!(actions, [Action::NoRing { worker: WorkerId(9) }]);
    assert_eq!(b.worker.counters().bad_frames, 0, "it does nothing wrong");
    let mut third = Peer { id: WorkerId(9), link: Link::new(1, 3) };
    assert!(b.receive(&mut third, Body::Tokens(batch(0, 0, &[(0, 0)]))).is_empty());
    assert!(b.receive(&mut third, Body::Tokens(batch(0, 0, &[]))).is_empty(), "nor an empty one");
    assert_eq!(b.worker.counters().bad_frames, 2);
}

#[test]
fn a_ring_of_a_rank_that_leaves_is_offered_to_one_that_has_none() {
    let (mut b, mut rank) = serving(hosting());
    b.meet(8, true, None);
    for late in [9, 10] {
        b.handle(rank_up(late, 1));
    }
    b.hear(&mut rank, Body::Tokens(batch(0, 0, &[(3, 0)])));
    assert!(
        sent(&b.handle(rank_up(8, 2))).iter().all(|s| s.0 == WorkerId(8)),
        "one that is back has its own"
    );
    assert!(sent(&b.handle(Event::PeerDown(rank.id))).is_empty(), "a step still reads its ring");
    let whole = Body::Credit(vec![0, 1, 2, 3]);
    assert_eq!(sent(&b.done()), [(WorkerId(9), &whole)], "who came first");
    b.handle(Event::PeerDown(WorkerId(10)));
    assert!(sent(&b.handle(Event::PeerDown(WorkerId(8)))).is_empty(), "nobody waits any more");
    let actions = b.handle(rank_up(10, 2));
    assert_eq!(sent(&actions), [(WorkerId(10), &whole)]);
}

#[test]
fn marks_that_no_rank_can_mean_are_counted_and_change_nothing() {
    let (mut b, mut rank) = serving(hosting());
    b.meet(8, true, None);
    let (progress, cycle) = (4, CYCLE);
    let mark = Mark { class: Class(0), order: 1, progress, frames: 0, tokens: 1, blocked: false, cycle };
    // Behind the last class of this rank begin those of the next.
    for wrong in [
        Mark { class: Class(3), ..mark },
        Mark { progress: FAR, ..mark },
        Mark { cycle: Nanos::MAX, ..mark },
        Mark { frames: 1 << 20, ..mark },
    ] {
        b.hear(&mut rank, Body::Mark(wrong));
        assert_eq!(b.worker.host.as_ref().unwrap().frontier.floor(0, b.now, CYCLE).0, IDLE, "{wrong:?}");
    }
    assert_eq!(b.worker.counters().bad_frames, 4);
    b.hear(&mut rank, Body::Mark(mark));
    assert_eq!(b.worker.host.as_ref().unwrap().frontier.floor(0, b.now, CYCLE).0, 4);
    // As many tokens as can be written, twice.
    let mut second = b.meet(9, true, None);
    for from in [&mut rank, &mut second] {
        b.hear(from, Body::Mark(Mark { order: 2, tokens: u32::MAX, ..mark }));
    }
    assert_eq!(b.worker.host.as_ref().unwrap().frontier.late_tokens(0, 9, b.now, CYCLE), u32::MAX);
}

#[test]
fn what_is_not_held_is_sent_back_with_the_rows_that_nothing_else_uses() {
    let (mut b, mut rank) = serving(hosting());
    let mut sliced = batch(0, 0, &[(0, 0), (0, 2), (1, 3), (2, 1)]);
    sliced.items[3].slice = Slice { lo: 0, hi: 1 };
    let back: Vec<ReturnItem> =
        sliced.items[1..].iter().map(|i| ReturnItem { back: i.back, slice: i.slice }).collect();
    let landing = b.receive(&mut rank, Body::Tokens(sliced));
    assert_eq!(landing.len(), 3);
    let actions = b.settle();
    let [(to, Body::Redirect(redirect))] = sent(&actions)[..] else { panic!("{actions:?}") };
    assert_eq!((to, &redirect.items), (rank.id, &back));
    assert_eq!(redirect.freed, [1, 2], "row 0 waits for expert 0");
    assert_eq!(redirect.slice.as_ref().map(|s| s.generation), Some(2), "the sender's table is older");
    assert_eq!(b.worker.counters().redirects_sent, 3);
    for generation in [2, 3] {
        let actions = b.hear(&mut rank, Body::Tokens(TokenBatch { generation, ..batch(0, 0, &[(3, 3)]) }));
        let [(_, Body::Redirect(redirect))] = sent(&actions)[..] else { panic!("{actions:?}") };
        assert_eq!(redirect.slice, None, "this table is not newer");
    }
    assert_eq!(b.worker.counters().redirects_sent, 5);
}

#[test]
fn a_unit_that_still_loads_takes_no_tokens() {
    let (mut b, mut rank) = serving(hosting());
    b.place(3, vec![held(ME, unit(0, 2))]);
    b.hear(&mut rank, Body::Tokens(batch(0, 0, &[(0, 2)])));
    assert_eq!((b.worker.counters().redirects_sent, b.running.is_none()), (1, true));
}

#[test]
fn a_step_keeps_to_its_rows_and_its_outputs_to_the_bank_that_is_free() {
    let (mut b, mut rank) = serving(WorkerConfig { max_expert_rows: 3, ..hosting() });
    let slab = b.worker.config.slab;
    b.hear(&mut rank, Body::Tokens(batch(0, 0, &[(0, 0), (0, 1), (1, 0), (1, 1)])));
    let rows = |b: &Bench| -> Vec<(u32, u32)> { b.experts().items.iter().map(|i| (i.src, i.dst)).collect() };
    let (src, out) = (|i| slab.landing(i), |bank, i| slab.output(bank, i));
    assert_eq!(rows(&b), [(src(0), out(0, 0)), (src(1), out(0, 1))], "expert 0");
    let actions = b.done();
    let [(to, Body::Returns(returns))] = sent(&actions)[..] else { panic!("{actions:?}") };
    assert_eq!(to, rank.id);
    let back = |group| ReturnItem { back: ReturnTo { group, tag: 1, k: 0 }, slice: Slice::whole(2) };
    let due = ReturnBatch { rows: vec![out(0, 0), out(0, 1)], items: vec![back(0), back(1)], freed: vec![] };
    assert_eq!(*returns, due, "both rows are still wanted of expert 1");
    assert_eq!(rows(&b), [(src(0), out(1, 0)), (src(1), out(1, 1))]);
    let actions = b.done();
    let [(_, Body::Returns(returns))] = sent(&actions)[..] else { panic!("{actions:?}") };
    assert_eq!(returns.freed, [0, 1]);
    b.hear(&mut rank, Body::Tokens(batch(0, 0, &[(0, 0), (1, 0), (2, 0), (3, 0)])));
    assert_eq!(rows(&b).len(), 3);
    assert_eq!(b.experts().items[0].dst, out(0, 0));
    b.done();
    assert_eq!(rows(&b), [(src(3), out(1, 0))], "oldest first");
    b.done();
    let n = *b.worker.counters();
    assert_eq!((n.expert_steps, n.expert_units, n.expert_rows), (4, 4, 8));
    assert!(b.worker.is_empty());
}

#[test]
fn the_row_budget_is_of_all_units_together() {
    for (budget, due) in [(3, vec![2, 1]), (2, vec![2])] {
        let config = WorkerConfig { policy: Policy::Frontier, max_expert_rows: budget, ..hosting() };
        let (mut b, mut rank) = serving(config);
        b.hear(&mut rank, Body::Tokens(batch(0, 0, &[(0, 0), (1, 0), (2, 1), (3, 1)])));
        let units: Vec<_> = b.experts().units.iter().map(|u| u.items.len()).collect();
        assert_eq!(units, due, "{budget}");
        b.done();
        assert_eq!(b.experts().items.len(), 4 - budget as usize);
    }
}

#[test]
fn a_unit_takes_its_classes_side_by_side_the_oldest_first() {
    let (mut b, mut rank) = serving(WorkerConfig { policy: Policy::Mtfs, ..hosting() });
    b.receive(&mut rank, Body::Tokens(batch(1, 0, &[(3, 0)])));
    b.now = 1;
    b.receive(&mut rank, Body::Tokens(batch(0, 0, &[(0, 0), (1, 0)])));
    b.receive(&mut rank, Body::Tokens(batch(0, 0, &[(2, 1)])));
    b.settle();
    let step = b.experts();
    assert_eq!((step.units.len(), step.units[0].items.clone()), (1, 0..3));
    assert_eq!(step.items[0].src, b.worker.config.slab.landing(3));
}

#[test]
fn a_ranks_new_connection_finds_its_ring_empty() {
    let (mut b, mut rank) = serving(hosting());
    b.hear(&mut rank, Body::Tokens(batch(0, 0, &[(0, 0), (1, 0)])));
    b.hear(&mut rank, Body::Tokens(batch(0, 0, &[(2, 0)])));
    let mut again = b.meet(RANK, true, None);
    b.hear(&mut again, Body::Tokens(batch(0, 1, &[(2, 0)])));
    b.done();
    let actions = b.done();
    let [(_, Body::Returns(returns))] = sent(&actions)[..] else { panic!("{actions:?}") };
    assert_eq!(returns.freed, [2]);
}

#[test]
fn pressure_tells_depth_and_age_of_each_unit_and_whether_anything_is_under_way() {
    let (mut b, mut rank) = serving(hosting());
    assert!(!b.worker.is_busy());
    b.hear(&mut rank, Body::Tokens(batch(0, 0, &[(0, 0)])));
    assert!(b.worker.is_busy() && !b.worker.is_empty(), "a step runs");
    b.now = 10;
    b.hear(&mut rank, Body::Tokens(batch(0, 1, &[(1, 1), (2, 1)])));
    b.now = 30;
    b.hear(&mut rank, Body::Tokens(batch(0, 1, &[(3, 0)])));
    let p = b.worker.pressure(35);
    let ages: Vec<_> = p.experts.iter().map(|(u, q)| (*u, q.rows, q.age)).collect();
    assert_eq!(ages, [(unit(1, 1), 2, 25), (unit(1, 0), 1, 5)]);
    assert_eq!(p.slots, SlotCounts { serving: 4, ..SlotCounts::default() });
    b.now = 40;
    b.done();
    assert_eq!(b.worker.pressure(50).step, [0, 40, 0], "of attention, experts and head");
    b.run();
    assert!(!b.worker.is_busy());
}
