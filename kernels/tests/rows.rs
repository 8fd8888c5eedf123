//! Norms, RoPE, router, merge and embedding: close to their twins, the same bits on every set.

// Helpers of tests: a failure is the test's.
#![allow(clippy::unwrap_used)]

mod common;

use common::{DTYPES, Random, assert_close, bits, contexts, name};
use proptest::prelude::*;
use sluice_kernels::cpu::{
    Cpu, Io, Merge, Norm, RopeTable, Routed, Router, Rows, Score, Slab, SliceIo, Table,
};
use sluice_kernels::reference;

/// Runs `f` in every context and asserts that all give one slab's bits; returns it.
fn everywhere(f: impl Fn(&mut Cpu) -> Slab) -> Slab {
    let mut contexts = contexts();
    let first = f(&mut contexts[0]);
    for cpu in &mut contexts[1..] {
        let other = f(cpu);
        for row in 0..first.rows() {
            assert_eq!(bits(first.row(row)), bits(other.row(row)), "row {row} with {}", name(cpu));
        }
    }
    first
}

const EPS: f64 = f32::EPSILON as f64;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn rmsnorm(rows in 1usize..70, cols in 1usize..1200, weighted in any::<bool>(), seed in any::<u64>()) {
        let mut random = Random::new(seed);
        let x = random.slab(rows, cols);
        let weight = weighted.then(|| random.values(cols));
        let norm = Norm { weight: weight.as_deref(), eps: 1e-5 };
        let y = everywhere(|cpu| {
            let mut y = Slab::new(rows, cols);
            cpu.rmsnorm(Io::across(&x, Rows::first(rows), &mut y, Rows::first(rows)), norm).unwrap();
            y
        });
        for row in 0..rows {
            let twin = reference::rmsnorm(x.row(row), norm.weight, norm.eps);
            assert_close(y.row(row), &twin, 0.0, EPS * 16.0, "rmsnorm");
        }
    }

    #[test]
    fn head_norm_and_rope(
        rows in 1usize..20,
        heads in 1usize..5,
        head in prop::sample::select(&[4usize, 24, 48, 64, 128][..]),
        part in 1usize..=2,
        seed in any::<u64>(),
    ) {
        let mut random = Random::new(seed);
        let rotary = head / part;
        let x = random.slab(rows, 3 + heads * head + 5);
        let cols = 3..3 + heads * head;
        let weight = random.values(head);
        let norm = Norm { weight: Some(&weight), eps: 1e-6 };
        let frequencies: Vec<f64> = (0..rotary / 2).map(|i| 10_000f64.powf(-2.0 * i as f64 / rotary as f64)).collect();
        let angles: Vec<f64> = (0..100).flat_map(|t| frequencies.iter().map(move |f| f * f64::from(t))).collect();
        let cos: Vec<f32> = angles.iter().map(|a| a.cos() as f32).collect();
        let sin: Vec<f32> = angles.iter().map(|a| a.sin() as f32).collect();
        let table = RopeTable::new(rotary, cos.clone(), sin.clone()).unwrap();
        let positions: Vec<u32> = (0..rows).map(|_| random.below(100) as u32).collect();
        let y = everywhere(|cpu| {
            let mut y = Slab::new(rows, x.cols());
            for row in 0..rows {
                y.row_mut(row).copy_from_slice(x.row(row));
            }
            cpu.rmsnorm_heads(&mut y, Rows::first(rows), cols.clone(), head, norm).unwrap();
            cpu.rope(&mut y, Rows::first(rows), cols.clone(), head, &positions, &table).unwrap();
            y
        });
        for (row, position) in positions.iter().enumerate() {
            prop_assert_eq!(bits(&y.row(row)[..3]), bits(&x.row(row)[..3]));
            prop_assert_eq!(bits(&y.row(row)[cols.end..]), bits(&x.row(row)[cols.end..]));
            for h in 0..heads {
                let at = 3 + h * head;
                let normed: Vec<f32> = reference::rmsnorm(&x.row(row)[at..at + head], norm.weight, norm.eps)
                    .iter()
                    .map(|x| *x as f32)
                    .collect();
                let turn = *position as usize * rotary / 2..(*position as usize + 1) * rotary / 2;
                let twin = reference::rope(&normed, &cos[turn.clone()], &sin[turn]);
                assert_close(&y.row(row)[at..at + head], &twin, 1.0, EPS * 32.0, "rope");
            }
        }
    }

    #[test]
    fn router(
        rows in 1usize..20,
        experts in prop::sample::select(&[2usize, 5, 8, 33, 128][..]),
        sigmoid in any::<bool>(),
        biased in any::<bool>(),
        renormalise in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let mut random = Random::new(seed);
        let logits = random.slab(rows, experts);
        let bias = biased.then(|| random.values(experts));
        let top_k = 1 + random.below(experts.min(8));
        let score = if sigmoid { Score::Sigmoid } else { Score::Softmax };
        let router = Router { score, selection_bias: bias.as_deref(), top_k, renormalise, scale: 2.5 };
        let twin = reference::Router { sigmoid, selection_bias: bias.as_deref(), top_k, renormalise, scale: 2.5 };
        let mut first: Option<Routed> = None;
        for cpu in &mut contexts() {
            let mut routed = Routed::default();
            cpu.route(&logits, Rows::first(rows), router, &mut routed).unwrap();
            if let Some(first) = &first {
                prop_assert_eq!(&first.ids, &routed.ids);
                prop_assert_eq!(bits(&first.weights), bits(&routed.weights));
                prop_assert_eq!(bits(&first.gaps), bits(&routed.gaps));
            } else {
                first = Some(routed);
            }
        }
        let routed = first.unwrap();
        for row in 0..rows {
            let (chosen, gap) = reference::route(logits.row(row), twin);
            assert_close(&routed.gaps[row..=row], &[gap], 1.0, EPS * 8.0, "gap");
            if gap < 1e-5 {
                continue;
            }
            for (i, (id, weight)) in chosen.iter().enumerate() {
                let at = routed.ids[row * top_k..][..top_k].iter().position(|e| *e as usize == *id);
                let Some(at) = at else { panic!("expert {id} is missing in row {row}") };
                assert_close(&routed.weights[row * top_k + at..][..1], &[*weight], 0.0, EPS * 32.0, "weight");
                prop_assert!(at.abs_diff(i) <= 1, "near-equal scores may swap at most");
            }
        }
    }

    #[test]
    fn merge(
        tokens in 1usize..20,
        cols in 1usize..2100,
        k in 1usize..5,
        slices in prop::sample::select(&[1usize, 2, 4, 8][..]),
        seed in any::<u64>(),
    ) {
        let mut random = Random::new(seed);
        let outputs = random.slab(tokens * k * slices, cols);
        let before = random.values(tokens * cols);
        let weights: Vec<Vec<f32>> = (0..tokens).map(|_| random.values(k)).collect();
        let parts = random.distinct(tokens * k * slices, tokens * k * slices);
        let rows = random.distinct(tokens, tokens);
        let list: Vec<Merge<'_>> = (0..tokens)
            .map(|t| Merge { row: rows[t], weights: &weights[t], parts: &parts[t * k * slices..][..k * slices] })
            .collect();
        let merged = everywhere(|cpu| {
            let mut residual = Slab::from_rows(cols, &before).unwrap();
            cpu.merge_topk(&outputs, &mut residual, slices, &list).unwrap();
            residual
        });
        // Combining slices first and merging whole outputs then gives the same bits.
        let split = everywhere(|cpu| {
            let mut residual = Slab::from_rows(cols, &before).unwrap();
            let mut whole = Slab::new(tokens * k, cols);
            let rows = Rows::first(tokens * k);
            let io = SliceIo { src: &outputs, parts: Rows::List(&parts), dst: &mut whole, rows };
            cpu.combine_slices(slices, io).unwrap();
            let ids: Vec<u32> = (0..(tokens * k) as u32).collect();
            let list: Vec<Merge<'_>> =
                list.iter().enumerate().map(|(t, m)| Merge { parts: &ids[t * k..][..k], ..*m }).collect();
            cpu.merge_topk(&whole, &mut residual, 1, &list).unwrap();
            residual
        });
        for token in &list {
            let row = token.row as usize;
            prop_assert_eq!(bits(merged.row(row)), bits(split.row(row)));
            let twin: Vec<f64> = (0..cols)
                .map(|c| {
                    let y = |i: usize| -> f64 {
                        token.parts[i * slices..][..slices].iter().map(|p| f64::from(outputs.row(*p as usize)[c])).sum()
                    };
                    let sum: f64 = (0..k).map(|i| f64::from(token.weights[i]) * y(i)).sum();
                    f64::from(before[row * cols + c]) + sum
                })
                .collect();
            assert_close(merged.row(row), &twin, (k * slices) as f64, EPS * 8.0, "merge");
        }
    }

    #[test]
    fn embedding_widens_exactly(cols in 1usize..100, seed in any::<u64>()) {
        let mut random = Random::new(seed);
        for dtype in DTYPES {
            let weights = random.weights(dtype, 20, cols);
            let table = Table::new(dtype, 20, cols, &weights.bytes).unwrap();
            let ids: Vec<u32> = (0..9).map(|_| random.below(20) as u32).collect();
            let out = everywhere(|cpu| {
                let mut out = Slab::new(9, cols);
                cpu.embed(&table, &ids, &mut out, Rows::first(9)).unwrap();
                out
            });
            for (i, id) in ids.iter().enumerate() {
                prop_assert_eq!(bits(out.row(i)), bits(&weights.values[*id as usize * cols..][..cols]));
            }
        }
    }
}

