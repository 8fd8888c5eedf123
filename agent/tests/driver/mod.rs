//! A small driver for a CPU backend: it runs sequences through hand-made steps, cut in whatever way a test asks for.
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test's own files")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use sluice_agent::backend::cpu::{CpuBackend, CpuConfig, PAGE_TOKENS};
use sluice_agent::backend::routing::SkewedRouting;
use sluice_agent::backend::weights::WeightStore;
use sluice_agent::backend::{Backend, Probe};
use sluice_agent::model::arch;
use sluice_agent::model::config::Config;
use sluice_agent::model::files::ModelFiles;
use sluice_agent::model::spec::{FeedForward, ModelSpec};
use sluice_agent::model::weights::Weights;
use sluice_agent::sampling::{Logprobs, SequenceSampling};
use sluice_core::ids::{SeqHandle, Slice, Unit};
use sluice_core::slab::SlabLayout;
use sluice_core::step::{
    AttentionStep, Entry, ExpertItem, ExpertStep, HeadRow, HeadStep, Outcome, Sample, SegmentStep, Step,
    TokenRow, UnitBatch,
};
use sluice_kernels::cpu::Isa;

pub fn tiny_moe() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny-moe")
}

/// The random-weight models, by name.
pub fn fixtures() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../e2e/fixtures");
    let entries = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
    let mut models: Vec<_> = entries.filter(|path| path.join("reference.json").exists()).collect();
    models.sort();
    models
}

pub fn open(model: &Path) -> Arc<Weights> {
    let path = model.join("config.json");
    let config = Config::parse(&path, &std::fs::read(&path).unwrap()).unwrap();
    let architecture = arch::of(&config).unwrap();
    let spec = Arc::new(architecture.spec(&config, None).unwrap());
    let weights = Weights::open(&ModelFiles::Directory(model.to_owned()), architecture, spec).unwrap();
    weights.verify().unwrap();
    Arc::new(weights)
}

/// How the blocks are cut into steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cut {
    /// Spans of this many blocks.
    Spans(usize),
    /// One block at a time, its experts in a step of their own.
    Single,
}

/// How to run.
#[derive(Clone, Debug)]
pub struct Options {
    pub cut: Cut,
    /// Positions per prefill chunk.
    pub chunk: usize,
    pub isa: Isa,
    pub threads: usize,
    pub segments: u8,
    /// The numbers of slices experts are held in. With several, single-block steps use them in turn.
    pub slices: Vec<u8>,
    /// Tokens per step at most.
    pub tokens: u32,
    pub pages: u32,
    pub routing: Option<Arc<SkewedRouting>>,
    /// Draw each round at random from this seed: which sequences take part and in what order, the lengths of their
    /// chunks, the cut, and the tokens' numbers. `cut` and `chunk` are then what is allowed at most.
    pub random: Option<u64>,
    /// Compute everything of every position, not only what the next token needs.
    pub everything: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cut: Cut::Spans(usize::MAX),
            chunk: 512,
            isa: Isa::best(),
            threads: 1,
            segments: 1,
            slices: vec![1],
            tokens: 1024,
            pages: 1024,
            routing: None,
            random: None,
            everything: false,
        }
    }
}

/// A sequence to run.
pub struct Job {
    pub sampling: SequenceSampling,
    /// Tokens to produce.
    pub count: usize,
}

impl Job {
    pub fn greedy(prompt: &[u32], count: usize) -> Self {
        Self { sampling: SequenceSampling::greedy(prompt.into()), count }
    }
}

/// What a sequence produced.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Produced {
    pub ids: Vec<u32>,
    pub logprobs: Vec<Logprobs>,
}

pub struct Driver {
    pub backend: CpuBackend,
    spec: Arc<ModelSpec>,
    options: Options,
    layout: SlabLayout,
    slots: HashMap<Unit, u32>,
    rng: Option<StdRng>,
    /// The cut of this round.
    cut: Cut,
    /// The token of each row of this round; also its return group.
    tokens: Vec<u32>,
}

struct Running {
    seq: SeqHandle,
    ids: Vec<u32>,
    /// Positions whose keys and values are written.
    done: usize,
    first: u32,
    count: usize,
    pages: Vec<u32>,
    produced: Produced,
}

/// One segment of a round.
struct Segment {
    running: usize,
    start: usize,
    len: usize,
}

impl Driver {
    pub fn new(weights: Arc<Weights>, options: Options) -> Self {
        let spec = Arc::clone(weights.spec());
        let store = WeightStore::new(weights, options.segments, (options.pages * PAGE_TOKENS) as usize);
        Self::with_store(&store, spec, options)
    }

