//! Dense products: every row against its f64 twin; the same bits whatever the rows beside it, the tiles and the blocks.

use std::time::{Duration, Instant};

use crate::common::{random_rows, seeded};
use half::bf16;
use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom, index::sample};
use sluice_kernels::cuda::{
    Buffer, Dense, DenseOutput, DenseShape, DenseTiles, DenseTuning, DenseWeights, Device, Error, Fill, Rows,
};
use sluice_kernels::reference;

use crate::{POISON, row_error};

/// Each row: the norm of its error over its norm. Rounded to bf16 once: 2^-9 at most for a value.
const HALF_BOUND: f64 = 1.0 / 256.0;
/// And where it leaves as f32: the tensor core's sums are a little coarser than f32's.
const SINGLE_BOUND: f64 = 1.0 / 16384.0;
const WEIGHT_SCALE: f32 = 0.02;
/// Outputs and rows whose twin is computed, per shape.
const TWIN_OUTPUTS: usize = 160;
const TWIN_ROWS: usize = 16;
/// Values between the end of an output row and the next one: they stay as they were.
const GAP: usize = 8;
/// Values written above which a launch is checked in fewer kinds.
const MANY: usize = 2 << 20;

struct Case {
    name: &'static str,
    outputs: usize,
    columns: usize,
    rows: usize,
    single: bool,
}

/// All shapes, or those whose name contains `only`.
pub fn check(device: &Device, only: &str, quick: bool, stress: Duration) -> Result<(), Error> {
    let case = |name, outputs, columns, rows, single| Case { name, outputs, columns, rows, single };
    let cases = [
        case("one strip", 8, 64, 9, true),
        case("odd strips, one segment", 200, 576, 270, false),
        case("odd strips, uneven segments", 1000, 1088, 270, false),
        case("router of Qwen3-30B-A3B", 128, 2048, 270, true),
        case("O of Qwen3-30B-A3B", 2048, 4096, 270, false),
        case("QKV of Qwen3-30B-A3B", 5120, 2048, 270, false),
        case("QKV of gpt-oss", 5120, 2880, 130, false),
        case("O of Mixtral 8x7B", 4096, 4096, 270, false),
        case("QKV of Mixtral 8x7B", 6144, 4096, 270, false),
        case("vocabulary of Mixtral 8x7B", 32_000, 4096, 130, true),
        case("vocabulary of Qwen3-30B-A3B", 151_936, 2048, 40, true),
    ];
    for mut case in cases.into_iter().filter(|case| case.name.contains(only)) {
        if quick {
            case.rows = case.rows.min(40);
        }
        if !quick || case.outputs * case.columns <= 2 << 20 {
            Checked::new(device, &case)?.all(quick, stress)?;
        }
    }
    Ok(())
}

struct Checked<'a> {
    device: &'a Device,
    case: &'a Case,
    dense: Dense,
    shape: DenseShape,
    x: Vec<bf16>,
    /// Row-major, on the device.
    matrix: Buffer<bf16>,
    weights: DenseWeights,
    /// Of every row, from the first launch: of f32, or of bf16 widened.
    bits: Vec<u32>,
    launches: usize,
    rng: SmallRng,
}

impl<'a> Checked<'a> {
    fn new(device: &'a Device, case: &'a Case) -> Result<Self, Error> {
        let mut rng = seeded(6);
        let shape = DenseShape::new(case.outputs, case.columns)?;
        let mut matrix = device.zeros(shape.values())?;
        Fill::new(device)?.normal(device, &mut matrix, 77 << 40, WEIGHT_SCALE)?;
        let mut weights = DenseWeights::new(device, &shape)?;
        // In two parts where there are any.
        let part = case.outputs / 256 * 128;
        weights.load(device, 0, &matrix.slice(..part * case.columns))?;
        weights.load(device, part, &matrix.slice(part * case.columns..))?;
        let x = random_rows(case.rows * case.columns, &mut rng);
        let (dense, bits) = (Dense::new(device)?, Vec::new());
        Ok(Self { device, case, dense, shape, x, matrix, weights, bits, launches: 0, rng })
    }

    fn all(mut self, quick: bool, stress: Duration) -> Result<(), Error> {
        let everyone: Vec<usize> = (0..self.case.rows).collect();
        self.bits = self.launch(&everyone, DenseTuning::default())?.iter().map(|v| v.to_bits()).collect();
        let error = self.against_twin()?;
        let tunings = self.tunings();
        for rows in [self.case.rows, 100, 33, 16, 7, 1].into_iter().filter(|n| *n <= self.case.rows) {
            let step = if quick || rows * self.case.outputs > MANY { 11 } else { 1 };
            for tuning in tunings.iter().skip(rows % step).step_by(step) {
                let some = sample(&mut self.rng, self.case.rows, rows).into_vec();
                self.same_bits(&some, *tuning)?;
            }
        }
        let launches = self.launches;
        let start = Instant::now();
        while start.elapsed() < stress {
            let exponent = self.rng.random_range(0.0..(self.case.rows as f64).log2());
            let some = sample(&mut self.rng, self.case.rows, exponent.exp2().round() as usize).into_vec();
            let tuning = *tunings.choose(&mut self.rng).unwrap();
            self.same_bits(&some, tuning)?;
        }
        println!(
            "{}: {} x {}: worst row error {error:.2e}; {launches} launches of every kind and {} random ones: the same bits",
            self.case.name,
            self.case.outputs,
            self.case.columns,
            self.launches - launches
        );
        Ok(())
    }

