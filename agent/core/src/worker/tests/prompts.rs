//! Prompts are cut into segments, and decode goes on in waves.

use super::*;

/// (request, first position, rows) of each segment of the running step.
fn segments(b: &Bench) -> Vec<(u64, u32, u32)> {
    let rank = b.worker.rank.as_ref().unwrap();
    let request = |h: u32| rank.sequences[h as usize].as_ref().unwrap().key.request;
    b.attention().segments.iter().map(|s| (request(s.seq.0), s.start, s.len)).collect()
}

/// Tokens in each class: the waves, then prefill.
fn classes(b: &Bench) -> Vec<u32> {
    b.worker.rank.as_ref().unwrap().clocks.iter().map(crate::clock::Clock::total).collect()
}

#[test]
fn a_long_prompt_comes_in_chunks_and_each_follows_when_the_one_ahead_has_left_the_first_block() {
    let mut b = dense_with(|r| (r.prefill_chunk, r.prefill_tokens) = (8, 64));
    b.bind(bind(1, 20, 2));
    assert_eq!(segments(&b), [(1, 0, 8)], "the second could only wait");
    b.done();
    assert_eq!((b.attention().blocks.clone(), segments(&b)), (0..1, vec![(1, 8, 8)]));
    b.done();
    assert_eq!((b.attention().blocks.clone(), segments(&b)), (0..1, vec![(1, 16, 4)]));
    let wanted: Vec<bool> = b.attention().rows.iter().map(|r| r.wanted).collect();
    assert_eq!(wanted, [false, false, false, true], "the last token of the prompt is sampled");
    b.done();
    assert_eq!((b.attention().blocks.clone(), segments(&b).len()), (1..2, 3));
    assert_eq!(b.worker.counters().prefilled, 20);
    let told = b.run();
    assert_eq!(told.last().unwrap().2, RankEvent::Finished(Finish::Length));
}

#[test]
fn the_prefill_budget_is_kept_to_the_token_and_nobody_overtakes() {
    for (second, both) in [(8, true), (9, false)] {
        let mut b = dense_with(|r| (r.prefill_chunk, r.prefill_tokens) = (16, 16));
        b.bind(bind(1, 8, 2));
        b.bind(bind(2, second, 2));
        b.bind(bind(3, 1, 2));
        assert_eq!(segments(&b), [(1, 0, 8)]);
        assert_eq!(
            classes(&b),
            [0, 0, if both { 8 + second } else { 8 }],
            "the third waits behind the second"
        );
    }
    let mut b = dense_with(|r| (r.prefill_chunk, r.prefill_tokens) = (16, 4));
    b.bind(bind(1, 8, 2));
    assert_eq!(segments(&b), [(1, 0, 8)], "a prompt larger than the budget goes alone");
}

#[test]
fn a_segment_has_all_of_its_rows_or_waits() {
    let run = |second| {
        let mut config = dense();
        (config.slab.tokens, config.slab.groups) = (16, 16);
        let rank = config.rank.as_mut().unwrap();
        (rank.prefill_chunk, rank.prefill_tokens) = (8, 64);
        let mut b = Bench::new(config);
        b.bind(bind(1, 8, 2));
        b.bind(bind(2, 4, 2));
        b.bind(bind(3, second, 2));
        classes(&b)[2]
    };
    assert_eq!((run(4), run(5)), (16, 12));
}

#[test]
fn a_prompt_that_is_through_joins_the_wave_with_the_fewest_tokens() {
    let mut b = Bench::new(dense());
    let mut joined = vec![];
    for request in 1..=5 {
        b.bind(bind(request, 4, 20));
        while classes(&b)[2] > 0 {
            b.done();
        }
        joined.push(classes(&b));
        if request == 4 {
            // Of the first wave; of two equal ones the first is taken.
            b.cancel(1, 1);
            b.cancel(3, 1);
        }
    }
    assert_eq!(joined, [[1, 0, 0], [1, 1, 0], [2, 1, 0], [2, 2, 0], [1, 2, 0]]);
}

#[test]
fn decode_and_prefill_share_a_step_under_its_token_budget() {
    let mut config = dense();
    (config.max_step_rows, config.rank.as_mut().unwrap().prefill_chunk) = (10, 6);
    let mut b = Bench::new(config);
    b.bind(bind(1, 4, 20));
    b.run_until(|s| matches!(s, Step::Head(_)));
    for request in [2, 3, 4] {
        b.bind(bind(request, 4 + u32::from(request == 4), 20));
    }
    b.done();
    assert_eq!(segments(&b), [(1, 4, 1), (2, 0, 4), (3, 0, 4)], "decode first; a segment is never split");
    b.done();
    assert_eq!(segments(&b), [(4, 0, 5)]);
}

#[test]
fn pressure_tells_depth_and_age_of_each_queue() {
    let mut b = Bench::new(dense());
    b.bind(bind(1, 1, 9));
    for request in [2, 3] {
        b.now = 10 * request;
        b.bind(bind(request, 4, 9));
    }
    let waiting = |b: &Bench, now| -> Vec<_> {
        b.worker.pressure(now).attention.iter().map(|q| (q.block, q.rows, q.age)).collect()
    };
    assert_eq!(waiting(&b, 50), [(0, 8, 30)]);
    b.now = 60;
    b.done();
    assert_eq!(waiting(&b, 70), [(1, 1, 10)], "block 0 runs");
    b.done();
    assert_eq!(waiting(&b, 75), [], "all run in block 1");
    assert_eq!(b.attention().rows.len(), 9);
    let p = b.worker.pressure(75);
    assert_eq!((p.sequences, p.kv_pages, p.cycle), ((3, 0), (3, 16), CYCLE));
}

#[test]
fn a_token_that_stops_ends_the_sequence_but_not_below_the_least_number_of_tokens() {
    for (min, tokens) in [(0, 1), (2, 2), (5, 3)] {
        let mut b = Bench::new(dense());
        let stop = StopRule { ids: vec![7, 100], min_tokens: min, max_tokens: 3 };
        b.bind(Bind { stop, ..bind(1, 4, 3) });
        let told = b.run();
        let ids: Vec<_> = told.iter().filter(|t| matches!(t.2, RankEvent::Token { .. })).collect();
        let why = if min < 5 { Finish::Stop } else { Finish::Length };
        assert_eq!((ids.len(), told.last().unwrap().2), (tokens, RankEvent::Finished(why)), "{min}");
        assert_eq!(b.worker.counters().sampled, tokens as u64);
    }
}

#[test]
fn the_sampler_may_end_a_sequence_by_itself() {
    const WHY: Abort = Abort::Constraint;
    for (sample, why) in [(Sample::Done, Finish::Stop), (Sample::Abort(WHY), Finish::Aborted(WHY))] {
        let mut b = Bench::new(dense());
        b.bind(bind(1, 4, 9));
        b.run_until(|s| matches!(s, Step::Head(_)));
        assert_eq!(b.head().rows.len(), 1);
        b.running = None;
        let told = told(&b.handle(Event::Done(Outcome::Sampled(vec![sample]))));
        assert_eq!(told, [(1, 1, RankEvent::Finished(why))]);
        assert!(b.worker.is_empty());
    }
}
