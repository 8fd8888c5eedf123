//! The small kernels of a layer step, at the sizes of Qwen3-30B-A3B.

use half::bf16;
use sluice_kernels::cpu::{KvSegment, PAGE, Score};
use sluice_kernels::cuda::{
    Buffer, Device, Error, Fill, HeadNorms, KvCache, KvCall, KvShape, RopeAppend, RopeTable, Route, Routed,
    Router, RowNorm, RowOps,
};

use crate::{CALLS, time};

const HIDDEN: usize = 2048;
const HEADS: usize = 32;
const KV_HEADS: usize = 4;
const HEAD_DIM: usize = 128;
const EXPERTS: usize = 128;
const TOP_K: usize = 8;
const EPS: f32 = 1e-6;

/// Rows, each of a sequence of its own.
pub fn bench(device: &Device) -> Result<(), Error> {
    println!(
        "ops: hidden size {HIDDEN}, {HEADS}/{KV_HEADS} heads of {HEAD_DIM}, {TOP_K} of {EXPERTS} experts, us"
    );
    println!("| rows | norm with residual | norm, rotation and append of heads | router | copy of rows |");
    println!("| --- | --- | --- | --- | --- |");
    let fill = Fill::new(device)?;
    let normal = |values: usize| -> Result<Buffer<bf16>, Error> {
        let mut buffer = device.zeros(values)?;
        fill.normal(device, &mut buffer, 5, 1.0)?;
        Ok(buffer)
    };
    let (ops, rope, route) = (RowOps::new(device)?, RopeAppend::new(device)?, Route::new(device)?);
    let ones = |values: usize| device.upload(&vec![1.0f32; values]);
    let weight = ones(HIDDEN)?;
    let norms = HeadNorms { query: ones(HEAD_DIM)?, key: ones(HEAD_DIM)?, eps: EPS };
    for rows in [1, 16, 64, 256, 1024] {
        let (mut x, delta, mut out) =
            (normal(rows * HIDDEN)?, normal(rows * HIDDEN)?, normal(rows * HIDDEN)?);
        let norm_us = time(device, CALLS, |_| {
            let norm = RowNorm { weight: &weight, eps: EPS };
            ops.add_rmsnorm(device, rows, &mut x, Some(&delta), &norm, &mut out)
        })?;
        let copy_us = time(device, CALLS, |_| ops.copy(device, rows, HIDDEN, &x, None, &mut out, None))?;

        let shape = KvShape { blocks: 1, pages: rows, heads: KV_HEADS, head_dim: HEAD_DIM };
        let mut cache = KvCache::new(device, shape)?;
        let pages: Vec<u32> = (0..rows as u32).collect();
        let segments: Vec<KvSegment<'_>> = pages
            .chunks_exact(1)
            .map(|pages| KvSegment { len: 1, first_position: (PAGE / 2) as u32, pages })
            .collect();
        let mut call = KvCall::new(device, rows, rows, rows)?;
        call.set(device, shape, &segments)?;
        let table = vec![0.5f32; PAGE * HEAD_DIM / 2];
        let table = RopeTable::new(device, HEAD_DIM, &table, &table)?;
        let width = (HEADS + 2 * KV_HEADS) * HEAD_DIM;
        let mut qkv = normal(rows * width)?;
        let rope_us = time(device, CALLS, |_| {
            rope.run(device, &mut cache, 0, &call, &mut qkv, width, HEADS, &table, Some(&norms))
        })?;

        let logits: Vec<f32> =
            (0..rows * EXPERTS).map(|i| ((i * 2_654_435_761) % 1000) as f32 / 100.0).collect();
        let logits = device.upload(&logits)?;
        let (mut ids, mut weights) = (device.zeros(rows * TOP_K)?, device.zeros(rows * TOP_K)?);
        let route_us = time(device, CALLS, |_| {
            let router = Router {
                score: Score::Softmax,
                selection_bias: None,
                experts: EXPERTS,
                top_k: TOP_K,
                renormalise: true,
                scale: 1.0,
            };
            let out = Routed { ids: &mut ids, weights: &mut weights, gaps: None };
            route.run(device, &logits.as_view(), &router, out)
        })?;
        println!("| {rows} | {norm_us:.2} | {rope_us:.2} | {route_us:.2} | {copy_us:.2} |");
    }
    Ok(())
}