    fn tunings(&self) -> Vec<DenseTuning> {
        let mut tunings = Vec::new();
        for tiles in [DenseTiles::Flat, DenseTiles::Tall, DenseTiles::SharedWeights, DenseTiles::SharedRows] {
            // Even of one row and the largest chunk there is work for so many.
            let most = self.dense.units(self.device, &self.shape, tiles).min(match tiles {
                DenseTiles::Flat | DenseTiles::Tall => self.case.outputs / 8,
                DenseTiles::SharedWeights | DenseTiles::SharedRows => self.case.outputs.div_ceil(256),
            });
            for chunk in tiles.chunks().iter().copied().chain([0]) {
                for units in [0, (most * 3 / 4).max(1), (most / 7).max(1)] {
                    tunings.push(DenseTuning { tiles: Some(tiles), chunk, units });
                }
            }
        }
        tunings
    }

    fn same_bits(&mut self, some: &[usize], tuning: DenseTuning) -> Result<(), Error> {
        let y = self.launch(some, tuning)?;
        let outputs = self.case.outputs;
        let expected = some.iter().flat_map(|row| &self.bits[row * outputs..][..outputs]);
        let differing: Vec<usize> = y
            .iter()
            .zip(expected)
            .enumerate()
            .filter(|(_, (a, b))| a.to_bits() != **b)
            .map(|(i, _)| i)
            .collect();
        let Some(first) = differing.first() else { return Ok(()) };
        let (row, output) = (first / outputs, first % outputs);
        let rows: std::collections::BTreeSet<usize> = differing.iter().map(|i| i / outputs).collect();
        panic!(
            "{}: {tuning:?}, {} rows: {} of {} values differ, in {} rows ({:?}..), the first of row {row}, output {output}: {:e} instead of {:e}",
            self.case.name,
            some.len(),
            differing.len(),
            y.len(),
            rows.len(),
            rows.iter().take(12).collect::<Vec<_>>(),
            y[*first],
            f32::from_bits(self.bits[some[row] * outputs + output]),
        );
    }

    /// One launch over some of the rows, in that order.
    fn launch(&mut self, some: &[usize], tuning: DenseTuning) -> Result<Vec<f32>, Error> {
        self.launches += 1;
        let (device, columns, outputs) = (self.device, self.case.columns, self.case.outputs);
        let x: Vec<bf16> = some.iter().flat_map(|row| &self.x[row * columns..][..columns]).copied().collect();
        let x = device.upload(&x)?;
        let x = Rows { data: &x, stride: columns };
        let stride = outputs + GAP;
        let y: Vec<f32> = if self.case.single {
            let mut y: Buffer<f32> = device.zeros(some.len() * stride)?;
            device.fill_bytes(&mut y, POISON)?;
            let to = DenseOutput::Single(&mut y);
            self.dense.run(device, some.len(), &x, &self.weights, to, stride, tuning)?;
            device.download(&y.as_view())?
        } else {
            let mut y: Buffer<bf16> = device.zeros(some.len() * stride)?;
            device.fill_bytes(&mut y, POISON)?;
            let to = DenseOutput::Half(&mut y);
            self.dense.run(device, some.len(), &x, &self.weights, to, stride, tuning)?;
            device.download(&y.as_view())?.iter().map(|v| v.to_f32()).collect()
        };
        let mut rows = Vec::with_capacity(some.len() * outputs);
        for (i, row) in y.chunks_exact(stride).enumerate() {
            let (row, gap) = row.split_at(outputs);
            let unwritten: Vec<usize> = (0..outputs).filter(|o| row[*o].is_nan()).collect();
            assert!(
                unwritten.is_empty() && gap.iter().all(|v| v.is_nan()),
                "{}: {tuning:?}, {} rows: row {i} has {} of {outputs} values unwritten ({:?}..), and behind it {gap:?}",
                self.case.name,
                some.len(),
                unwritten.len(),
                &unwritten[..unwritten.len().min(12)],
            );
            rows.extend_from_slice(row);
        }
        Ok(rows)
    }

    /// The largest error of a row over its norm, among rows and outputs drawn at random.
    fn against_twin(&mut self) -> Result<f64, Error> {
        let Case { name, outputs, columns, rows, single } = *self.case;
        let floats = |values: &[bf16]| values.iter().map(|v| v.to_f32()).collect::<Vec<f32>>();
        let chosen = sample(&mut self.rng, outputs, TWIN_OUTPUTS.min(outputs)).into_vec();
        let mut matrix = Vec::new();
        for output in &chosen {
            let row = self.device.download(&self.matrix.slice(output * columns..(output + 1) * columns))?;
            matrix.extend(floats(&row));
        }
        let bound = if single { SINGLE_BOUND } else { HALF_BOUND };
        let mut worst = 0.0f64;
        for row in sample(&mut self.rng, rows, TWIN_ROWS.min(rows)) {
            let found: Vec<f32> =
                chosen.iter().map(|o| f32::from_bits(self.bits[row * outputs + o])).collect();
            let twin = reference::matmul(&floats(&self.x[row * columns..][..columns]), &matrix, columns);
            let (error, _) = row_error(&found, &twin);
            assert!(
                error <= bound,
                "{name}: row {row}: error {error:.2e} (bound {bound:.2e}); outputs {:?}: {:?} instead of {:?}",
                &chosen[..8],
                &found[..8],
                &twin[..8],
            );
            worst = worst.max(error);
        }
        Ok(worst)
    }
}
