//! Spans of blocks that one worker holds whole, and what attention and head steps are told.

use super::scheduling::alone_with;
use super::*;
use crate::step::{Entry, SegmentStep};

fn spanning() -> Bench {
    alone_with(WorkerConfig { spans: true, ..dense() })
}

/// Blocks and whether they are a span, of the running step.
fn blocks(b: &Bench) -> (std::ops::Range<u16>, bool) {
    (b.attention().blocks.clone(), b.attention().span)
}

#[test]
fn blocks_held_whole_here_run_in_one_step() {
    let mut b = spanning();
    b.bind(bind(1, 2, 2));
    assert_eq!(blocks(&b), (0..3, true));
    b.running = None;
    b.handle(Event::Done(Outcome::Spanned((0..12).collect())));
    assert_eq!(b.worker.pressure(0).loads, (0..12).collect::<Vec<u64>>());
    assert_eq!(b.head().rows[0].entry, Entry::Carry);
    b.done();
    assert_eq!(blocks(&b), (0..3, true));
    b.running = None;
    b.handle(Event::Done(Outcome::Spanned(vec![1; 12])));
    assert_eq!(b.worker.pressure(0).loads, (1..13).collect::<Vec<u64>>());
    b.run();
    let n = b.worker.counters();
    assert_eq!((n.spans, n.attention_steps, n.attention_rows, n.head_steps), (2, 2, 3, 2));
}

#[test]
fn a_span_ends_before_a_block_that_is_not_whole_here() {
    let whole = |but: &[(u16, u16)]| -> Vec<Replica> {
        let all = (0..12).map(|i| (i / 4, i % 4));
        all.filter(|u| !but.contains(u)).map(|(b, e)| held(ME, unit(b, e))).collect()
    };
    // Block 1 has an expert elsewhere as well; block 2 has one that nobody holds.
    for (rows, due) in [
        ([whole(&[]), vec![held(WorkerId(9), unit(1, 0))]].concat(), 0..1),
        ([whole(&[(1, 0)]), vec![held(WorkerId(9), unit(1, 0))]].concat(), 0..1),
        (whole(&[(2, 3)]), 0..2),
    ] {
        let mut b = spanning();
        b.place(2, rows);
        b.bind(bind(1, 2, 2));
        assert_eq!(blocks(&b), (due.clone(), true));
        b.running = None;
        b.handle(Event::Done(Outcome::Spanned(vec![])));
        assert_eq!(blocks(&b), (due.end..due.end + 1, false));
        assert_eq!(b.attention().rows[0].entry, Entry::Carry);
    }
    let mut b = spanning();
    b.place(2, whole(&[(0, 1)]));
    b.bind(bind(1, 2, 2));
    assert_eq!(blocks(&b), (0..1, false));
    b.done();
    b.run_until(|s| matches!(s, Step::Attention(_)));
    assert_eq!(b.worker.counters().orphaned, 2);
}

#[test]
fn a_block_is_whole_when_its_last_unit_is_loaded() {
    let mut b = spanning();
    b.place(2, (0..8).map(|i| held(ME, unit(i / 4, i % 4))).collect());
    let asked = b.place(3, (0..12).map(|i| held(ME, unit(i / 4, i % 4))).collect());
    b.bind(bind(1, 2, 2));
    assert_eq!(blocks(&b), (0..2, true), "block 2 still loads");
    b.load(&asked);
    b.running = None;
    b.handle(Event::Done(Outcome::Spanned(vec![])));
    assert_eq!(blocks(&b), (2..3, true));
    b.running = None;
    b.handle(Event::Done(Outcome::Spanned(vec![1, 2, 3, 4])));
    assert_eq!(b.worker.pressure(0).loads[8..], [1, 2, 3, 4], "of the span's own blocks");
}

