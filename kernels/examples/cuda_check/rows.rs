//! Ops on rows: norms, copies by row number, and the router.

use std::time::Duration;

use half::bf16;
use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::index::sample;
use sluice_kernels::cpu::{Cpu, Isa, Pool, Routed as CpuRouted, Router as CpuRouter, Rows, Score, Slab};
use sluice_kernels::cuda::{Buffer, Device, Error, Route, Routed, Router, RowNorm, RowOps};
use sluice_kernels::reference;

use crate::common::{random_rows, seeded};
use crate::{POISON, row_error};

/// A norm's row is rounded to bf16 once: 2^-8 at most for a value.
const ROW_BOUND: f64 = 1.0 / 256.0;
const EPS: f32 = 1e-6;

pub fn check(device: &Device, quick: bool) -> Result<(), Error> {
    let mut rng = seeded(7);
    for columns in [8, 32, 320, 2048, 2880, 4096, 7168, 8192] {
        let error = norm(device, columns, if quick { 3 } else { 40 }, &mut rng)?;
        println!(
            "norm with residual, {columns} columns: worst row error {error:.2e}; the same bits alone and in two calls"
        );
    }
    copies(device, &mut rng)?;
    println!("gather and scatter: every row where it belongs, no other touched");
    routes(device, if quick { 20 } else { 700 }, &mut rng)?;
    println!("router: the bits of the CPU kernels, ties and NaN included");
    Ok(())
}

fn bits(values: &[bf16]) -> Vec<u16> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn norm(device: &Device, columns: usize, rows: usize, rng: &mut SmallRng) -> Result<f64, Error> {
    let ops = RowOps::new(device)?;
    let (x, delta) = (random_rows(rows * columns, rng), random_rows(rows * columns, rng));
    let weight: Vec<f32> = (0..columns).map(|_| rng.random_range(0.5..1.5)).collect();
    let weight_on = device.upload(&weight)?;
    let norm = || RowNorm { weight: &weight_on, eps: EPS };
    let run = |x: &[bf16], delta: Option<&[bf16]>| -> Result<(Vec<bf16>, Vec<bf16>), Error> {
        let rows = x.len() / columns;
        let mut x = device.upload(x)?;
        let delta = delta.map(|delta| device.upload(delta)).transpose()?;
        let mut out: Buffer<bf16> = device.zeros(rows * columns)?;
        device.fill_bytes(&mut out, POISON)?;
        ops.add_rmsnorm(device, rows, &mut x, delta.as_ref(), &norm(), &mut out)?;
        Ok((device.download(&x.as_view())?, device.download(&out.as_view())?))
    };
    let (sum, out) = run(&x, Some(&delta))?;
    let expected: Vec<bf16> =
        x.iter().zip(&delta).map(|(x, d)| bf16::from_f32(x.to_f32() + d.to_f32())).collect();
    assert_eq!(bits(&sum), bits(&expected), "{columns} columns: the sum with the residual");
    let mut worst = 0.0f64;
    for (row, out) in sum.chunks_exact(columns).zip(out.chunks_exact(columns)) {
        let row: Vec<f32> = row.iter().map(|v| v.to_f32()).collect();
        let found: Vec<f32> = out.iter().map(|v| v.to_f32()).collect();
        let (error, _) = row_error(&found, &reference::rmsnorm(&row, Some(&weight), EPS));
        assert!(error <= ROW_BOUND, "{columns} columns: row error {error:.2e}");
        worst = worst.max(error);
    }
    let (_, again) = run(&sum, None)?;
    assert_eq!(bits(&again), bits(&out), "{columns} columns: in two calls");
    let (_, alone) = run(&sum[..columns], None)?;
    assert_eq!(bits(&alone), bits(&out[..columns]), "{columns} columns: alone");
    Ok(worst)
}

