//! Paged attention: close to its twin, and the same bits as decode, prefill or replay, on every set and thread count.

// Helpers of tests: a failure is the test's.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Random, assert_close, bits, chain, contexts, name};
use proptest::prelude::*;
use sluice_kernels::Error;
use sluice_kernels::cpu::{
    Attention, Cpu, Io, KvCache, KvColumns, KvSegment, KvShape, PAGE, Rows, Slab, exp,
};
use sluice_kernels::reference;

#[derive(Clone, Debug)]
struct Case {
    kv_heads: usize,
    group: usize,
    head_dim: usize,
    tokens: usize,
    window: Option<u32>,
    seed: u64,
}

fn case() -> impl Strategy<Value = Case> {
    (
        1usize..3,
        prop::sample::select(&[1usize, 2, 3, 4, 7, 8, 26][..]),
        prop::sample::select(&[8usize, 16, 20, 32, 64, 80, 128][..]),
        prop_oneof![1usize..40, 60usize..70, 120usize..300, 500usize..530, 1100usize..1110],
        prop_oneof![Just(None), (1u32..40).prop_map(Some), (300u32..700).prop_map(Some)],
        any::<u64>(),
    )
        .prop_map(|(kv_heads, group, head_dim, tokens, window, seed)| {
            // Long sequences only with few and small heads: the portable set is slow.
            let heads = (8_000_000 / (tokens * tokens)).max(1);
            let head_dim = head_dim.min((heads / 4).max(8)).next_multiple_of(4);
            let group = group.min((heads / head_dim).max(1));
            Case { kv_heads, group, head_dim, tokens, window, seed }
        })
}

/// A sequence's rows (queries, keys, values side by side) and its shuffled pages in a cache full of other values.
struct Sequence {
    case: Case,
    shape: KvShape,
    qkv: Slab,
    pages: Vec<u32>,
    columns: KvColumns,
    attention: Attention,
}

impl Sequence {
    fn new(case: &Case) -> Self {
        let mut random = Random::new(case.seed);
        let heads = case.kv_heads * case.group;
        let pages = case.tokens.div_ceil(PAGE);
        let shape = KvShape { blocks: 2, pages: pages + 3, heads: case.kv_heads, head_dim: case.head_dim };
        let key = heads * case.head_dim;
        Self {
            case: case.clone(),
            shape,
            qkv: random.slab(case.tokens, (heads + 2 * case.kv_heads) * case.head_dim),
            pages: random.distinct(pages, pages + 3),
            columns: KvColumns { key, value: key + case.kv_heads * case.head_dim },
            attention: Attention {
                block: 1,
                heads,
                query_column: 0,
                scale: 1.0 / (case.head_dim as f32).sqrt(),
                window: case.window,
            },
        }
    }

    /// Runs the sequence in steps of these lengths; returns all outputs.
    fn run(&self, cpu: &mut Cpu, steps: &[usize]) -> Slab {
        let mut cache = KvCache::new(self.shape).unwrap();
        let mut out = Slab::new(self.case.tokens, self.attention.heads * self.case.head_dim);
        let mut first = 0;
        for len in steps {
            let rows = Rows::Range { start: first as u32, len: *len };
            let segment = [KvSegment { len: *len, first_position: first as u32, pages: &self.pages }];
            cpu.kv_append(&mut cache, 1, &self.qkv, rows, self.columns, &segment).unwrap();
            let io = Io::across(&self.qkv, rows, &mut out, rows);
            cpu.paged_attention(&cache, io, &segment, self.attention).unwrap();
            first += len;
        }
        assert_eq!(first, self.case.tokens);
        out
    }

