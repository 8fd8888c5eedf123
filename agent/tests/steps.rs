//! What a backend does with steps that cannot be run, with structured output, and around calibration.
#![allow(clippy::unwrap_used, reason = "a test's own files")]

mod driver;

use driver::{Driver, Job, Options};
use sluice_agent::backend::Backend;
use sluice_agent::sampling::{Grammar, GrammarCompiler, GrammarLimits, SamplingParams, SequenceSampling};
use sluice_core::ids::{SeqHandle, Slice, Unit};
use sluice_core::step::{
    AttentionStep, Entry, ExpertItem, ExpertStep, HeadRow, HeadStep, Outcome, SegmentStep, Step, TokenRow,
    UnitBatch,
};

fn driver() -> Driver {
    Driver::new(driver::open(&driver::tiny_moe()), Options { tokens: 8, pages: 8, ..Options::default() })
}

fn attention() -> AttentionStep {
    AttentionStep {
        blocks: 0..1,
        span: false,
        segments: vec![SegmentStep { seq: SeqHandle(0), start: 0, len: 1, pages: 0..1 }],
        rows: vec![TokenRow { token: 0, entry: Entry::Embed(5), wanted: true }],
        slicing: vec![],
        pages: vec![0],
    }
}

fn experts() -> ExpertStep {
    let unit = Unit { block: 0, expert: 0, slice: Slice::whole(1) };
    let units = vec![UnitBatch { unit, slot: 0, items: 0..1 }];
    ExpertStep { block: 0, units, items: vec![ExpertItem { src: 8, dst: 16 }] }
}

fn head() -> HeadStep {
    HeadStep {
        rows: vec![HeadRow { token: 0, entry: Entry::Carry, seq: SeqHandle(0), index: 0 }],
        slicing: vec![],
    }
}

/// A step with one thing changed.
fn with<T>(mut step: T, change: impl FnOnce(&mut T)) -> T {
    change(&mut step);
    step
}

#[test]
fn a_step_that_cannot_be_run_says_why_and_leaves_the_worker_usable() {
    let mut driver = driver();
    let attention = |change: fn(&mut AttentionStep)| Step::Attention(with(attention(), change));
    let experts = |change: fn(&mut ExpertStep)| Step::Experts(with(experts(), change));
    let head = |change: fn(&mut HeadStep)| Step::Head(with(head(), change));
    let bad = [
        (attention(|s| s.blocks = 6..7), "block"),
        (attention(|s| s.blocks = 0..0), "block"),
        (attention(|s| s.blocks = 0..2), "without their experts"),
        (attention(|s| s.rows[0].token = 8), "token 8"),
        (attention(|s| s.rows[0].entry = Entry::Embed(4096)), "token id 4096"),
        (attention(|s| s.rows[0].entry = Entry::Merge(0)), "too few slice counts"),
        (attention(|s| (s.rows[0].entry, s.slicing) = (Entry::Merge(8), vec![1, 1])), "return group 8"),
        (attention(|s| (s.rows[0].entry, s.slicing) = (Entry::Merge(0), vec![1, 2])), "slices"),
        (attention(|s| s.slicing = vec![1, 1]), "more slice counts"),
        (attention(|s| s.segments[0].len = 2), "lengths"),
        (attention(|s| s.segments[0].pages = 0..2), "page entry"),
        (attention(|s| s.segments[0].start = 16), "page"),
        (attention(|s| s.pages = vec![8]), "page 8"),
        (attention(|s| s.segments[0].start = 5000), "position"),
        (attention(|s| (s.segments[0].len, s.rows) = (2, vec![s.rows[0]; 2])), "twice"),
        (experts(|s| s.units[0].slot = 999), "slot 999"),
        (experts(|s| s.units[0].unit.expert = 1), "slot 0 does not hold expert 1"),
        (experts(|s| s.block = 1), "does not hold"),
        (experts(|s| s.units[0].items = 0..2), "expert item"),
        (experts(|s| s.items[0].src = 3), "residual"),
        (experts(|s| s.items[0].dst = 1 << 20), "row"),
        (head(|s| s.rows[0].seq = SeqHandle(7)), "sequence 7 is not open"),
        (head(|s| s.rows[0].token = 99), "token 99"),
    ];
    let good = driver.run(vec![Job::greedy(&[5, 6, 7], 3)]);
    for (step, why) in bad {
        driver.backend.submit(step.clone());
        let Some(Outcome::Failed(found)) = driver.backend.poll() else { panic!("{step:?} was run") };
        assert!(found.contains(why), "{found:?} should name {why:?}");
        assert_eq!(driver.backend.poll(), None);
    }
    assert_eq!(driver.run(vec![Job::greedy(&[5, 6, 7], 3)]), good);
}