fn copies(device: &Device, rng: &mut SmallRng) -> Result<(), Error> {
    let ops = RowOps::new(device)?;
    let (columns, table, count) = (2048, 300, 77);
    let from = random_rows(table * columns, rng);
    let sources: Vec<i32> = (0..count).map(|_| rng.random_range(0..table as i32)).collect();
    let targets: Vec<i32> = sample(rng, 200, count).into_iter().map(|t| t as i32).collect();
    let (from_on, sources_on, targets_on) =
        (device.upload(&from)?, device.upload(&sources)?, device.upload(&targets)?);
    for (gather, scatter) in [(true, false), (false, true), (true, true)] {
        let mut to: Buffer<bf16> = device.zeros(200 * columns)?;
        device.fill_bytes(&mut to, POISON)?;
        let source_rows = gather.then(|| sources_on.as_view());
        let target_rows = scatter.then(|| targets_on.as_view());
        ops.copy(device, count, columns, &from_on, source_rows, &mut to, target_rows)?;
        let to = device.download(&to.as_view())?;
        let mut expected = vec![bf16::from_bits(u16::MAX); 200 * columns];
        for i in 0..count {
            let source = if gather { sources[i] as usize } else { i };
            let target = if scatter { targets[i] as usize } else { i };
            expected[target * columns..][..columns].copy_from_slice(&from[source * columns..][..columns]);
        }
        assert_eq!(bits(&to), bits(&expected), "gather {gather}, scatter {scatter}");
    }
    Ok(())
}

fn routes(device: &Device, rows: usize, rng: &mut SmallRng) -> Result<(), Error> {
    let route = Route::new(device)?;
    let mut cpu = Cpu::new(Isa::best(), Pool::new(1, Duration::ZERO)?)?;
    for (experts, top_k) in [(1, 1), (8, 2), (8, 8), (60, 4), (128, 8), (256, 8), (512, 10)] {
        for (score, biased, renormalise, scale) in [
            (Score::Softmax, false, true, 1.0),
            (Score::Softmax, false, false, 1.0),
            (Score::Sigmoid, true, true, 2.5),
        ] {
            let mut logits: Vec<f32> = (0..rows * experts).map(|_| rng.random_range(-6.0f32..6.0)).collect();
            // Ties in a third of the rows, and a NaN in the last.
            for value in &mut logits[..rows / 3 * experts] {
                *value = value.round();
            }
            *logits.last_mut().unwrap() = f32::NAN;
            let bias: Vec<f32> = (0..experts).map(|_| rng.random_range(-0.1f32..0.1)).collect();
            let mut expected = CpuRouted::default();
            let slab = Slab::from_rows(experts, &logits)?;
            let selection_bias = biased.then_some(&bias[..]);
            let router = CpuRouter { score, selection_bias, top_k, renormalise, scale };
            cpu.route(&slab, Rows::Range { start: 0, len: rows }, router, &mut expected)?;

            let (logits, bias) = (device.upload(&logits)?, device.upload(&bias)?);
            let mut ids: Buffer<i32> = device.zeros(rows * top_k)?;
            let (mut weights, mut gaps): (Buffer<f32>, Buffer<f32>) =
                (device.zeros(rows * top_k)?, device.zeros(rows)?);
            device.fill_bytes(&mut ids, POISON)?;
            device.fill_bytes(&mut weights, POISON)?;
            let selection_bias = biased.then(|| bias.as_view());
            let router = Router { score, selection_bias, experts, top_k, renormalise, scale };
            let out = Routed { ids: &mut ids, weights: &mut weights, gaps: Some(&mut gaps) };
            route.run(device, &logits.as_view(), &router, out)?;
            let what = format!("{top_k} of {experts}, {score:?}");
            let ids: Vec<u32> = device.download(&ids.as_view())?.iter().map(|id| *id as u32).collect();
            assert_eq!(ids, expected.ids, "{what}: ids");
            same_floats(
                &device.download(&weights.as_view())?,
                &expected.weights,
                &format!("{what}: weights"),
            );
            same_floats(&device.download(&gaps.as_view())?, &expected.gaps, &format!("{what}: gaps"));
        }
    }
    Ok(())
}

/// Bit for bit, but for which NaN.
fn same_floats(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let differs = |(a, b): (&f32, &f32)| a.to_bits() != b.to_bits() && !(a.is_nan() && b.is_nan());
    if let Some(i) = found.iter().zip(expected).position(differs) {
        panic!("{what}: value {i} is {:e}, and {:e} on the CPU", found[i], expected[i]);
    }
}