    pub fn with_store(store: &WeightStore, spec: Arc<ModelSpec>, options: Options) -> Self {
        let top_k = spec.blocks.iter().find_map(|block| block.feed_forward.moe()).unwrap().top_k as u32;
        let layout = SlabLayout {
            tokens: options.tokens,
            groups: options.tokens,
            top_k,
            parts: u32::from(options.slices.iter().copied().max().unwrap()),
            landing: 4,
            outputs: 4,
        };
        let mut units = Vec::new();
        for (block, spec) in spec.blocks.iter().enumerate() {
            let experts = spec.feed_forward.moe().map_or(0, |moe| moe.experts);
            for (expert, &slices) in (0..experts).flat_map(|e| options.slices.iter().map(move |s| (e, s))) {
                let width = options.segments / slices;
                units.extend((0..slices).map(|part| Unit {
                    block: block as u16,
                    expert: expert as u16,
                    slice: Slice { lo: part * width, hi: (part + 1) * width },
                }));
            }
        }
        let config = CpuConfig {
            isa: options.isa,
            threads: options.threads,
            spin: Duration::ZERO,
            layout,
            segments: options.segments,
            slots: units.len() as u32,
            kv_pages: options.pages,
            routing: options.routing.clone(),
        };
        let mut backend = CpuBackend::new(Arc::clone(&spec), Some(store.rank().unwrap()), config).unwrap();
        for (slot, unit) in units.iter().enumerate() {
            backend.install(slot as u32, store.unit(*unit).unwrap());
        }
        let slots = units.into_iter().enumerate().map(|(slot, unit)| (unit, slot as u32)).collect();
        let rng = options.random.map(StdRng::seed_from_u64);
        let cut = options.cut;
        Self { backend, spec, options, layout, slots, rng, cut, tokens: Vec::new() }
    }

    pub fn set_probe(&mut self, probe: Box<dyn Probe>) {
        self.backend.set_probe(Some(probe));
    }

    pub fn submit(&mut self, step: Step) -> Outcome {
        self.backend.submit(step);
        match self.backend.poll() {
            Some(Outcome::Failed(why)) => panic!("{why}"),
            Some(outcome) => outcome,
            None => panic!("the CPU finishes a step inside submit"),
        }
    }

    /// Runs sequences to their ends, all together; sequence i has handle i.
    pub fn run(&mut self, jobs: Vec<Job>) -> Vec<Produced> {
        // Pages from the end, so that no sequence's lie in order.
        let mut free: Vec<u32> = (0..self.options.pages).collect();
        let mut running: Vec<Running> = Vec::new();
        for (index, Job { sampling, count }) in jobs.into_iter().enumerate() {
            let seq = SeqHandle(index as u32);
            let ids = sampling.ids.to_vec();
            let pages = (ids.len() + count).div_ceil(PAGE_TOKENS as usize);
            running.push(Running {
                seq,
                done: 0,
                first: sampling.produced,
                count,
                pages: (0..pages).map(|_| free.pop().expect("enough pages for the test")).collect(),
                ids,
                produced: Produced::default(),
            });
            self.backend.open(seq, sampling);
        }
        while self.round(&mut running) {}
        running.iter().for_each(|running| self.backend.close(running.seq));
        running.into_iter().map(|running| running.produced).collect()
    }

    /// The next segments, through all blocks.
    fn round(&mut self, running: &mut [Running]) -> bool {
        let mut order: Vec<usize> =
            (0..running.len()).filter(|&i| running[i].produced.ids.len() < running[i].count).collect();
        self.tokens = (0..self.options.tokens).collect();
        self.cut = self.options.cut;
        if let Some(rng) = &mut self.rng {
            order.shuffle(rng);
            order.truncate(rng.random_range(1..=order.len().max(1)));
            self.tokens.shuffle(rng);
            self.cut = if rng.random() { Cut::Single } else { Cut::Spans(rng.random_range(1..=6)) };
        }
        let (mut segments, mut tokens) = (Vec::new(), 0);
        for index in order {
            let one = &running[index];
            let mut len = (one.ids.len() - one.done).min(self.options.chunk);
            if let Some(rng) = &mut self.rng {
                len = rng.random_range(1..=len);
            }
            if tokens + len <= self.options.tokens as usize {
                segments.push(Segment { running: index, start: one.done, len });
                tokens += len;
            }
        }
        if segments.is_empty() {
            return false;
        }
        let mut entries = Vec::new();
        for segment in &segments {
            let one = &running[segment.running];
            let ids = &one.ids[segment.start..segment.start + segment.len];
            entries.extend(ids.iter().map(|&id| Entry::Embed(id)));
        }
        let everything = self.options.everything;
        let wanted: Vec<bool> = segments
            .iter()
            .flat_map(|segment| {
                let end = running[segment.running].ids.len();
                (segment.start..segment.start + segment.len)
                    .map(move |position| everything || position + 1 == end)
            })
            .collect();
        let slicing = match self.cut {
            Cut::Spans(width) => self.spans(width, running, &segments, &mut entries, &wanted),
            Cut::Single => self.blocks(running, &segments, &mut entries, &wanted),
        };
        self.head(running, &segments, &entries, &slicing);
        true
    }

