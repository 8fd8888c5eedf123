//! Numbers do not depend on the schedule: tokens and log-probabilities are the same bits however the work is cut
//! into steps, batched, sliced, threaded, or vectorised.
#![allow(clippy::unwrap_used, reason = "a test's own files")]

mod driver;

use std::path::Path;
use std::sync::Arc;

use driver::{Cut, Driver, Job, Options, Produced};
use sluice_agent::backend::routing::{Routing, SkewedRouting};
use sluice_agent::backend::weights::WeightStore;
use sluice_agent::model::weights::Weights;
use sluice_agent::sampling::{SamplingParams, SequenceSampling};
use sluice_kernels::cpu::Isa;

/// Half of them greedy, half sampled, all with log-probabilities.
fn jobs(vocab: usize, lengths: &[usize], count: usize) -> Vec<Job> {
    lengths
        .iter()
        .enumerate()
        .map(|(i, &length)| {
            let prompt: Vec<u32> =
                (0..length).map(|p| ((p * 7919 + i * 104_729 + 13) % vocab) as u32).collect();
            let sampled = SamplingParams {
                temperature: 0.9,
                top_p: 0.9,
                presence_penalty: 0.4,
                repetition_penalty: 1.1,
                seed: 1000 + i as u64,
                ..SamplingParams::default()
            };
            let params = if i % 2 == 0 { SamplingParams::greedy() } else { sampled };
            let params = SamplingParams { logprobs: Some(3), ..params };
            Job { sampling: SequenceSampling { params, ..SequenceSampling::greedy(prompt.into()) }, count }
        })
        .collect()
}

struct Model {
    name: String,
    weights: Arc<Weights>,
    lengths: Vec<usize>,
    count: usize,
}

impl Model {
    fn open(path: &Path, lengths: &[usize], count: usize) -> Self {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        Self { name, weights: driver::open(path), lengths: lengths.to_vec(), count }
    }

    fn tiny_moe(lengths: &[usize], count: usize) -> Self {
        Self::open(&driver::tiny_moe(), lengths, count)
    }

    fn run(&self, options: Options) -> Vec<Produced> {
        let spec = Arc::clone(self.weights.spec());
        Driver::new(Arc::clone(&self.weights), options).run(jobs(spec.vocab, &self.lengths, self.count))
    }

    /// Each sequence on its own.
    fn run_alone(&self, options: Options) -> Vec<Produced> {
        let spec = Arc::clone(self.weights.spec());
        let mut driver = Driver::new(Arc::clone(&self.weights), options);
        jobs(spec.vocab, &self.lengths, self.count)
            .into_iter()
            .flat_map(|job| driver.run(vec![job]))
            .collect()
    }

