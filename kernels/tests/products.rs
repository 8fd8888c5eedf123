//! Products: the stated chain to the bit, on every set, thread count and companion; experts and their slices.

// Helpers of tests: a failure is the test's.
#![allow(clippy::unwrap_used)]

mod common;

use common::{DTYPES, Random, Weights, assert_close, bits, chain, contexts, name};
use proptest::prelude::*;
use sluice_kernels::Error;
use sluice_kernels::cpu::{
    Dtype, Epilogue, Expert, ExpertIo, ExpertRow, Io, PackedMatrix, Rows, Slab, SliceIo, Source, segments,
};
use sluice_kernels::reference;

fn shape() -> impl Strategy<Value = (usize, usize, usize)> {
    // (rows, outputs, inner)
    prop_oneof![
        (1usize..40, 1usize..140, 1usize..90),
        (1usize..6, 200usize..300, 64usize..200),
        Just((1, 33, 48)),
        Just((13, 72, 48)),
        Just((25, 5, 256)),
        Just((64, 256, 256)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn matmul_is_the_stated_chain_everywhere(
        (rows, outputs, inner) in shape(),
        dtype in prop::sample::select(&DTYPES[..]),
        bias in any::<bool>(),
        accumulate in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let mut random = Random::new(seed);
        let weights = random.weights(dtype, outputs, inner);
        let packed = weights.pack();
        let src = random.slab(rows + 3, inner);
        let src_rows: Vec<u32> = (0..rows).map(|_| random.below(rows + 3) as u32).collect();
        let dst_rows = random.distinct(rows, rows + 5);
        let before = random.values((rows + 5) * outputs);
        let bias = bias.then(|| random.values(outputs));
        for mut cpu in contexts() {
            let mut dst = Slab::from_rows(outputs, &before).unwrap();
            let epilogue = Epilogue { bias: bias.as_deref(), accumulate };
            cpu.matmul(Io::across(&src, &src_rows, &mut dst, &dst_rows), &packed, epilogue).unwrap();
            let mut expected = Slab::from_rows(outputs, &before).unwrap();
            for (s, d) in src_rows.iter().zip(&dst_rows) {
                for o in 0..outputs {
                    let mut y = chain(src.row(*s as usize), &weights.values[o * inner..][..inner]);
                    if let Some(bias) = &bias {
                        y += bias[o];
                    }
                    let out = &mut expected.row_mut(*d as usize)[o];
                    *out = if accumulate { *out + y } else { y };
                }
            }
            for row in 0..rows + 5 {
                prop_assert_eq!(bits(dst.row(row)), bits(expected.row(row)), "row {} with {}", row, name(&cpu));
            }
        }
    }

    #[test]
    fn matmul_is_close_to_its_twin(
        (rows, outputs, inner) in shape(),
        dtype in prop::sample::select(&DTYPES[..]),
        seed in any::<u64>(),
    ) {
        let mut random = Random::new(seed);
        let weights = random.weights(dtype, outputs, inner);
        let x = random.values(rows * inner);
        let src = Slab::from_rows(inner, &x).unwrap();
        let mut dst = Slab::new(rows, outputs);
        let mut cpu = contexts().remove(0);
        cpu.matmul(
            Io::across(&src, Rows::first(rows), &mut dst, Rows::first(rows)),
            &weights.pack(),
            Epilogue::default(),
        )
        .unwrap();
        let twin = reference::matmul(&x, &weights.values, inner);
        for (row, twin) in twin.chunks_exact(outputs).enumerate() {
            // One rounding per step of the chain, of a sum below the inner dimension.
            assert_close(dst.row(row), twin, inner as f64, f64::from(f32::EPSILON) * inner as f64, "matmul");
        }
    }

    #[test]
    fn experts_do_not_depend_on_set_threads_companions_or_slices(
        d in prop::sample::select(&[32usize, 48, 96, 256][..]),
        f in prop::sample::select(&[8usize, 72, 100, 256, 320][..]),
        g in prop::sample::select(&[1usize, 2, 4, 8][..]),
        dtype in prop::sample::select(&DTYPES[..]),
        units in 1usize..5,
        count in 1usize..40,
        seed in any::<u64>(),
    ) {
        let mut random = Random::new(seed);
        let experts: Vec<[Weights; 3]> = (0..units)
            .map(|_| [random.weights(dtype, f, d), random.weights(dtype, f, d), random.weights(dtype, d, f)])
            .collect();
        let pack = |held: std::ops::Range<usize>| -> Vec<Expert> {
            experts
                .iter()
                .map(|[gate, up, down]| {
                    Expert::pack(&gate.source(), &up.source(), &down.source(), g, held.clone()).unwrap()
                })
                .collect()
        };
        let src = random.slab(count, d);
        let dst_rows = random.distinct(count, count + 2);
        let rows: Vec<ExpertRow> = dst_rows
            .iter()
            .map(|dst| ExpertRow { unit: random.below(units) as u32, src: random.below(count) as u32, dst: *dst })
            .collect();

        // The row as the contract states it, alone.
        let whole = pack(0..g);
        let stated: Vec<Vec<f32>> = rows
            .iter()
            .map(|row| {
                let [gate, up, down] = &experts[row.unit as usize];
                stated_expert(src.row(row.src as usize), gate, up, down, g)
            })
            .collect();

        for mut cpu in contexts() {
            let mut dst = Slab::new(count + 2, d);
            let units: Vec<&Expert> = whole.iter().collect();
            cpu.expert_ffn(&units, &rows, ExpertIo::Across { src: &src, dst: &mut dst }).unwrap();
            for (row, stated) in rows.iter().zip(&stated) {
                prop_assert_eq!(bits(dst.row(row.dst as usize)), bits(stated), "{:?} with {}", row, name(&cpu));
            }
        }

        for (row, stated) in rows.iter().zip(&stated) {
            let [gate, up, down] = &experts[row.unit as usize];
            let x = src.row(row.src as usize);
            let twin = reference::expert(x, &gate.values, &up.values, &down.values, 0..f);
            // h is a product of two sums below d; errors of both and of the down chain add up.
            let size = (d * d * f) as f64;
            assert_close(stated, &twin, size, f64::from(f32::EPSILON) * (2 * d + f + 8) as f64, "expert");
        }

        let mut cpu = contexts().remove(0);
        for slices in [1, 2, 4, 8] {
            if slices > g {
                continue;
            }
            let mut parts = Slab::new(count * slices, d);
            let mut dst = Slab::new(count + 2, d);
            for s in 0..slices {
                let held = pack(s * g / slices..(s + 1) * g / slices);
                let units: Vec<&Expert> = held.iter().collect();
                let rows: Vec<ExpertRow> = rows
                    .iter()
                    .enumerate()
                    .map(|(i, row)| ExpertRow { dst: (i * slices + s) as u32, ..*row })
                    .collect();
                cpu.expert_ffn(&units, &rows, ExpertIo::Across { src: &src, dst: &mut parts }).unwrap();
            }
            let io = SliceIo {
                src: &parts,
                parts: Rows::first(count * slices),
                dst: &mut dst,
                rows: Rows::List(&dst_rows),
            };
            cpu.combine_slices(slices, io).unwrap();
            for (row, stated) in rows.iter().zip(&stated) {
                prop_assert_eq!(bits(dst.row(row.dst as usize)), bits(stated), "{} slices of {}", slices, g);
            }
        }
    }

    #[test]
    fn segments_cover_evenly(f in 1usize..5000, g in prop::sample::select(&[1usize, 2, 4, 8][..])) {
        let all = segments(f, g);
        prop_assert_eq!(all.len(), g);
        prop_assert_eq!(all[0].start, 0);
        prop_assert_eq!(all[g - 1].end, f);
        for pair in all.windows(2) {
            prop_assert_eq!(pair[0].end, pair[1].start);
            if f / g >= 32 {
                prop_assert_eq!(pair[0].end % 32, 0);
            }
        }
        let unit = if f / g >= 32 { 32 } else { 1 };
        let (shortest, longest) =
            (all.iter().map(ExactSizeIterator::len).min().unwrap(), all.iter().map(ExactSizeIterator::len).max().unwrap());
        prop_assert!(longest - shortest < 2 * unit, "{:?}", all);
    }
}

/// One row, one scalar at a time, by the crate's numerics contract.
fn stated_expert(x: &[f32], gate: &Weights, up: &Weights, down: &Weights, g: usize) -> Vec<f32> {
    let (f, d) = (gate.rows, gate.cols);
    // silu through the op under test would prove nothing about the rest: take it from a matrix of one row.
    let h: Vec<f32> = (0..f)
        .map(|i| {
            let a = chain(x, &gate.values[i * d..][..d]);
            let b = chain(x, &up.values[i * d..][..d]);
            sluice_kernels::cpu::silu(a) * b
        })
        .collect();
    (0..d)
        .map(|o| {
            let w = &down.values[o * f..][..f];
            let mut sums: Vec<f32> =
                segments(f, g).into_iter().map(|s| chain(&h[s.clone()], &w[s])).collect();
            while sums.len() > 1 {
                sums = sums.chunks_exact(2).map(|p| p[0] + p[1]).collect();
            }
            sums[0]
        })
        .collect()
}

#[test]
fn matrices_are_packed_from_windows_and_pieces() {
    let mut random = Random::new(7);
    for dtype in DTYPES {
        let a = random.weights(dtype, 70, 40);
        let b = random.weights(dtype, 37, 40);
        let stacked = PackedMatrix::stack(&[a.source().rows(5..70).unwrap(), b.source()]).unwrap();
        assert_eq!((stacked.rows(), stacked.cols()), (102, 40));
        for row in 0..102 {
            for col in 0..40 {
                let expected =
                    if row < 65 { a.values[(row + 5) * 40 + col] } else { b.values[(row - 65) * 40 + col] };
                assert_eq!(stacked.get(row, col).to_bits(), expected.to_bits());
            }
        }
        let window = a.source().cols(3..36).unwrap().cols(1..33).unwrap();
        let window = PackedMatrix::stack(&[window]).unwrap();
        assert_eq!(window.get(69, 31).to_bits(), a.values[69 * 40 + 35].to_bits());
        assert_eq!(window.bytes(), 96 * 32 * dtype.size());
    }
}

#[test]
fn wrong_arguments_are_errors() {
    assert!(matches!(
        Source::new(Dtype::Bf16, 3, 5, &[0; 31]),
        Err(Error::Size { expected: 30, found: 31, .. })
    ));
    assert!(Source::new(Dtype::F32, usize::MAX, 5, &[]).is_err());
    let mut random = Random::new(1);
    let weights = random.weights(Dtype::F32, 8, 8);
    assert!(weights.source().rows(3..9).is_err());
    let packed = weights.pack();
    let mut cpu = contexts().remove(0);
    let mut slab = random.slab(4, 8);
    let run = |cpu: &mut sluice_kernels::cpu::Cpu, slab: &mut Slab, src: &[u32], dst: &[u32]| {
        cpu.matmul(Io::within(slab, src, dst), &packed, Epilogue::default())
    };
    assert_eq!(run(&mut cpu, &mut slab, &[0, 0], &[1, 2]), Ok(()));
    assert!(matches!(run(&mut cpu, &mut slab, &[0, 1], &[2, 2]), Err(Error::RowConflict { row: 2, .. })));
    assert!(matches!(run(&mut cpu, &mut slab, &[0, 1], &[1, 2]), Err(Error::RowConflict { row: 1, .. })));
    assert!(matches!(run(&mut cpu, &mut slab, &[0], &[4]), Err(Error::Range { index: 4, len: 4, .. })));
    assert!(matches!(run(&mut cpu, &mut slab, &[0, 1], &[2]), Err(Error::Size { .. })));
    for held in [0..3, 1..3, 2..2, 4..6] {
        let w = weights.source();
        assert!(Expert::pack(&w, &w, &w, 4, held.clone()).is_err(), "{held:?}");
    }
    let w = weights.source();
    assert!(Expert::pack(&w, &w, &w, 3, 0..1).is_err());
}
