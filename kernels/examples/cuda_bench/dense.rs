//! Dense products: the projections around attention, and the logits.

use half::bf16;
use sluice_kernels::cuda::{
    Buffer, Dense, DenseOutput, DenseShape, DenseTiles, DenseTuning, DenseWeights, Device, Error, Fill,
    LogitSummary, RowNorm, RowOps, Rows, Summary,
};

use crate::{Arguments, CALLS, FLOPS_PER_SECOND, bytes_per_second, time};

const ROWS: [usize; 9] = [1, 8, 16, 32, 64, 128, 256, 512, 1024];
/// Bytes of weights that the calls rotate over at least: more than any cache holds.
const ROTATED_BYTES: usize = 200 << 20;

/// Name, outputs, columns, whether the output is f32.
const SHAPES: [(&str, usize, usize, bool); 6] = [
    ("Qwen3-30B-A3B QKV", 5120, 2048, false),
    ("Qwen3-30B-A3B O", 2048, 4096, false),
    ("Qwen3-30B-A3B vocabulary", 151_936, 2048, true),
    ("Mixtral-8x7B QKV", 6144, 4096, false),
    ("Mixtral-8x7B O", 4096, 4096, false),
    ("Mixtral-8x7B vocabulary", 32_000, 4096, true),
];

/// `product`: the product alone, call after call. `norm, product`: each call behind a norm of its rows.
pub fn bench(device: &Device, arguments: &Arguments) -> Result<(), Error> {
    println!("dense products");
    println!("| matrix | rows | floor us | product us (of floor) | norm, product us |");
    println!("| --- | --- | --- | --- | --- |");
    for (name, outputs, columns, single) in SHAPES {
        if !(arguments.wants(name) || arguments.wants("dense")) {
            continue;
        }
        let shape = DenseShape::new(outputs, columns)?;
        let mut bench = Bench::new(device, &shape, single)?;
        let whole = DenseShape::in_segments(outputs, columns, 1)?;
        let mut whole = (arguments.flag("all") && whole != shape)
            .then(|| Bench::new(device, &whole, single))
            .transpose()?;
        let most = if single { 256 } else { 1024 };
        for rows in ROWS.into_iter().filter(|rows| *rows <= most) {
            let floor = floor_us(device, outputs, columns, single, rows);
            let us = bench.product(rows, DenseTuning::default())?;
            let behind = bench.behind_norm(rows)?;
            println!("| {name} | {rows} | {floor:.1} | {us:.1} ({:.2}) | {behind:.1} |", floor / us);
            if arguments.flag("all") {
                let segments = [(Some(&mut bench), "as it is"), (whole.as_mut(), "one segment")];
                for (bench, segments) in segments.into_iter().filter_map(|(b, s)| b.map(|b| (b, s))) {
                    for (tiles, chunks) in tunings(rows) {
                        let mut line = format!("    {segments}, {tiles:?}, us by chunk:");
                        for chunk in chunks {
                            let us =
                                bench.product(rows, DenseTuning { tiles: Some(tiles), chunk, units: 0 })?;
                            line += &format!(" {chunk}: {us:.1};");
                        }
                        println!("{line}");
                    }
                }
            }
        }
    }
    Ok(())
}

struct Bench<'a> {
    device: &'a Device,
    dense: Dense,
    ops: RowOps,
    sets: Vec<DenseWeights>,
    raw: Buffer<bf16>,
    x: Buffer<bf16>,
    ones: Buffer<f32>,
    half: Buffer<bf16>,
    single: Option<Buffer<f32>>,
}

impl<'a> Bench<'a> {
    fn new(device: &'a Device, shape: &DenseShape, single: bool) -> Result<Self, Error> {
        let (outputs, columns) = (shape.outputs(), shape.columns());
        let fill = Fill::new(device)?;
        let mut matrix: Buffer<bf16> = device.zeros(shape.values())?;
        let mut sets = Vec::new();
        for set in 0..ROTATED_BYTES.div_ceil(shape.values() * size_of::<bf16>()).max(2) {
            fill.normal(device, &mut matrix, (set as u64) << 40, 0.02)?;
            let mut weights = DenseWeights::new(device, shape)?;
            weights.load(device, 0, &matrix.as_view())?;
            sets.push(weights);
        }
        let rows = ROWS[ROWS.len() - 1];
        let (mut raw, mut x) = (device.zeros(rows * columns)?, device.zeros(rows * columns)?);
        fill.normal(device, &mut raw, 99 << 40, 1.0)?;
        fill.normal(device, &mut x, 98 << 40, 1.0)?;
        let ones = device.upload(&vec![1.0f32; columns])?;
        let half = device.zeros(if single { 0 } else { rows * outputs }.max(1))?;
        let single = single.then(|| device.zeros(256 * outputs)).transpose()?;
        Ok(Self {
            device,
            dense: Dense::new(device)?,
            ops: RowOps::new(device)?,
            sets,
            raw,
            x,
            ones,
            half,
            single,
        })
    }

