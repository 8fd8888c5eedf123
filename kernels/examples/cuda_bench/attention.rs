//! Attention of one block: decode and prefill.

use half::bf16;
use rand::seq::SliceRandom;
use sluice_kernels::cpu::{KvSegment, PAGE};
use sluice_kernels::cuda::{
    Attention, AttentionPlan, Buffer, Device, Error, Fill, KvCache, KvCall, KvShape, PlanLimits, Rows, Tiles,
};

use crate::common::seeded;
use crate::{FLOPS_PER_SECOND, bytes_per_second, time};

/// Qwen3-30B-A3B's attention.
const HEADS: usize = 32;
const KV_HEADS: usize = 4;
const HEAD_DIM: usize = 128;
/// Calls rotate over caches that no L2 holds together, where one does.
const ROTATED_BYTES: usize = 250_000_000;

/// (sequences, length, FlashAttention 3 on the same kind of device, us).
const DECODE: [(usize, usize, Option<f64>); 12] = [
    (1, 512, Some(11.6)),
    (1, 4096, Some(13.8)),
    (1, 32768, Some(36.0)),
    (16, 512, Some(12.8)),
    (16, 4096, Some(58.0)),
    (16, 32768, Some(370.0)),
    (64, 512, Some(33.0)),
    (64, 4096, Some(192.0)),
    (64, 32768, Some(1420.0)),
    (256, 512, Some(106.0)),
    (256, 4096, Some(721.0)),
    (256, 32768, None),
];
/// (length, FlashAttention 3, TFLOP/s).
const PREFILL: [(usize, Option<f64>); 5] =
    [(512, Some(143.0)), (1024, None), (2048, Some(503.0)), (4096, None), (8192, Some(684.0))];

struct Setup {
    cache: KvCache,
    call: KvCall,
    plan: AttentionPlan,
    q: Buffer<bf16>,
    out: Buffer<bf16>,
}

impl Setup {
    /// Sequences of one length each, of which the last `rows` positions are computed.
    fn new(
        device: &Device,
        sequences: usize,
        length: usize,
        rows: usize,
        tiles: Tiles,
    ) -> Result<Self, Error> {
        let mut rng = seeded(17);
        let per_sequence = length.div_ceil(PAGE);
        let mut shape =
            KvShape { blocks: 1, pages: sequences * per_sequence, heads: KV_HEADS, head_dim: HEAD_DIM };
        shape.blocks = (ROTATED_BYTES / (shape.pages * shape.page_bytes()) + 1).clamp(1, 60);
        let mut cache = KvCache::new(device, shape)?;
        let fill = Fill::new(device)?;
        fill.normal(device, cache.data_mut(), 1, 1.0)?;
        let mut pages: Vec<u32> = (0..shape.pages as u32).collect();
        pages.shuffle(&mut rng);
        let segments: Vec<KvSegment<'_>> = pages
            .chunks_exact(per_sequence)
            .map(|pages| KvSegment { len: rows, first_position: (length - rows) as u32, pages })
            .collect();
        let mut call = KvCall::new(device, sequences, sequences * rows, pages.len())?;
        call.set(device, shape, &segments)?;
        let attention = Attention { heads: HEADS, scale: (HEAD_DIM as f32).powf(-0.5), window: None };
        let tile_rows = if tiles == Tiles::Decode { 1 } else { 16 };
        let chunks = sequences * rows.div_ceil(tile_rows) * length.div_ceil(512);
        let parts = if rows == 1 { 12_000 } else { 200 };
        let plan =
            AttentionPlan::new(device, shape, attention, tiles, PlanLimits { units: 2 * chunks, parts })?;
        let mut q = device.zeros(sequences * rows * HEADS * HEAD_DIM)?;
        fill.normal(device, &mut q, 2, 1.0)?;
        let out = device.zeros(q.len())?;
        Ok(Self { cache, call, plan, q, out })
    }

    /// Microseconds of a call, with its work cut for so many blocks.
    fn time(&mut self, device: &Device, calls: usize, cut_for: usize) -> Result<f64, Error> {
        let segments = 0..self.call.segments();
        self.plan.build(device, &self.call, segments, cut_for)?;
        let blocks = self.cache.shape().blocks;
        let width = HEADS * HEAD_DIM;
        time(device, calls, |i| {
            let q = Rows { data: &self.q, stride: width };
            self.plan.run(device, &self.cache, i % blocks, &self.call, &q, &mut self.out, width, 0)
        })
    }
}

/// One position of each of many sequences: the bytes of keys and values.
pub fn decode(device: &Device, all: bool) -> Result<(), Error> {
    println!("attention of a block, decode: {HEADS}/{KV_HEADS} heads of {HEAD_DIM}, pages of {PAGE}");
    println!("| sequences | length | floor us | decode us (of floor) | plan us | FlashAttention 3 us |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for (sequences, length, peer) in DECODE {
        let mut setup = Setup::new(device, sequences, length, 1, Tiles::Decode)?;
        let bytes = sequences * (length * KV_HEADS * 2 + HEADS * 2) * HEAD_DIM * size_of::<bf16>();
        let floor = bytes as f64 / bytes_per_second(device) * 1e6;
        let calls = if floor > 100.0 { 10 } else { 30 };
        let us = setup.time(device, calls, 0)?;
        let plan = time(device, calls, |_| setup.plan.build(device, &setup.call, 0..sequences, 0))?;
        let peer = peer.map_or("-".to_owned(), |us| us.to_string());
        println!(
            "| {sequences} | {length} | {floor:.1} | {us:.1} ({:.2}) | {plan:.1} | {peer} |",
            floor / us
        );
        if all {
            for cut_for in [1, 132, 264, 528, 1056, 100_000] {
                let us = setup.time(device, calls, cut_for)?;
                let (units, tiles, parts) = setup.plan.counts(device)?;
                println!(
                    "    cut for {cut_for}: {us:.1} ({:.2}); {units} units of {tiles} tiles, {parts} parts",
                    floor / us
                );
            }
        }
    }
    Ok(())
}

/// A prompt in one segment: the products of what is seen.
pub fn prefill(device: &Device) -> Result<(), Error> {
    println!("attention of a block, prefill: one sequence, the same heads");
    println!(
        "| length | floor us | prefill us (of floor) | TFLOP/s | by decode tiles us | FlashAttention 3 TFLOP/s |"
    );
    println!("| --- | --- | --- | --- | --- | --- |");
    for (length, peer) in PREFILL {
        let flops = (2 * 2 * HEADS * HEAD_DIM * (length * (length + 1) / 2)) as f64;
        let floor = flops / FLOPS_PER_SECOND * 1e6;
        let us = Setup::new(device, 1, length, length, Tiles::Prefill)?.time(device, 10, 0)?;
        let decode = Setup::new(device, 1, length, length, Tiles::Decode)?.time(device, 3, 0)?;
        let peer = peer.map_or("-".to_owned(), |rate| rate.to_string());
        println!(
            "| {length} | {floor:.1} | {us:.1} ({:.2}) | {:.0} | {decode:.0} | {peer} |",
            floor / us,
            flops / us / 1e6
        );
    }
    Ok(())
}