#[test]
fn who_holds_no_experts_and_who_runs_in_step_has_no_spans() {
    let mut b = Bench::new(WorkerConfig { spans: true, ..dense() });
    b.bind(bind(1, 2, 2));
    assert_eq!(blocks(&b), (0..1, false));
    for (spans, policy) in [(true, Policy::Sync), (false, Policy::Flfs)] {
        let mut b = alone_with(WorkerConfig { spans, policy, ..dense() });
        b.bind(bind(1, 2, 2));
        assert_eq!(blocks(&b), (0..1, false));
    }
    let mut b = Bench::new(WorkerConfig {
        spans: true,
        host: Some(HostConfig { slots: 1, ring: 1, linger: 0 }),
        ..dense()
    });
    b.bind(bind(1, 2, 2));
    assert_eq!(blocks(&b), (0..2, true), "dense blocks need no experts");
}

#[test]
fn a_span_does_not_overtake_the_segment_ahead() {
    let mut b = spanning();
    b.worker.rank.as_mut().unwrap().config.prefill_chunk = 4;
    // The experts of block 1 are elsewhere for a while: the first chunk waits there.
    b.place(2, (0..12).filter(|i| i / 4 != 1).map(|i| held(ME, unit(i / 4, i % 4))).collect());
    b.bind(bind(1, 8, 2));
    assert_eq!((blocks(&b), b.attention().segments[0].start), ((0..1, true), 0));
    b.done();
    assert_eq!((blocks(&b), b.attention().segments[0].start), ((0..1, true), 4));
    let asked = b.place(3, (0..12).map(|i| held(ME, unit(i / 4, i % 4))).collect());
    b.load(&asked);
    b.done();
    assert_eq!((blocks(&b), b.attention().segments.len()), ((1..3, true), 2), "both in one step");
    b.done();
    assert_eq!(b.head().rows.len(), 1);
}

#[test]
fn a_step_is_told_the_pages_that_its_rows_need() {
    let mut b = dense_with(|r| r.prefill_chunk = 6);
    b.bind(bind(1, 12, 2));
    let segment = |b: &Bench| b.attention().segments.clone();
    let of = |start, len, pages| SegmentStep { seq: crate::ids::SeqHandle(0), start, len, pages };
    assert_eq!(segment(&b), [of(0, 6, 0..2)]);
    b.done();
    assert_eq!(segment(&b), [of(6, 6, 0..3)]);
    b.done();
    assert_eq!(segment(&b), [of(0, 6, 0..2), of(6, 6, 2..5)], "side by side");
    let step = b.attention();
    assert_eq!(step.pages[..2], step.pages[2..4], "of one sequence");
    let embeds: Vec<_> = step.rows.iter().map(|r| r.entry).collect();
    assert_eq!(embeds, [Entry::Carry; 12]);
    b.done();
    let row = b.head().rows[0];
    assert_eq!((row.entry, row.index, b.head().rows.len()), (Entry::Carry, 0, 1));
    b.done();
    assert_eq!((segment(&b), b.attention().rows[0].entry), (vec![of(12, 1, 0..4)], Entry::Embed(100)));
    b.run_until(|s| matches!(s, Step::Head(_)));
    assert_eq!(b.head().rows[0].index, 1);
}

#[test]
fn a_prompts_rows_enter_by_their_tokens() {
    let mut b = Bench::new(dense());
    b.bind(Bind { ids: [5, 6, 7].into(), produced: 1, ..bind(1, 0, 4) });
    let entries: Vec<_> = b.attention().rows.iter().map(|r| r.entry).collect();
    assert_eq!(entries, [5, 6, 7].map(Entry::Embed));
    b.run_until(|s| matches!(s, Step::Head(_)));
    assert_eq!(b.head().rows[0].index, 1, "the second token over all attempts");
}

#[test]
fn a_shared_prefix_is_not_computed_again() {
    let mut b = dense_with(|r| r.prefix_reuse = true);
    b.bind(bind(1, 9, 1));
    b.run();
    b.bind(bind(2, 9, 1));
    assert_eq!((b.attention().segments[0].start, b.attention().rows.len()), (8, 1));
    assert_eq!(b.worker.pressure(0).prefix, (8, 18));
    b.run();
    assert_eq!(b.worker.counters().prefilled, 10);
    assert!(b.worker.is_empty());
}