    fn run(&mut self, rows: usize, call: usize, tuning: DenseTuning) -> Result<(), Error> {
        let weights = &self.sets[call % self.sets.len()];
        let (outputs, columns) = (weights.shape().outputs(), weights.shape().columns());
        let y = match &mut self.single {
            Some(single) => DenseOutput::Single(single),
            None => DenseOutput::Half(&mut self.half),
        };
        let x = Rows { data: &self.x, stride: columns };
        self.dense.run(self.device, rows, &x, weights, y, outputs, tuning)
    }

    fn product(&mut self, rows: usize, tuning: DenseTuning) -> Result<f64, Error> {
        time(self.device, CALLS, |call| self.run(rows, call, tuning))
    }

    fn behind_norm(&mut self, rows: usize) -> Result<f64, Error> {
        time(self.device, CALLS, |call| {
            let norm = RowNorm { weight: &self.ones, eps: 1e-6 };
            self.ops.add_rmsnorm(self.device, rows, &mut self.raw, None, &norm, &mut self.x)?;
            self.run(rows, call, DenseTuning::default())
        })
    }
}

/// Every kind of tiles that may be worth it; where a block computes one segment, by itself and with the next smaller chunk.
fn tunings(rows: usize) -> Vec<(DenseTiles, Vec<usize>)> {
    let chunks = |tiles: DenseTiles| {
        let chunks = tiles.chunks();
        let enough = chunks.iter().position(|chunk| *chunk >= rows).unwrap_or(chunks.len() - 1);
        let fewest = if rows > 32 { 1 } else { 0 };
        let least = match tiles {
            DenseTiles::Flat | DenseTiles::Tall => enough.saturating_sub(fewest),
            DenseTiles::SharedWeights | DenseTiles::SharedRows if rows < 32 => enough,
            DenseTiles::SharedWeights | DenseTiles::SharedRows => 0,
        };
        (tiles, chunks[least..=enough].to_vec())
    };
    [DenseTiles::Flat, DenseTiles::Tall, DenseTiles::SharedWeights, DenseTiles::SharedRows]
        .map(chunks)
        .to_vec()
}

/// The larger of the time for the bytes (weights, rows in and out) and that for the arithmetic.
fn floor_us(device: &Device, outputs: usize, columns: usize, single: bool, rows: usize) -> f64 {
    let bytes = 2 * (outputs * columns + rows * columns) + rows * outputs * if single { 4 } else { 2 };
    let flops = 2 * outputs * columns * rows;
    (bytes as f64 / bytes_per_second(device)).max(flops as f64 / FLOPS_PER_SECOND) * 1e6
}

/// The summary of rows of logits; few rows are in L2, as they are behind the product that made them.
pub fn logits(device: &Device) -> Result<(), Error> {
    println!("summary of logits");
    println!("| logits | rows | floor us | us (of floor) |");
    println!("| --- | --- | --- | --- |");
    for columns in [32_000, 151_936] {
        for rows in [1, 16, 64, 256] {
            let logits: Vec<f32> =
                (0..rows * columns).map(|i| (i * 2_654_435_761 % 1000) as f32 / 100.0).collect();
            let logits = device.upload(&logits)?;
            let mut summary = LogitSummary::new(device, columns, rows)?;
            let (mut ids, mut best, mut log_sums) =
                (device.zeros(rows)?, device.zeros(rows)?, device.zeros(rows)?);
            let us = time(device, CALLS, |_| {
                let out = Summary { ids: &mut ids, best: &mut best, log_sums: &mut log_sums };
                summary.run(device, rows, &logits, columns, out)
            })?;
            let floor = (4 * rows * columns) as f64 / bytes_per_second(device) * 1e6;
            println!("| {columns} | {rows} | {floor:.1} | {us:.1} ({:.2}) |", floor / us);
        }
    }
    Ok(())
}
