//! The bits of every op on fixed inputs.
//!
//! Workers of one numerics id must agree to the bit, also across versions and processors. A change here is a change of
//! the numerics contract: then `KERNEL_SET` must get a new name, and old and new workers form separate cohorts.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Weights, contexts, name};
use sluice_kernels::cpu::{
    Attention, Cpu, Dtype, Epilogue, Expert, ExpertIo, ExpertRow, Io, KERNEL_SET, KvCache, KvColumns,
    KvSegment, KvShape, Merge, Norm, RopeTable, Routed, Router, Rows, Score, Slab,
};

/// Values in -1..1 from a generator that no library's update can change.
struct Fixed(u64);

impl Fixed {
    fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n)
            .map(|_| {
                self.0 =
                    self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (self.0 >> 40) as f32 / (1u32 << 23) as f32 - 1.0
            })
            .collect()
    }

    fn slab(&mut self, rows: usize, cols: usize) -> Slab {
        Slab::from_rows(cols, &self.values(rows * cols)).unwrap()
    }

    fn weights(&mut self, dtype: Dtype, rows: usize, cols: usize) -> Weights {
        let values = self.values(rows * cols);
        Weights::new(dtype, rows, cols, &values)
    }
}

fn hash(values: impl IntoIterator<Item = f32>) -> u64 {
    values.into_iter().fold(0xcbf2_9ce4_8422_2325, |h: u64, x| {
        (h ^ u64::from(x.to_bits())).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

fn all(slab: &Slab) -> Vec<f32> {
    (0..slab.rows()).flat_map(|row| slab.row(row).to_vec()).collect()
}

fn products(cpu: &mut Cpu, dtype: Dtype) -> u64 {
    let mut fixed = Fixed(1);
    let weights = fixed.weights(dtype, 77, 150).pack();
    let (src, mut dst) = (fixed.slab(14, 150), fixed.slab(14, 77));
    let bias = fixed.values(77);
    let io = Io::across(&src, Rows::first(14), &mut dst, Rows::first(14));
    cpu.matmul(io, &weights, Epilogue { bias: Some(&bias), accumulate: true }).unwrap();
    hash(all(&dst))
}

fn experts(cpu: &mut Cpu, g: usize) -> u64 {
    let mut fixed = Fixed(2);
    let (d, f) = (96, 264);
    let [gate, up] = [0, 1].map(|_| fixed.weights(Dtype::Bf16, f, d));
    let down = fixed.weights(Dtype::Bf16, d, f);
    let expert = Expert::pack(&gate.source(), &up.source(), &down.source(), g, 0..g).unwrap();
    let (src, mut dst) = (fixed.slab(5, d), Slab::new(5, d));
    let rows: Vec<ExpertRow> = (0..5).map(|i| ExpertRow { unit: 0, src: i, dst: 4 - i }).collect();
    cpu.expert_ffn(&[&expert], &rows, ExpertIo::Across { src: &src, dst: &mut dst }).unwrap();
    hash(all(&dst))
}

fn attention(cpu: &mut Cpu, window: Option<u32>) -> u64 {
    let mut fixed = Fixed(3);
    let (len, heads, kv_heads, head_dim) = (601, 3, 1, 20);
    let qkv = fixed.slab(len, (heads + 2 * kv_heads) * head_dim);
    let shape = KvShape { blocks: 1, pages: 38, heads: kv_heads, head_dim };
    let mut cache = KvCache::new(shape).unwrap();
    let pages: Vec<u32> = (0..38).rev().collect();
    let segments = [KvSegment { len, first_position: 0, pages: &pages }];
    let columns = KvColumns { key: heads * head_dim, value: (heads + kv_heads) * head_dim };
    cpu.kv_append(&mut cache, 0, &qkv, Rows::first(len), columns, &segments).unwrap();
    let mut out = Slab::new(len, heads * head_dim);
    let op = Attention { block: 0, heads, query_column: 0, scale: 0.75, window };
    let io = Io::across(&qkv, Rows::first(len), &mut out, Rows::first(len));
    cpu.paged_attention(&cache, io, &segments, op).unwrap();
    hash(all(&out))
}

fn rows(cpu: &mut Cpu) -> u64 {
    let mut fixed = Fixed(4);
    let (mut x, mut y) = (fixed.slab(6, 120), Slab::new(6, 120));
    let weight = fixed.values(120);
    let all_rows = Rows::first(6);
    let norm = Norm { weight: Some(&weight), eps: 1e-5 };
    cpu.rmsnorm(Io::across(&x, all_rows, &mut y, all_rows), norm).unwrap();
    let norm = Norm { weight: None, eps: 1e-6 };
    cpu.rmsnorm_heads(&mut y, all_rows, 40..120, 40, norm).unwrap();
    let table = RopeTable::new(36, fixed.values(7 * 18), fixed.values(7 * 18)).unwrap();
    cpu.rope(&mut y, all_rows, 0..80, 40, &[0, 6, 3, 1, 5, 2], &table).unwrap();
    let weights = fixed.values(3);
    let merge = Merge { row: 2, weights: &weights, parts: &[0, 1, 2, 3, 4, 5] };
    cpu.merge_topk(&y, &mut x, 2, &[merge]).unwrap();
    hash(all(&x).into_iter().chain(all(&y)))
}

fn router(cpu: &mut Cpu, score: Score) -> u64 {
    let mut fixed = Fixed(5);
    let logits = fixed.slab(20, 43);
    let bias = fixed.values(43);
    let router = Router { score, selection_bias: Some(&bias), top_k: 5, renormalise: true, scale: 1.5 };
    let mut routed = Routed::default();
    cpu.route(&logits, Rows::first(20), router, &mut routed).unwrap();
    hash(routed.ids.iter().map(|id| *id as f32).chain(routed.weights).chain(routed.gaps))
}

/// (op, its bits), of [`KERNEL_SET`] `cpu-2`.
const BITS: [(&str, u64); 10] = [
    ("product f32", 0x6638_d828_1dfa_91bd),
    ("product f16", 0xcbcb_316d_25b4_ceb7),
    ("product bf16", 0x64c0_5415_2039_ad8d),
    ("expert, one segment", 0x9447_fe0c_0f75_37c5),
    ("expert, eight segments", 0x2275_2515_e826_dbb1),
    ("attention", 0x4bbc_d371_4bb0_fcdc),
    ("attention, window 70", 0x3288_c06c_2059_cb16),
    ("norms, rope, merge", 0xfc10_8921_8947_e9c9),
    ("router, softmax", 0xd947_e614_4a9d_2294),
    ("router, sigmoid", 0x62c1_30b4_e001_0e9b),
];

#[test]
fn bits_are_those_of_the_kernel_set() {
    assert_eq!(KERNEL_SET, "cpu-2", "a new kernel set: record its bits");
    for cpu in &mut contexts() {
        let found = [
            products(cpu, Dtype::F32),
            products(cpu, Dtype::F16),
            products(cpu, Dtype::Bf16),
            experts(cpu, 1),
            experts(cpu, 8),
            attention(cpu, None),
            attention(cpu, Some(70)),
            rows(cpu),
            router(cpu, Score::Softmax),
            router(cpu, Score::Sigmoid),
        ];
        let found: Vec<(&str, u64)> = BITS.iter().zip(found).map(|((op, _), bits)| (*op, bits)).collect();
        assert_eq!(found, BITS, "with {}", name(cpu));
    }
}
