//! The whole engine: the same bits over every layout, scheduler, batch and placement.
//!
//! `cargo test -p sluice-agent --test engine -- --nocapture` prints what was compared. The full sweep is
//! `cargo test --release -p sluice-agent --test engine -- --include-ignored --nocapture`.

#![allow(clippy::unwrap_used, reason = "a test's own files")]

mod driver;
mod engines;

use engines::{Answers, Variation, answers, requests};

fn compare(variations: &[Variation], count: usize) {
    let weights = driver::open(&driver::tiny_moe());
    let requests = requests(&weights, count);
    let expected = answers(&weights, &Variation::default(), &requests);
    let (mut tokens, mut logprobs) = (0, 0);
    for a in &expected.answers {
        tokens += a.ids.len();
        logprobs += a.logprobs.len();
    }
    println!("{} requests, {tokens} tokens, {logprobs} log-probabilities each", requests.len());
    for v in variations {
        let got = answers(&weights, v, &requests);
        same(&expected, &got, v);
        println!("  same bits: {v}; {:.1} rows per expert step", got.rows_per_expert_step);
    }
}

fn same(expected: &Answers, got: &Answers, v: &Variation) {
    for (i, (e, g)) in expected.answers.iter().zip(&got.answers).enumerate() {
        assert_eq!(e.ids, g.ids, "{v}: tokens of request {i}");
        assert_eq!(e.logprobs, g.logprobs, "{v}: log-probabilities of request {i}");
        assert_eq!(e.ending, g.ending, "{v}: ending of request {i}");
    }
    assert_eq!(expected.answers.len(), got.answers.len());
}

#[test]
fn layouts_and_schedulers_give_the_same_bits() {
    compare(&engines::quick(), 12);
}

#[test]
#[ignore = "the full sweep takes minutes: see the top of this file"]
fn everything_gives_the_same_bits() {
    compare(&engines::sweep(), 64);
}
