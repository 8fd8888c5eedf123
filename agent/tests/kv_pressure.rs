//! A KV pool of one and a half full-length requests, and 64 clients: some leave, some run past their deadline, and the
//! engine is drained while the rest runs. What each got is, bit by bit, what a large pool gives.
//!
//! `cargo test -p sluice-agent --test kv_pressure -- --nocapture` prints the counts.

#![allow(clippy::unwrap_used, reason = "a test's own engine")]

mod driver;
mod engines;

use std::ops::AddAssign;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engines::{Answer, Reports, Variation, answers};
use sluice_agent::cli::Layout;
use sluice_agent::gateway::{Engine, EventSource, Generate, SeqEvent, events};
use sluice_agent::model::weights::Weights;
use sluice_agent::runtime::Runtime;
use sluice_core::front::{CancelCause, Complete, Ending, Refused, Waiting};
use sluice_core::ids::SeqKey;
use sluice_core::sequence::StopRule;

const CLIENTS: usize = 64;
/// So many are over when the engine is drained.
const BEFORE_DRAIN: usize = 40;

/// What a client does beside reading.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Stays,
    /// Cancels after so many tokens.
    Cancels(usize),
    /// Is gone after so many tokens, without a word.
    Vanishes(usize),
    /// Has so much time.
    Hurries(Duration),
}

/// Every third request is as long as the model's context allows; the others are short. Nothing ends one early.
fn requests(weights: &Weights) -> Vec<Generate> {
    let context = weights.spec().max_positions;
    engines::requests(weights, CLIENTS)
        .into_iter()
        .enumerate()
        .map(|(i, mut request)| {
            let full = i % 3 == 0;
            let len = if full { context / 2 + i * 37 % 384 } else { 8 + i * 11 % 200 };
            request.prompt = request.prompt.iter().copied().cycle().take(len).collect();
            let max_tokens = if full { context - len } else { 32 } as u32;
            request.stop = StopRule { ids: vec![], min_tokens: 0, max_tokens };
            request
        })
        .collect()
}

/// Leavers and those in a hurry are among the long and the short. A millisecond is too short for any. The first, which
/// always proceeds, has time for a part; the others' deadlines are spread over what the large pool took for all.
fn fate(i: usize, took: Duration) -> Fate {
    match i % 14 {
        2 | 11 => Fate::Cancels(1 + i % 5),
        5 | 8 => Fate::Vanishes(1 + i % 5),
        0 if i == 0 => Fate::Hurries(took / 10),
        6 if i < 14 => Fate::Hurries(Duration::from_millis(1)),
        6 | 7 => Fate::Hurries(took * (i as u32 + 4) / CLIENTS as u32),
        _ => Fate::Stays,
    }
}

/// Reads what comes, as far as the client's fate goes. One that vanished has no ending.
async fn read(engine: &Runtime, seq: SeqKey, mut source: EventSource, fate: Fate) -> Answer {
    let mut answer = Answer::default();
    while let Some((_, event)) = source.next().await {
        answer.take(event);
        match fate {
            Fate::Cancels(after) if answer.ids.len() == after => engine.cancel(seq, CancelCause::Client),
            Fate::Vanishes(after) if answer.ids.len() == after => break,
            _ => {}
        }
    }
    answer
}

/// Asks until the engine takes nothing more; how often it still did.
async fn until_refused(engine: &Runtime, like: &Generate) -> usize {
    for taken in 0.. {
        let (sink, mut source) = events(100_000);
        let mut request = like.clone();
        request.request = 1_000_000 + taken;
        request.stop.max_tokens = 1;
        engine.submit(request, sink);
        while let Some((_, event)) = source.next().await {
            if let SeqEvent::End(Ending::Refused(refused)) = event {
                assert!(matches!(refused, Refused::Draining { .. }), "{refused}");
                return taken as usize;
            }
        }
    }
    unreachable!("requests run out")
}

/// Every client's answer, those asked late that were taken, and whether the drain let all finish.
async fn storm(engine: &Arc<Runtime>, requests: &[Generate], fates: &[Fate]) -> (Vec<Answer>, usize, bool) {
    let mut running = tokio::task::JoinSet::new();
    for (i, (request, fate)) in requests.iter().zip(fates.iter().copied()).enumerate() {
        let (sink, source) = events(100_000);
        let mut request = request.clone();
        if let Fate::Hurries(time) = fate {
            request.timeout = time;
        }
        let seq = SeqKey { request: request.request, choice: 0 };
        engine.submit(request, sink);
        let engine = engine.clone();
        running.spawn(async move { (i, read(&engine, seq, source, fate).await) });
    }
    let mut all = vec![Answer::default(); requests.len()];
    let mut drain = None;
    let mut over = 0;
    loop {
        let next = tokio::time::timeout(Duration::from_secs(120), running.join_next()).await;
        let Some(done) = next.expect("something within two minutes") else { break };
        let (i, answer) = done.unwrap();
        all[i] = answer;
        over += 1;
        if over == BEFORE_DRAIN {
            let state = engine.state().unwrap();
            println!(
                "drained with {} sequences under way, {} of them waiting",
                state.live,
                state.waiting.fresh + state.waiting.replays
            );
            assert!(state.live > 0);
            let (draining, asking, like) = (engine.clone(), engine.clone(), requests[1].clone());
            let drained = tokio::task::spawn_blocking(move || draining.drain(Duration::from_secs(600)));
            drain = Some((drained, tokio::spawn(async move { until_refused(&asking, &like).await })));
        }
    }
    let (drained, late) = drain.expect("drained");
    (all, late.await.unwrap(), drained.await.unwrap())
}