    /// One query, one scalar at a time, by the crate's numerics contract.
    fn stated(&self, position: usize, head: usize) -> Vec<f32> {
        let d = self.case.head_dim;
        let kv_head = head / self.case.group;
        let first = self.case.window.map_or(0, |w| (position + 1).saturating_sub(w as usize));
        let q = &self.qkv.row(position)[head * d..][..d];
        let key = |p: usize| &self.qkv.row(p)[self.columns.key + kv_head * d..][..d];
        let value = |p: usize| &self.qkv.row(p)[self.columns.value + kv_head * d..][..d];
        let mut total: Option<(f32, f32, Vec<f32>)> = None;
        for chunk in first / 512..=position / 512 {
            let (mut max, mut lanes, mut o) = (f32::NEG_INFINITY, [0f32; 16], vec![0f32; d]);
            for block in chunk * 8..chunk * 8 + 8 {
                let seen = first.max(block * 64)..(position + 1).min(block * 64 + 64);
                if seen.is_empty() {
                    continue;
                }
                let scores: Vec<f32> =
                    seen.clone().map(|p| chain(q, key(p)) * self.attention.scale).collect();
                let new = scores.iter().copied().fold(max, f32::max);
                let alpha = exp(max - new);
                lanes = lanes.map(|l| l * alpha);
                o.iter_mut().for_each(|o| *o *= alpha);
                for (p, score) in seen.zip(scores) {
                    let weight = exp(score - new);
                    lanes[p % 16] += weight;
                    for (o, v) in o.iter_mut().zip(value(p)) {
                        *o = weight.mul_add(*v, *o);
                    }
                }
                max = new;
            }
            let mut half = 8;
            while half > 0 {
                for l in 0..half {
                    lanes[l] += lanes[l + half];
                }
                half /= 2;
            }
            total = Some(match total {
                None => (max, lanes[0], o),
                Some((old, sum, values)) => {
                    let top = old.max(max);
                    let (a, b) = (exp(old - top), exp(max - top));
                    let o = values.iter().zip(&o).map(|(old, new)| new.mul_add(b, old * a)).collect();
                    (top, lanes[0].mul_add(b, sum * a), o)
                }
            });
        }
        let (_, sum, o) = total.unwrap();
        let inverse = 1.0 / sum;
        o.iter().map(|o| o * inverse).collect()
    }

