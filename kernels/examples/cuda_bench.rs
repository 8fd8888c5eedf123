//! How fast the experts of a block are on a GPU, beside the floor of its memory and its tensor cores.
//!
//! `cargo run --release -p sluice-kernels --features cuda --example cuda_bench [-- [--skewed] [--all] [--counts=FILE]
//! [--tokens=1,2,..] [--segments=G] [filter]]`
//!
//! `experts` is the grouped product alone, from listed rows to scattered outputs; `chain` is the router's ids to merged
//! rows: lists, experts, merge. Both are replays of a graph of 30 calls that rotate over the sets of weights, the median
//! of 7. The floor is the larger of the bytes at 3.0 TB/s and the arithmetic at 800 TFLOP/s. `--all` prints every variant
//! and split of `experts`; `--counts` writes how many rows each expert had, for `grouped_mm.py`.
#![allow(clippy::unwrap_used)]

mod common;

use std::fmt::Write as _;

use common::{Block, Routing, random_rows, route, seeded};
use half::bf16;
use rand::Rng;
use sluice_kernels::cuda::{
    Bounds, Buffer, Device, Error, ExpertCall, ExpertFfn, ExpertShape, ExpertSlots, Fill, Graph, Merge,
    MergeIo, Output, Pairs, Returned, Rows, Split, Tuning, Variant,
};

const BYTES_PER_SECOND: f64 = 3.0e12;
const FLOPS_PER_SECOND: f64 = 8e14;
const CALLS: usize = 30;
const REPLAYS: usize = 7;
const TOKENS: [usize; 10] = [1, 2, 4, 8, 32, 64, 128, 256, 512, 1024];

/// A block, and how many sets of its weights the calls rotate over: more than any cache holds.
const BLOCKS: [(Block, usize); 3] = [
    (Block { name: "Qwen3-30B-A3B", units: 128, top_k: 8, hidden: 2048, inner: 768 }, 3),
    (Block { name: "Mixtral-8x7B", units: 8, top_k: 2, hidden: 4096, inner: 14336 }, 2),
    (Block { name: "DeepSeek-V3, 32 of 256", units: 32, top_k: 1, hidden: 7168, inner: 2048 }, 2),
];

fn main() {
    if let Err(error) = bench() {
        eprintln!("cuda_bench: {error}");
        std::process::exit(1);
    }
}

fn bench() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let flag = |name: &str| arguments.iter().any(|a| a == name);
    let value = |name: &str| {
        arguments.iter().find_map(|a| a.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
    };
    let filter = arguments.iter().find(|a| !a.starts_with("--")).cloned().unwrap_or_default();
    let tokens =
        value("--tokens").map_or(TOKENS.to_vec(), |t| t.split(',').map(|n| n.parse().unwrap()).collect());
    let g: usize = value("--segments").map_or(1, |g| g.parse().unwrap());
    let routing = if flag("--skewed") { Routing::Skewed } else { Routing::Even };
    let device = Device::open(0)?;
    println!("{}, {routing:?} routing, {g} segments", device.name());
    println!(
        "| block | n | experts hit, most rows | floor us | experts us (of floor) | chain us (of floor) |"
    );
    println!("| --- | --- | --- | --- | --- | --- |");
    let mut counted = String::new();
    for (block, sets) in BLOCKS.into_iter().filter(|(block, _)| block.name.contains(&filter)) {
        let most = tokens.iter().copied().max().unwrap_or(1);
        let bench = Bench::new(&device, block, sets, most, g)?;
        bench.run(&tokens, routing, flag("--all"), &mut counted)?;
    }
    if let Some(path) = value("--counts") {
        std::fs::write(&path, counted).unwrap_or_else(|error| panic!("{path}: {error}"));
    }
    Ok(())
}

struct Bench<'a> {
    device: &'a Device,
    block: Block,
    sets: Vec<ExpertSlots>,
    ffn: ExpertFfn,
    merge: Merge,
    x: Buffer<bf16>,
    y: Buffer<bf16>,
    out: Buffer<bf16>,
    weights: Buffer<f32>,
    tokens: usize,
    segmented: bool,
}

impl<'a> Bench<'a> {
    fn new(device: &'a Device, block: Block, sets: usize, tokens: usize, g: usize) -> Result<Self, Error> {
        let mut rng = seeded(3);
        let fill = Fill::new(device)?;
        let shape = ExpertShape::new(block.hidden, block.inner, g, 0..g)?;
        let pairs = tokens * block.top_k;
        let weights: Vec<f32> = (0..pairs).map(|_| rng.random_range(0.0..1.0)).collect();
        Ok(Self {
            device,
            block,
            sets: (0..sets)
                .map(|seed| block.slots(device, &fill, seed as u64, &shape))
                .collect::<Result<_, _>>()?,
            ffn: ExpertFfn::new(device, &shape, block.units, pairs)?,
            merge: Merge::new(device)?,
            x: device.upload(&random_rows(tokens * block.hidden, &mut rng))?,
            y: device.zeros(pairs * block.hidden)?,
            out: device.zeros(tokens * block.hidden)?,
            weights: device.upload(&weights)?,
            tokens,
            segmented: g > 1,
        })
    }

