//! What sampling needs of rows of logits.

use rand::Rng;
use rand::rngs::SmallRng;
use sluice_kernels::cuda::{Buffer, Device, Error, LogitSummary, Summary};
use sluice_kernels::reference;

use crate::POISON;
use crate::common::seeded;

/// Of a log-probability.
const BOUND: f64 = 8e-6;

pub fn check(device: &Device, quick: bool) -> Result<(), Error> {
    let mut rng = seeded(9);
    for columns in [8, 4096, 4104, 32_000, 151_936] {
        let error = rows(device, columns, if quick { 3 } else { 40 }, &mut rng)?;
        println!("summary of {columns} logits: worst error {error:.2e}; the best id; the same bits alone");
    }
    Ok(())
}

fn rows(device: &Device, columns: usize, rows: usize, rng: &mut SmallRng) -> Result<f64, Error> {
    let stride = columns + 8;
    let mut logits: Vec<f32> = (0..rows * stride).map(|_| rng.random_range(-15.0f32..15.0)).collect();
    // Ties in the second row, and in the third one number among what weighs nothing.
    logits[stride..2 * stride].iter_mut().for_each(|v| *v = v.round());
    logits[2 * stride..3 * stride].fill(f32::NEG_INFINITY);
    logits[2 * stride + columns - 3] = -2.5;
    let mut summary = LogitSummary::new(device, columns, rows)?;
    let (ids, best, log_sums) = run(device, &mut summary, &logits, stride)?;
    let mut worst = 0.0f64;
    for (row, logits) in logits.chunks_exact(stride).enumerate() {
        let logits = &logits[..columns];
        let first = (0..columns).reduce(|a, b| if logits[b] > logits[a] { b } else { a }).unwrap();
        assert_eq!(ids[row] as usize, first, "{columns} logits: the best of row {row}");
        assert_eq!(best[row].to_bits(), logits[first].to_bits(), "{columns} logits: the best of row {row}");
        let error = (f64::from(log_sums[row]) - reference::log_sum_exp(logits)).abs();
        assert!(error <= BOUND, "{columns} logits: row {row}: {} is off by {error:.2e}", log_sums[row]);
        worst = worst.max(error);
        let alone = run(device, &mut summary, &logits_of(logits, stride), stride)?;
        assert_eq!(
            (alone.0[0], alone.2[0].to_bits()),
            (ids[row], log_sums[row].to_bits()),
            "row {row} alone"
        );
    }
    logits[stride - 12] = f32::NAN;
    let (_, _, log_sums) = run(device, &mut summary, &logits, stride)?;
    assert!(
        log_sums[0].is_nan() && !log_sums[1].is_nan(),
        "{columns} logits with a NaN: {:?}",
        &log_sums[..2]
    );
    Ok(worst)
}

fn logits_of(row: &[f32], stride: usize) -> Vec<f32> {
    let mut row = row.to_vec();
    row.resize(stride, 1e30);
    row
}

type Summaries = (Vec<i32>, Vec<f32>, Vec<f32>);

fn run(
    device: &Device,
    summary: &mut LogitSummary,
    logits: &[f32],
    stride: usize,
) -> Result<Summaries, Error> {
    let rows = logits.len() / stride;
    let logits = device.upload(logits)?;
    let mut ids: Buffer<i32> = device.zeros(rows)?;
    let (mut best, mut log_sums): (Buffer<f32>, Buffer<f32>) = (device.zeros(rows)?, device.zeros(rows)?);
    device.fill_bytes(&mut ids, POISON)?;
    device.fill_bytes(&mut best, POISON)?;
    device.fill_bytes(&mut log_sums, POISON)?;
    let out = Summary { ids: &mut ids, best: &mut best, log_sums: &mut log_sums };
    summary.run(device, rows, &logits, stride, out)?;
    let ids = device.download(&ids.as_view())?;
    Ok((ids, device.download(&best.as_view())?, device.download(&log_sums.as_view())?))
}