    fn twin(&self, position: usize, head: usize) -> Vec<f64> {
        let d = self.case.head_dim;
        let kv_head = head / self.case.group;
        let first = self.case.window.map_or(0, |w| (position + 1).saturating_sub(w as usize));
        let part = |start: usize| -> Vec<Vec<f32>> {
            (first..=position).map(|p| self.qkv.row(p)[start + kv_head * d..][..d].to_vec()).collect()
        };
        let q = &self.qkv.row(position)[head * d..][..d];
        reference::attention(q, &part(self.columns.key), &part(self.columns.value), self.attention.scale)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn attention_is_close_to_its_twin_and_independent_of_how_it_is_run(case in case()) {
        let sequence = Sequence::new(&case);
        let mut random = Random::new(case.seed ^ 1);
        let mut contexts = contexts();
        let whole = sequence.run(&mut contexts[0], &[case.tokens]);
        for position in (0..case.tokens).step_by(case.tokens.div_ceil(8)) {
            for head in 0..sequence.attention.heads {
                let found = &whole.row(position)[head * case.head_dim..][..case.head_dim];
                prop_assert_eq!(bits(found), bits(&sequence.stated(position, head)), "position {}", position);
                // Values are within 1: the error of scores (below head_dim) dominates.
                let error = f64::from(f32::EPSILON) * (case.head_dim as f64).sqrt() * 8.0;
                assert_close(found, &sequence.twin(position, head), 1.0, error, "attention");
            }
        }
        for cpu in &mut contexts {
            let mut steps = Vec::new();
            let mut left = case.tokens;
            while left > 0 {
                let len = if random.below(2) == 0 { 1 } else { 1 + random.below(left.min(200)) };
                steps.push(len);
                left -= len;
            }
            let other = sequence.run(cpu, &steps);
            for position in 0..case.tokens {
                prop_assert_eq!(
                    bits(other.row(position)), bits(whole.row(position)), "position {} with {}", position, name(cpu)
                );
            }
        }
    }

    #[test]
    fn companions_change_no_bit(cases in prop::collection::vec(case(), 2..5)) {
        // One shape, so that all fit one cache; every sequence decodes its last token in one call.
        let shape = &cases[0];
        let sequences: Vec<Sequence> = cases
            .iter()
            .map(|c| {
                let like = shape.clone();
                Sequence::new(&Case { tokens: c.tokens.min(300), seed: c.seed, ..like })
            })
            .collect();
        for cpu in &mut contexts() {
            let total: usize = sequences.iter().map(|s| s.shape.pages).sum();
            let mut cache = KvCache::new(KvShape { pages: total, ..sequences[0].shape }).unwrap();
            let mut last = Slab::new(sequences.len(), sequences[0].qkv.cols());
            let mut lists = Vec::new();
            let mut offset = 0;
            for (i, s) in sequences.iter().enumerate() {
                let pages: Vec<u32> = s.pages.iter().map(|p| p + offset).collect();
                offset += s.shape.pages as u32;
                let segment = [KvSegment { len: s.case.tokens, first_position: 0, pages: &pages }];
                let rows = Rows::first(s.case.tokens);
                cpu.kv_append(&mut cache, 1, &s.qkv, rows, s.columns, &segment).unwrap();
                last.row_mut(i).copy_from_slice(s.qkv.row(s.case.tokens - 1));
                lists.push(pages);
            }
            let segments: Vec<KvSegment<'_>> = sequences
                .iter()
                .zip(&lists)
                .map(|(s, pages)| KvSegment { len: 1, first_position: s.case.tokens as u32 - 1, pages })
                .collect();
            let attention = sequences[0].attention;
            let mut out = Slab::new(sequences.len(), attention.heads * shape.head_dim);
            let rows = Rows::first(sequences.len());
            cpu.paged_attention(&cache, Io::across(&last, rows, &mut out, rows), &segments, attention).unwrap();
            for (i, s) in sequences.iter().enumerate() {
                let alone = s.run(cpu, &[s.case.tokens]);
                prop_assert_eq!(bits(out.row(i)), bits(alone.row(s.case.tokens - 1)), "with {}", name(cpu));
            }
        }
    }
}

#[test]
fn stale_pages_do_not_reach_a_result() {
    let case = Case { kv_heads: 1, group: 2, head_dim: 32, tokens: 37, window: None, seed: 3 };
    let sequence = Sequence::new(&case);
    let mut cpu = contexts().remove(0);
    let clean = sequence.run(&mut cpu, &[37]);
    let mut cache = KvCache::new(sequence.shape).unwrap();
    let poison = Slab::from_rows(sequence.qkv.cols(), &vec![f32::NAN; 48 * sequence.qkv.cols()]).unwrap();
    let segment = [KvSegment { len: 48, first_position: 0, pages: &sequence.pages }];
    cpu.kv_append(&mut cache, 1, &poison, Rows::first(48), sequence.columns, &segment).unwrap();
    let segment = [KvSegment { len: 37, first_position: 0, pages: &sequence.pages }];
    cpu.kv_append(&mut cache, 1, &sequence.qkv, Rows::first(37), sequence.columns, &segment).unwrap();
    let mut out = Slab::new(37, clean.cols());
    let io = Io::across(&sequence.qkv, Rows::first(37), &mut out, Rows::first(37));
    cpu.paged_attention(&cache, io, &segment, sequence.attention).unwrap();
    for position in 0..37 {
        assert_eq!(bits(out.row(position)), bits(clean.row(position)), "position {position}");
    }
}

#[test]
fn wrong_pages_are_errors() {
    let case = Case { kv_heads: 2, group: 1, head_dim: 16, tokens: 20, window: None, seed: 3 };
    let s = Sequence::new(&case);
    let mut cpu = contexts().remove(0);
    let cache = KvCache::new(s.shape).unwrap();
    let mut out = Slab::new(20, 32);
    let mut run = |len: usize, first_position: u32, pages: &[u32]| {
        let rows = Rows::first(20);
        let segment = [KvSegment { len, first_position, pages }];
        cpu.paged_attention(&cache, Io::across(&s.qkv, rows, &mut out, rows), &segment, s.attention)
    };
    assert_eq!(run(20, 0, &s.pages), Ok(()));
    assert!(matches!(run(19, 0, &s.pages), Err(Error::Size { expected: 19, found: 20, .. })));
    assert!(matches!(run(20, 16, &s.pages), Err(Error::Range { index: 2, len: 2, .. })));
    assert!(matches!(run(20, 0, &[0, 99]), Err(Error::Range { index: 99, .. })));
    let shape = KvShape { head_dim: 257, ..s.shape };
    assert!(KvCache::new(shape).is_err());
    let shape = KvShape { pages: 1 << 45, ..s.shape };
    assert!(matches!(KvCache::new(shape), Err(Error::Memory { .. })));
}