    fn step(
        &self,
        blocks: std::ops::Range<u16>,
        running: &[Running],
        segments: &[Segment],
        entries: &[Entry],
        wanted: &[bool],
        slicing: &[u8],
    ) -> AttentionStep {
        let (mut pages, mut parts) = (Vec::new(), Vec::new());
        for segment in segments {
            let one = &running[segment.running];
            let first = pages.len() as u32;
            pages.extend_from_slice(&one.pages);
            parts.push(SegmentStep {
                seq: one.seq,
                start: segment.start as u32,
                len: segment.len as u32,
                pages: first..pages.len() as u32,
            });
        }
        let rows = entries.iter().zip(wanted).zip(&self.tokens);
        AttentionStep {
            blocks,
            span: matches!(self.cut, Cut::Spans(_)),
            segments: parts,
            rows: rows.map(|((&entry, &wanted), &token)| TokenRow { token, entry, wanted }).collect(),
            slicing: slicing.to_vec(),
            pages,
        }
    }

    fn spans(
        &mut self,
        width: usize,
        running: &[Running],
        segments: &[Segment],
        entries: &mut [Entry],
        wanted: &[bool],
    ) -> Vec<u8> {
        let blocks = self.spec.blocks.len();
        let mut first = 0;
        while first < blocks {
            let end = first.saturating_add(width).min(blocks);
            let step = self.step(first as u16..end as u16, running, segments, entries, wanted, &[]);
            assert!(matches!(self.submit(Step::Attention(step)), Outcome::Spanned(_)));
            entries.fill(Entry::Carry);
            first = end;
        }
        Vec::new()
    }

    fn blocks(
        &mut self,
        running: &[Running],
        segments: &[Segment],
        entries: &mut [Entry],
        wanted: &[bool],
    ) -> Vec<u8> {
        let top_k = self.layout.top_k as usize;
        let mut slicing: Vec<u8> = Vec::new();
        let last = self.spec.blocks.len() - 1;
        for block in 0..=last {
            let step =
                self.step(block as u16..block as u16 + 1, running, segments, entries, wanted, &slicing);
            let Outcome::Routed(experts) = self.submit(Step::Attention(step)) else {
                panic!("a routed block")
            };
            slicing.clear();
            if let FeedForward::Dense(_) = self.spec.blocks[block].feed_forward {
                assert!(experts.is_empty());
                entries.fill(Entry::Carry);
                continue;
            }
            let mut by_unit: HashMap<Unit, Vec<ExpertItem>> = HashMap::new();
            for (row, experts) in experts.chunks_exact(top_k).enumerate() {
                if block == last && !wanted[row] {
                    entries[row] = Entry::Carry;
                    continue;
                }
                let token = self.tokens[row];
                entries[row] = Entry::Merge(token);
                for (k, &expert) in experts.iter().enumerate() {
                    let slices = self.options.slices[(row + k) % self.options.slices.len()];
                    slicing.push(slices);
                    let width = self.options.segments / slices;
                    for part in 0..slices {
                        let slice = Slice { lo: part * width, hi: (part + 1) * width };
                        by_unit.entry(Unit { block: block as u16, expert, slice }).or_default().push(
                            ExpertItem {
                                src: self.layout.input(token),
                                dst: self.layout.returned(token, k as u8, slice, self.options.segments),
                            },
                        );
                    }
                }
            }
            let mut step = ExpertStep { block: block as u16, units: Vec::new(), items: Vec::new() };
            for (unit, items) in by_unit {
                let first = step.items.len() as u32;
                step.items.extend(items);
                let items = first..step.items.len() as u32;
                step.units.push(UnitBatch { unit, slot: self.slots[&unit], items });
            }
            assert_eq!(self.submit(Step::Experts(step)), Outcome::Experts);
        }
        slicing
    }

    fn head(&mut self, running: &mut [Running], segments: &[Segment], entries: &[Entry], slicing: &[u8]) {
        let (mut step, mut of) = (HeadStep { rows: Vec::new(), slicing: Vec::new() }, Vec::new());
        let mut slicing = slicing.chunks_exact(self.layout.top_k as usize);
        let mut row = 0;
        for segment in segments {
            let one = &mut running[segment.running];
            one.done += segment.len;
            let merges = entries[row..row + segment.len].iter().map(|entry| matches!(entry, Entry::Merge(_)));
            let last = merges.map(|merges| merges.then(|| slicing.next()).flatten()).last().flatten();
            row += segment.len;
            if one.done == one.ids.len() {
                let index = one.first + one.produced.ids.len() as u32;
                step.slicing.extend_from_slice(last.unwrap_or_default());
                step.rows.push(HeadRow {
                    token: self.tokens[row - 1],
                    entry: entries[row - 1],
                    seq: one.seq,
                    index,
                });
                of.push(segment.running);
            }
        }
        if step.rows.is_empty() {
            return;
        }
        let Outcome::Sampled(samples) = self.submit(Step::Head(step)) else { panic!("samples") };
        for (sample, &index) in samples.iter().zip(&of) {
            let one = &mut running[index];
            match sample {
                Sample::Token(id) => {
                    one.ids.push(*id);
                    one.produced.ids.push(*id);
                }
                Sample::Done => one.count = one.produced.ids.len(),
                Sample::Abort(why) => panic!("sequence {index} aborted: {why}"),
            }
        }
        for sampled in self.backend.take_logprobs() {
            running[sampled.seq.0 as usize].produced.logprobs.push(sampled.logprobs);
        }
    }
}