    /// Every way of running gives what `base` gives.
    fn all_equal(&self, base: &Options, ways: impl IntoIterator<Item = (&'static str, Options)>) {
        let expected = self.run(base.clone());
        assert!(expected.iter().all(|one| one.ids.len() == self.count && one.logprobs.len() == self.count));
        for (way, options) in ways {
            let found = self.run(options);
            for (i, (expected, found)) in expected.iter().zip(&found).enumerate() {
                assert_eq!(expected, found, "{}: {way}, sequence {i}", self.name);
            }
        }
        assert_eq!(self.run_alone(base.clone()), expected, "{}: alone", self.name);
    }
}

#[test]
fn spans_steps_chunks_batches_and_threads() {
    let model = Model::tiny_moe(&[5, 17, 64, 333, 900, 100], 12);
    let base = Options::default();
    model.all_equal(
        &base,
        [
            ("spans of one block", Options { cut: Cut::Spans(1), ..base.clone() }),
            ("spans of four blocks", Options { cut: Cut::Spans(4), ..base.clone() }),
            ("single blocks", Options { cut: Cut::Single, ..base.clone() }),
            ("chunks of 16", Options { chunk: 16, ..base.clone() }),
            (
                "chunks of 100, single blocks, few tokens a step",
                Options { chunk: 100, cut: Cut::Single, tokens: 128, ..base.clone() },
            ),
            ("two threads", Options { threads: 2, ..base.clone() }),
            (
                "three threads, single blocks, chunks of 77",
                Options { threads: 3, cut: Cut::Single, chunk: 77, ..base.clone() },
            ),
            ("every position to the end", Options { everything: true, ..base.clone() }),
        ],
    );
}

#[test]
fn random_schedules() {
    let model = Model::tiny_moe(&[5, 90, 33, 200, 64, 7, 15], 10);
    let base = Options { segments: 8, ..Options::default() };
    let random = |seed| {
        let slices = vec![1, 8, 2, 4];
        ("a random schedule", Options { random: Some(seed), chunk: 90, slices, tokens: 256, ..base.clone() })
    };
    model.all_equal(&base, (0..8).map(random));
}

#[test]
fn one_token_at_a_time() {
    let model = Model::tiny_moe(&[5, 70, 40], 4);
    let base = Options::default();
    model.all_equal(
        &base,
        [
            ("chunks of 1", Options { chunk: 1, ..base.clone() }),
            ("chunks of 1, single blocks", Options { chunk: 1, cut: Cut::Single, ..base.clone() }),
        ],
    );
}

#[test]
fn slices_of_one_tree() {
    let model = Model::tiny_moe(&[5, 40, 120], 6);
    for segments in [2u8, 4, 8] {
        let base = Options { segments, ..Options::default() };
        let single = Options { cut: Cut::Single, ..base.clone() };
        let held = |slices: &[u8]| slices.iter().copied().filter(|s| *s <= segments).collect::<Vec<u8>>();
        model.all_equal(
            &base,
            [
                ("single, whole", Options { slices: held(&[1]), ..single.clone() }),
                ("single, in 2", Options { slices: held(&[2]), ..single.clone() }),
                ("single, in G", Options { slices: vec![segments], ..single.clone() }),
                (
                    "single, whole, in 2 and in 8 by turns",
                    Options { slices: held(&[1, 2, 8]), ..single.clone() },
                ),
                (
                    "single, in 2 and 4 by turns, two threads",
                    Options { slices: held(&[2, 4]), threads: 2, ..single.clone() },
                ),
                ("spans over slices", Options { slices: vec![segments], ..base.clone() }),
            ],
        );
    }
}

#[test]
fn the_tree_is_part_of_the_numbers() {
    // Otherwise the test above shows nothing.
    let model = Model::tiny_moe(&[40], 6);
    let run = |segments| model.run(Options { segments, ..Options::default() });
    assert_ne!(run(1), run(8));
}

#[test]
fn every_instruction_set() {
    let model = Model::tiny_moe(&[5, 33], 4);
    let base = Options { segments: 8, ..Options::default() };
    let isas = Isa::available();
    println!("instruction sets here: {isas:?}");
    model.all_equal(
        &base,
        isas.into_iter().map(|isa| ("an instruction set", Options { isa, ..base.clone() })),
    );
}

#[test]
fn every_architecture() {
    for path in driver::fixtures() {
        let model = Model::open(&path, &[3, 40, 100], 6);
        let base = Options::default();
        model.all_equal(
            &base,
            [
                ("single blocks", Options { cut: Cut::Single, ..base.clone() }),
                ("chunks of 1", Options { chunk: 1, ..base.clone() }),
                (
                    "chunks of 16, single blocks, two threads",
                    Options { chunk: 16, threads: 2, cut: Cut::Single, ..base.clone() },
                ),
                ("another instruction set", Options { isa: Isa::Portable, ..base.clone() }),
            ],
        );
        let base = Options { segments: 4, ..base };
        model.all_equal(
            &base,
            [("slices by turns", Options { slices: vec![1, 2, 4], cut: Cut::Single, ..base.clone() })],
        );
    }
}

#[test]
fn skewed_routes() {
    let model = Model::tiny_moe(&[5, 17, 64], 8);
    let spec = model.weights.spec();
    let routing = SkewedRouting::new(Routing::Skew { share: 0.4, seed: 3 }, spec.blocks.len(), 8, 2, 1);
    let base = Options { routing: routing.unwrap().map(Arc::new), ..Options::default() };
    assert_ne!(model.run(base.clone()), model.run(Options::default()));
    model.all_equal(
        &base,
        [
            ("single blocks", Options { cut: Cut::Single, ..base.clone() }),
            ("chunks of 7", Options { chunk: 7, ..base.clone() }),
        ],
    );
}

#[test]
fn a_replay_goes_on_with_the_same_bits() {
    let model = Model::tiny_moe(&[30, 31], 16);
    let vocab = model.weights.spec().vocab;
    let whole = model.run(Options::default());
    let replays = jobs(vocab, &model.lengths, 16).into_iter().zip(&whole).map(|(job, whole)| {
        let ids: Vec<u32> = job.sampling.ids.iter().chain(&whole.ids[..9]).copied().collect();
        Job { sampling: SequenceSampling { ids: ids.into(), produced: 9, ..job.sampling }, count: 7 }
    });
    let replayed = Driver::new(Arc::clone(&model.weights), Options::default()).run(replays.collect());
    for (whole, replayed) in whole.iter().zip(&replayed) {
        assert_eq!(whole.ids[9..], replayed.ids);
        assert_eq!(whole.logprobs[9..], replayed.logprobs);
    }
}

#[test]
fn weights_are_packed_once_while_they_are_held() {
    let weights = driver::open(&driver::tiny_moe());
    let spec = Arc::clone(weights.spec());
    let store = WeightStore::new(weights, 1, 1024);
    let a = Driver::with_store(&store, Arc::clone(&spec), Options { pages: 8, ..Options::default() });
    let rank = store.rank().unwrap();
    let b = Driver::with_store(&store, spec, Options { pages: 8, ..Options::default() });
    assert_eq!(Arc::strong_count(&rank), 3, "both workers and this test hold the same");
    drop((a, b));
    assert_eq!(Arc::strong_count(&rank), 1);
}