#[test]
fn a_span_needs_every_expert_it_meets() {
    let mut driver = driver();
    let (first, last) = (0..8, 40..48);
    first.chain(last).for_each(|slot| driver.backend.free_slot(slot));
    driver.backend.open(SeqHandle(0), SequenceSampling::greedy(vec![5].into()));
    let step = Step::Attention(with(attention(), |s| (s.blocks, s.span) = (0..6, true)));
    driver.backend.submit(step);
    assert!(
        matches!(driver.backend.poll(), Some(Outcome::Failed(why)) if why.contains("no slots hold whole"))
    );
}

#[test]
fn rows_travel_as_they_are() {
    let mut driver = driver();
    let values: Vec<f32> = (0..2 * driver.backend.row_len()).map(|i| i as f32).collect();
    driver.backend.write_rows(&[9, 3], &values);
    let mut read = vec![0.5];
    driver.backend.read_rows(&[3, 9], &mut read);
    let (a, b) = values.split_at(driver.backend.row_len());
    assert_eq!(read, [&[0.5], b, a].concat());
}

#[test]
fn calibration_measures_and_changes_nothing() {
    let jobs = || vec![Job::greedy(&[5, 6, 7], 8)];
    let mut driver = driver();
    let expected = driver.run(jobs());
    let costs = driver.backend.calibrate();
    assert!(!costs.attention.is_empty() && !costs.unit.is_empty());
    assert!(costs.unit.at(1.0) > 0.0 && costs.unit.at(64.0) >= costs.unit.at(1.0));
    assert_eq!(driver.run(jobs()), expected);
}

#[test]
fn calibration_needs_no_loaded_unit() {
    let mut driver = driver();
    (0..48).for_each(|slot| driver.backend.free_slot(slot));
    let costs = driver.backend.calibrate();
    assert!(!costs.unit.is_empty() && costs.unit.at(1.0) > 0.0);
}

#[test]
fn structured_output_ends_where_its_grammar_does() {
    let path = driver::tiny_moe().join("tokenizer.json");
    let tokenizer = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let compiler =
        GrammarCompiler::from_tokenizer_json(&tokenizer, 4096, &[2], GrammarLimits::default()).unwrap();
    let grammar = compiler.compile(&Grammar::Regex("[a-c]{3}-[0-9]{2}".to_owned())).unwrap();
    let words = llguidance::token_bytes_from_tokenizer_json(&tokenizer).unwrap();
    let job = |ids: Vec<u32>, produced, seed, count| Job {
        sampling: SequenceSampling {
            params: SamplingParams { seed, logprobs: Some(1), ..SamplingParams::default() },
            produced,
            constraint: Some(grammar.start()),
            ..SequenceSampling::greedy(ids.into())
        },
        count,
    };
    let mut driver = Driver::new(driver::open(&driver::tiny_moe()), Options::default());
    let prompt = vec![1u32, 4, 300, 301, 6, 5];
    let produced = driver.run((0..8).map(|seed| job(prompt.clone(), 0, seed, 40)).collect());
    for (seed, one) in produced.iter().enumerate() {
        let text: Vec<u8> =
            one.ids.iter().filter(|&&id| id != 2).flat_map(|&id| words[id as usize].clone()).collect();
        let text = String::from_utf8(text).unwrap();
        let (letters, digits) = text.split_once('-').unwrap();
        assert!(letters.len() == 3 && letters.bytes().all(|b| (b'a'..=b'c').contains(&b)), "{text}");
        assert!(digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_digit()), "{text}");
        let ids: Vec<u32> = prompt.iter().chain(&one.ids[..2]).copied().collect();
        let replayed = driver.run(vec![job(ids, 2, seed as u64, 38)]);
        assert_eq!(replayed[0].ids, one.ids[2..], "a replay rebuilds the grammar's state");
        assert_eq!(replayed[0].logprobs, one.logprobs[2..]);
    }
}
