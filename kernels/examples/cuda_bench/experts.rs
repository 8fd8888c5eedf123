//! The experts of a block.

use std::fmt::Write as _;

use crate::common::{Block, Routing, random_rows, route, seeded};
use crate::{Arguments, CALLS, FLOPS_PER_SECOND, bytes_per_second, time};
use half::bf16;
use rand::Rng;
use sluice_kernels::cuda::{
    Bounds, Buffer, Device, Error, ExpertCall, ExpertFfn, ExpertShape, ExpertSlots, Fill, Merge, MergeIo,
    Output, Pairs, Returned, Rows, Split, Tuning, Variant,
};

const TOKENS: [usize; 10] = [1, 2, 4, 8, 32, 64, 128, 256, 512, 1024];

/// A block, and how many sets of its weights the calls rotate over: more than any cache holds.
const BLOCKS: [(Block, usize); 3] = [
    (Block { name: "Qwen3-30B-A3B", units: 128, top_k: 8, hidden: 2048, inner: 768 }, 3),
    (Block { name: "Mixtral-8x7B", units: 8, top_k: 2, hidden: 4096, inner: 14336 }, 2),
    (Block { name: "DeepSeek-V3, 32 of 256", units: 32, top_k: 1, hidden: 7168, inner: 2048 }, 2),
];

/// The table of the blocks whose name contains the filter.
pub fn bench(device: &Device, arguments: &Arguments) -> Result<(), Error> {
    let tokens = arguments
        .value("tokens")
        .map_or(TOKENS.to_vec(), |t| t.split(',').map(|n| n.parse().unwrap()).collect());
    let g: usize = arguments.value("segments").map_or(1, |g| g.parse().unwrap());
    let routing = if arguments.flag("skewed") { Routing::Skewed } else { Routing::Even };
    println!("experts of a block, {routing:?} routing, {g} segments");
    println!(
        "| block | n | experts hit, most rows | floor us | experts us (of floor) | chain us (of floor) |"
    );
    println!("| --- | --- | --- | --- | --- | --- |");
    let mut counted = String::new();
    for (block, sets) in BLOCKS.into_iter().filter(|(block, _)| arguments.wants(block.name)) {
        let most = tokens.iter().copied().max().unwrap_or(1);
        let bench = Bench::new(device, block, sets, most, g)?;
        bench.run(&tokens, routing, arguments.flag("all"), &mut counted)?;
    }
    if let Some(path) = arguments.value("counts") {
        std::fs::write(path, counted).unwrap_or_else(|error| panic!("{path}: {error}"));
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
            let floor = floor_us(self.device, &self.block, n, ids.len(), hit);
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
                for tuning in variants(most, self.sets[0].shape()) {
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

    fn time(&mut self, mut call: impl FnMut(&mut Self, usize) -> Result<(), Error>) -> Result<f64, Error> {
        let (device, sets) = (self.device, self.sets.len());
        time(device, CALLS, |i| call(self, i % sets))
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

fn variants(most: usize, shape: &ExpertShape) -> Vec<Tuning> {
    let mut tunings = Vec::new();
    for variant in Variant::ALL {
        let chunks = variant.chunks(shape);
        let enough = chunks.iter().position(|c| *c >= most).or(chunks.len().checked_sub(1));
        let Some(enough) = enough else { continue };
        // Paired tiles cut an expert's rows evenly: smaller ones may be faster. They know of no split.
        let (least, splits) = match variant {
            Variant::Paired => (0, &[Split::Auto][..]),
            _ => (enough, &[Split::Own, Split::Dynamic][..]),
        };
        for &chunk in &chunks[least..=enough] {
            for &split in splits {
                tunings.push(Tuning { chunk, split, variant: Some(variant), ..Tuning::for_rows(most) });
            }
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
fn floor_us(device: &Device, block: &Block, n: usize, pairs: usize, hit: usize) -> f64 {
    let weights = 3 * block.hidden * block.inner;
    let bytes = (hit * weights + n * 2 * block.hidden) * size_of::<bf16>();
    let flops = 2 * weights * pairs;
    (bytes as f64 / bytes_per_second(device)).max(flops as f64 / FLOPS_PER_SECOND) * 1e6
}