#[test]
fn ties_go_to_the_lower_expert() {
    let logits = Slab::from_rows(6, &[1.0, 2.0, 2.0, 0.0, 2.0, 1.0]).unwrap();
    let router =
        Router { score: Score::Softmax, selection_bias: None, top_k: 4, renormalise: true, scale: 1.0 };
    for cpu in &mut contexts() {
        let mut routed = Routed::default();
        cpu.route(&logits, Rows::first(1), router, &mut routed).unwrap();
        assert_eq!(routed.ids, [1, 2, 4, 0], "with {}", name(cpu));
        assert_eq!(routed.gaps, [0.0]);
    }
}

#[test]
fn nan_logits_route_to_distinct_experts_with_nan_weights() {
    let logits = Slab::from_rows(5, &[f32::NAN, 2.0, 2.0, 0.0, 2.0]).unwrap();
    let router =
        Router { score: Score::Softmax, selection_bias: None, top_k: 3, renormalise: true, scale: 1.0 };
    let mut routed = Routed::default();
    contexts()[0].route(&logits, Rows::first(1), router, &mut routed).unwrap();
    let mut ids = routed.ids.clone();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 3);
    assert!(routed.weights.iter().all(|w| w.is_nan()));
}

#[test]
fn clamp_holds_only_its_columns() {
    let mut slab = Slab::from_rows(4, &[9.0, -9.0, 9.0, 1.0]).unwrap();
    contexts()[0].clamp(&mut slab, Rows::first(1), 1..4, 2.0).unwrap();
    assert_eq!(slab.row(0), [9.0, -2.0, 2.0, 1.0]);
}