    fn run(
        mut self,
        tokens: &[usize],
        routing: Routing,
        all: bool,
        counted: &mut String,
    ) -> Result<(), Error> {
        for &n in tokens {
            let ids = route(&self.block, routing, n, &mut seeded(11 + n as u64));
            let counts = counts(&self.block, &ids);
            let _ = writeln!(counted, "{} {n} {counts:?}", self.block.name.replace(' ', "_"));
            let hit = counts.iter().filter(|c| **c > 0).count();
            let most = counts.iter().copied().max().unwrap_or(0);
            let floor = floor_us(&self.block, n, ids.len(), hit);
            let ids = self.device.upload(&ids)?;
            let tuning = Tuning::for_rows(most);
            self.list(&ids)?;
            let experts = self.time(|this, set| this.experts(set, &tuning))?;
            let chain = self.time(|this, set| {
                this.routed(&ids, set, &tuning)?;
                this.merge(n)
            })?;
            println!(
                "| {} | {n} | {hit}, {most} | {floor:.1} | {experts:.1} ({:.2}) | {chain:.1} ({:.2}) |",
                self.block.name,
                floor / experts,
                floor / chain
            );
            if all {
                self.list(&ids)?;
                for tuning in variants(most, self.segmented) {
                    let us = self.time(|this, set| this.experts(set, &tuning))?;
                    let (variant, split, chunk) = (tuning.variant.unwrap(), tuning.split, tuning.chunk);
                    println!("    {variant:?} {split:?} chunk {chunk}: {us:.1} ({:.2})", floor / us);
                }
            }
        }
        Ok(())
    }

    fn list(&mut self, ids: &Buffer<i32>) -> Result<(), Error> {
        let rows_written = self.tokens * self.block.top_k;
        let bounds = Bounds { rows_read: self.tokens, rows_written, slots: self.block.units };
        self.ffn.list(self.device, &Pairs::in_order(ids.as_view(), self.block.top_k), bounds)
    }

    fn experts(&mut self, set: usize, tuning: &Tuning) -> Result<(), Error> {
        let call = call(&self.sets[set], &self.x, &mut self.y, *tuning);
        self.ffn.run_listed(self.device, call)
    }

    fn routed(&mut self, ids: &Buffer<i32>, set: usize, tuning: &Tuning) -> Result<(), Error> {
        let call = call(&self.sets[set], &self.x, &mut self.y, *tuning);
        self.ffn.run(self.device, &Pairs::in_order(ids.as_view(), self.block.top_k), call)
    }

    fn merge(&mut self, n: usize) -> Result<(), Error> {
        let (top_k, d) = (self.block.top_k, self.block.hidden);
        let io = MergeIo {
            returned: Returned::Whole(&self.y),
            rows: None,
            weights: self.weights.slice(..n * top_k),
            residual: None,
            out: self.out.slice_mut(..n * d),
        };
        self.merge.run(self.device, n, top_k, d, io)
    }

    /// Microseconds per call.
    fn time(&mut self, mut call: impl FnMut(&mut Self, usize) -> Result<(), Error>) -> Result<f64, Error> {
        let sets = self.sets.len();
        call(self, 0)?;
        self.device.synchronize()?;
        let device = self.device;
        let graph = Graph::record(device, || (0..CALLS).try_for_each(|i| call(self, i % sets)))?;
        graph.launch()?;
        let mut times = Vec::new();
        for _ in 0..REPLAYS {
            times.push(device.timed(|| graph.launch())?.as_secs_f64() * 1e6 / CALLS as f64);
        }
        times.sort_by(f64::total_cmp);
        Ok(times[REPLAYS / 2])
    }
}

fn call<'a>(
    weights: &'a ExpertSlots,
    x: &'a Buffer<bf16>,
    y: &'a mut Buffer<bf16>,
    tuning: Tuning,
) -> ExpertCall<'a> {
    let d = weights.shape().hidden();
    ExpertCall { weights, x: Rows { data: x, stride: d }, y: Output::Whole(y), y_stride: d, tuning }
}

fn variants(most: usize, segmented: bool) -> Vec<Tuning> {
    let mut tunings = Vec::new();
    for variant in [Variant::Small, Variant::Wide, Variant::Large] {
        let chunks = variant.chunks(segmented);
        let enough = chunks.iter().copied().find(|c| *c >= most).or(chunks.last().copied());
        let Some(chunk) = enough else { continue };
        for split in [Split::Own, Split::Dynamic] {
            tunings.push(Tuning { chunk, split, variant: Some(variant), ..Tuning::for_rows(most) });
        }
    }
    tunings
}

/// Rows that each expert has.
fn counts(block: &Block, ids: &[i32]) -> Vec<usize> {
    let mut counts = vec![0; block.units];
    for id in ids {
        counts[*id as usize] += 1;
    }
    counts
}

/// The larger of the time for the bytes (weights of the experts hit, rows in and out) and that for the arithmetic.
fn floor_us(block: &Block, n: usize, pairs: usize, hit: usize) -> f64 {
    let weights = 3 * block.hidden * block.inner;
    let bytes = (hit * weights + n * 2 * block.hidden) * size_of::<bf16>();
    let flops = 2 * weights * pairs;
    (bytes as f64 / BYTES_PER_SECOND).max(flops as f64 / FLOPS_PER_SECOND) * 1e6
}