#[derive(Debug, Default, PartialEq)]
struct Ends {
    complete: usize,
    cancelled: usize,
    vanished: usize,
    /// Past their deadlines before their first token.
    late: usize,
    /// Past their deadlines in mid-stream.
    midway: usize,
}

/// A client's answer against the large pool's: all of it, or a part from its beginning.
fn compare(i: usize, fate: Fate, got: &Answer, whole: &Answer, ends: &mut Ends) {
    let count = match (fate, got.ending) {
        (_, Some(Ending::Complete(Complete::Length))) => {
            assert_eq!(got.ids, whole.ids, "tokens of request {i}");
            assert_eq!(got.logprobs, whole.logprobs, "log-probabilities of request {i}");
            &mut ends.complete
        }
        (Fate::Cancels(_), Some(Ending::Cancelled)) => &mut ends.cancelled,
        (Fate::Vanishes(_), None) => &mut ends.vanished,
        (Fate::Hurries(_), Some(Ending::Deadline)) if got.ids.is_empty() => &mut ends.late,
        (Fate::Hurries(_), Some(Ending::Deadline)) => &mut ends.midway,
        other => panic!("request {i}: {other:?}"),
    };
    count.add_assign(1);
    assert!(whole.ids.starts_with(&got.ids), "tokens of request {i}");
    assert!(whole.logprobs.starts_with(&got.logprobs), "log-probabilities of request {i}");
}

fn under_pressure(weights: &Arc<Weights>, small: &Variation, whole: &[Answer], took: Duration) {
    let requests = requests(weights);
    let fates: Vec<Fate> = (0..CLIENTS).map(|i| fate(i, took)).collect();
    let reports = Arc::new(Reports::default());
    let engine = Arc::new(engines::start(weights, small, &reports));
    let tokio = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let (answers, late, drained) = tokio.block_on(storm(&engine, &requests, &fates));
    drop(tokio);
    let state = engine.state().unwrap();
    // The workers' last words are said when they leave.
    drop(Arc::try_unwrap(engine).expect("nobody else has the engine"));

    let mut ends = Ends::default();
    for (i, fate) in fates.iter().enumerate() {
        compare(i, *fate, &answers[i], &whole[i], &mut ends);
    }
    let (preemptions, counts) = (reports.sum(|c| c.preemptions), state.counts);
    println!(
        "{small}: {preemptions} preemptions, {} sequences bound again, {ends:?}, {late} taken before the drain was heard",
        counts.preempted
    );
    assert!(drained, "the drain cut something");
    assert!(preemptions > 0);
    assert!(ends.complete > 0 && ends.cancelled > 0 && ends.vanished > 0 && ends.late > 0, "{ends:?}");

    assert!(state.idle && state.live == 0 && state.waiting == Waiting::default(), "{state:?}");
    // One that vanished may have been complete before anybody noticed.
    let known = (ends.complete + late) as u64;
    let over = known + (ends.cancelled + ends.vanished) as u64;
    assert!(counts.complete >= known && counts.complete + counts.cancelled == over, "{counts:?}");
    assert_eq!(counts.deadline, (ends.late + ends.midway) as u64, "{counts:?}");
    assert_eq!((counts.refused, counts.failed, counts.cut), (1, 0, 0), "{counts:?}");
    assert_eq!(counts.admitted, (CLIENTS + late) as u64, "{counts:?}");
    for worker in reports.all() {
        assert_eq!(worker.failure, None);
        let p = &worker.pressure;
        assert_eq!((p.kv_pages.0, p.sequences, p.stalled, p.orphans), (0, (0, 0), 0, 0), "{}", worker.worker);
    }
}

#[test]
fn a_pool_too_small_for_its_clients_gives_the_same_bits() {
    let weights = driver::open(&driver::tiny_moe());
    let context = weights.spec().max_positions as u64;
    let large = Variation {
        layout: Layout::Hybrid,
        concurrency: CLIENTS,
        kv_tokens: CLIENTS as u64 * context,
        ..Variation::default()
    };
    let requests = requests(&weights);
    let begun = Instant::now();
    let whole = answers(&weights, &large, &requests);
    let took = begun.elapsed();
    let tokens: usize = whole.answers.iter().map(|a| a.ids.len()).sum();
    println!("{large}: {CLIENTS} requests, {tokens} tokens, {} preemptions", whole.preemptions);
    assert_eq!(whole.preemptions, 0, "the large pool is large enough");

    let small = Variation { kv_tokens: context * 3 / 2, prefix_cache: true, ..large };
    under_pressure(&weights, &small, &whole.answers, took);
    let small = Variation { layout: Layout::Disaggregated, experts: 2, prefix_cache: false, ..small };
    under_pressure(&weights, &small, &whole.answers, took);
}
