//! The experts of a block: every row against its f64 twin; the same bits whatever the rows beside it, the tiles, the split,
//! the blocks and the slices.

use std::time::{Duration, Instant};

use crate::common::{Block, Matrices, Routing, random_rows, route, seeded};
use half::bf16;
use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom, index::sample};
use sluice_kernels::cuda::{
    Buffer, Device, Error, ExpertCall, ExpertFfn, ExpertShape, ExpertSlots, Fill, Merge, MergeIo, Output,
    Pairs, Returned, Rows, Split, Tuning, Variant,
};
use sluice_kernels::reference;

use crate::{POISON, row_error};

/// Each row: the norm of its error over its norm. h is rounded to bf16, and so is the output: 2^-9 at most for a value.
const ROW_BOUND: f64 = 1.0 / 256.0;
/// And its largest error over the row's root mean square.
const VALUE_BOUND: f64 = 1.0 / 32.0;
/// Rows whose twin is computed, per shape.
const TWIN_ROWS: usize = 24;
/// Tokens with `--quick`: a launch must end before the kernels' limit on waits, under racecheck too.
const QUICK_TOKENS: usize = 40;

struct Case {
    block: Block,
    g: usize,
    tokens: usize,
    routing: Routing,
    full: bool,
}

fn case(
    name: &'static str,
    units: usize,
    top_k: usize,
    hidden: usize,
    inner: usize,
    g: usize,
    tokens: usize,
) -> Case {
    let full = hidden * inner > 1 << 20;
    Case { block: Block { name, units, top_k, hidden, inner }, g, tokens, routing: Routing::Even, full }
}

/// All shapes.
pub fn check(device: &Device, quick: bool, stress: Duration) -> Result<(), Error> {
    let cases = [
        case("one block", 1, 1, 32, 32, 1, 9),
        case("odd depth", 5, 2, 96, 160, 1, 70),
        case("small", 16, 4, 512, 256, 1, 300),
        case("small, 8 segments", 16, 4, 512, 256, 8, 300),
        case("uneven segments", 7, 3, 320, 352, 4, 150),
        case("Qwen3-30B-A3B", 128, 8, 2048, 768, 1, 256),
        case("Qwen3-30B-A3B, 8 segments", 128, 8, 2048, 768, 8, 256),
        Case { routing: Routing::Skewed, ..case("Qwen3-30B-A3B, skewed", 128, 8, 2048, 768, 8, 400) },
        case("gpt-oss-like", 8, 4, 2880, 2880, 2, 128),
        case("Mixtral, 2 experts", 2, 2, 4096, 14336, 1, 200),
        case("Mixtral, 2 experts, 8 segments", 2, 2, 4096, 14336, 8, 200),
        case("DeepSeek-V3, 8 experts", 8, 1, 7168, 2048, 1, 256),
    ];
    for mut case in cases.into_iter().filter(|case| !(quick && case.full)) {
        if quick {
            case.tokens = case.tokens.min(QUICK_TOKENS);
        }
        Checked::new(device, &case)?.all(quick, stress)?;
    }
    Ok(())
}

struct Checked<'a> {
    device: &'a Device,
    block: Block,
    tokens: usize,
    g: usize,
    x: Vec<bf16>,
    ids: Vec<i32>,
    slots: ExpertSlots,
    ffn: ExpertFfn,
    /// The bits of every (token, k), from the first launch.
    bits: Vec<u16>,
    launches: usize,
    rng: SmallRng,
}

impl<'a> Checked<'a> {
    fn new(device: &'a Device, case: &Case) -> Result<Self, Error> {
        let (block, tokens) = (case.block, case.tokens);
        let mut rng = seeded(5);
        let x = random_rows(tokens * block.hidden, &mut rng);
        let ids = route(&block, case.routing, tokens, &mut rng);
        let shape = ExpertShape::new(block.hidden, block.inner, case.g, 0..case.g)?;
        let slots = block.slots(device, &Fill::new(device)?, 1, &shape)?;
        let ffn = ExpertFfn::new(device, &shape, block.units, tokens * block.top_k)?;
        Ok(Self { device, block, tokens, g: case.g, x, ids, slots, ffn, bits: Vec::new(), launches: 0, rng })
    }

    fn all(mut self, quick: bool, stress: Duration) -> Result<(), Error> {
        let everyone: Vec<usize> = (0..self.tokens).collect();
        let tuning = Tuning { split: Split::Dynamic, ..Tuning::for_rows(1) };
        let y = self.launch(&everyone, &tuning)?;
        self.bits = y.iter().map(|v| v.to_bits()).collect();
        let error = self.against_twin(&y)?;
        let most = self.tokens;
        for tokens in [most, 100, 33, 7, 1].into_iter().filter(|n| *n <= most) {
            // Under compute-sanitizer a launch takes a thousand times as long.
            for tuning in self.tunings().into_iter().step_by(if quick { 7 } else { 1 }) {
                let some = sample(&mut self.rng, self.tokens, tokens).into_vec();
                self.same_bits(&some, &tuning)?;
            }
        }
        let launches = self.launches;
        let start = Instant::now();
        while start.elapsed() < stress {
            let exponent = self.rng.random_range(0.0..(self.tokens as f64).log2());
            let tokens = exponent.exp2().round() as usize;
            let some = sample(&mut self.rng, self.tokens, tokens).into_vec();
            let tuning = *self.tunings().choose(&mut self.rng).unwrap();
            self.same_bits(&some, &tuning)?;
        }
        println!(
            "{}: d {} f {} G {}: worst row error {error:.2e}; {launches} launches of every kind and {} random ones: the same bits",
            self.block.name,
            self.block.hidden,
            self.block.inner,
            self.g,
            self.launches - launches
        );
        self.merged()
    }

    fn tunings(&self) -> Vec<Tuning> {
        let multiprocessors = self.device.multiprocessors();
        let mut tunings = Vec::new();
        for variant in Variant::ALL {
            let chunks = variant.chunks(self.slots.shape());
            for chunk in chunks.iter().copied().chain((!chunks.is_empty()).then_some(0)) {
                for split in [Split::Auto, Split::Own, Split::Dynamic] {
                    for blocks in [0, multiprocessors * 3 / 4, 17] {
                        tunings.push(Tuning {
                            expected_rows: 1,
                            variant: Some(variant),
                            split,
                            chunk,
                            blocks,
                        });
                    }
                }
            }
        }
        tunings
    }

    fn same_bits(&mut self, some: &[usize], tuning: &Tuning) -> Result<(), Error> {
        let y = self.launch(some, tuning)?;
        let (top_k, d) = (self.block.top_k, self.block.hidden);
        for (row, token) in some.iter().enumerate() {
            let found = &y[row * top_k * d..][..top_k * d];
            let expected = &self.bits[token * top_k * d..][..top_k * d];
            let differing = found.iter().zip(expected).filter(|(a, b)| a.to_bits() != **b).count();
            assert!(
                differing == 0,
                "{}: token {token} among {}, {tuning:?}: {differing} of {} values differ",
                self.block.name,
                some.len(),
                top_k * d
            );
        }
        Ok(())
    }

    /// One launch over some of the tokens, in that order, with rows gathered and scattered by index.
    fn launch(&mut self, some: &[usize], tuning: &Tuning) -> Result<Vec<bf16>, Error> {
        self.launches += 1;
        let (device, top_k, d) = (self.device, self.block.top_k, self.block.hidden);
        let pairs = some.len() * top_k;
        let ids: Vec<i32> = some.iter().flat_map(|t| &self.ids[t * top_k..][..top_k]).copied().collect();
        // Input rows stay where they are among all tokens'; output rows are scattered backwards.
        let source: Vec<i32> = some.iter().flat_map(|t| std::iter::repeat_n(*t as i32, top_k)).collect();
        let target: Vec<i32> = (0..pairs as i32).rev().collect();
        let (ids, source, target) = (device.upload(&ids)?, device.upload(&source)?, device.upload(&target)?);
        let x = device.upload(&self.x)?;
        let mut y: Buffer<bf16> = device.zeros(pairs * d)?;
        device.fill_bytes(&mut y, POISON)?;
        device.fill_bytes(self.ffn.inner_rows_mut(), POISON)?;
        let pairs = Pairs {
            ids: ids.as_view(),
            top_k,
            slots: None,
            source: Some(source.as_view()),
            target: Some(target.as_view()),
        };
        let x = Rows { data: &x, stride: d };
        let y_whole = Output::Whole(&mut y);
        let call = ExpertCall { weights: &self.slots, x, y: y_whole, y_stride: d, tuning: *tuning };
        self.ffn.run(device, &pairs, call)?;
        let y = device.download(&y.as_view())?;
        let unwritten = y.iter().filter(|v| v.is_nan()).count();
        assert!(
            unwritten == 0,
            "{}: {tuning:?}: {unwritten} of {} values unwritten",
            self.block.name,
            y.len()
        );
        Ok(y.chunks_exact(d).rev().flatten().copied().collect())
    }

    /// The largest error of a row over its norm, among rows drawn at random.
    fn against_twin(&mut self, y: &[bf16]) -> Result<f64, Error> {
        let (top_k, d) = (self.block.top_k, self.block.hidden);
        let pairs = self.tokens * top_k;
        let checked = sample(&mut self.rng, pairs, TWIN_ROWS.min(pairs)).into_vec();
        let fill = Fill::new(self.device)?;
        let floats = |values: &[bf16]| values.iter().map(|v| v.to_f32()).collect::<Vec<f32>>();
        let mut units: Vec<i32> = checked.iter().map(|p| self.ids[*p]).collect();
        units.sort_unstable();
        units.dedup();
        let mut worst = 0.0f64;
        for unit in units {
            let Matrices { gate, up, down } = self.block.matrices(self.device, &fill, 1, unit as usize)?;
            let host = |m: &Buffer<bf16>| self.device.download(&m.as_view()).map(|m| floats(&m));
            let (gate, up, down) = (host(&gate)?, host(&up)?, host(&down)?);
            let mine: Vec<usize> = checked.iter().copied().filter(|p| self.ids[*p] == unit).collect();
            let errors: Vec<(f64, f64)> = std::thread::scope(|scope| {
                let twins: Vec<_> = mine
                    .iter()
                    .map(|pair| {
                        let x = floats(&self.x[pair / top_k * d..][..d]);
                        let found = floats(&y[pair * d..][..d]);
                        let (gate, up, down, inner) = (&gate, &up, &down, self.block.inner);
                        scope.spawn(move || {
                            row_error(&found, &reference::expert(&x, gate, up, down, 0..inner))
                        })
                    })
                    .collect();
                twins.into_iter().map(|twin| twin.join().unwrap()).collect()
            });
            for (pair, (row, value)) in mine.iter().zip(errors) {
                assert!(
                    row <= ROW_BOUND && value <= VALUE_BOUND,
                    "{}: pair {pair}: row error {row:.2e} (bound {ROW_BOUND:.2e}), value error {value:.2e} (bound {VALUE_BOUND:.2e})",
                    self.block.name
                );
                worst = worst.max(row);
            }
        }
        Ok(worst)
    }

    /// The merge against its twin, and that slices held apart give the bits of whole experts.
    fn merged(mut self) -> Result<(), Error> {
        let (device, top_k, d) = (self.device, self.block.top_k, self.block.hidden);
        let n = self.tokens.min(40);
        let pairs = n * top_k;
        let merge = Merge::new(device)?;
        let weights: Vec<f32> = (0..pairs).map(|_| self.rng.random_range(0.0..1.0)).collect();
        let residual = random_rows(n * d, &mut self.rng);
        let expected = merge_twin(&self.bits, &weights, &residual, top_k, d);
        let (weights, residual) = (device.upload(&weights)?, device.upload(&residual)?);
        let ids = device.upload(&self.ids[..pairs])?;
        let x = device.upload(&self.x)?;
        let slices = if self.g == 1 { vec![1] } else { vec![1, self.g / 2, self.g] };
        for s in slices {
            let mut out: Buffer<bf16> = device.zeros(n * d)?;
            device.fill_bytes(&mut out, POISON)?;
            let io = |returned, out| MergeIo {
                returned,
                rows: None,
                weights: weights.as_view(),
                residual: Some(residual.as_view()),
                out,
            };
            if s == 1 {
                let whole: Vec<bf16> = self.bits[..pairs * d].iter().map(|b| bf16::from_bits(*b)).collect();
                let whole = device.upload(&whole)?;
                merge.run(device, n, top_k, d, io(Returned::Whole(&whole), out.as_view_mut()))?;
            } else {
                let parts = self.sliced(s, pairs, &ids, &x)?;
                merge.run(device, n, top_k, d, io(Returned::Slices(&parts, s), out.as_view_mut()))?;
            }
            let out = device.download(&out.as_view())?;
            let differing = out.iter().zip(&expected).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
            assert!(
                differing == 0,
                "{}: merge of {s} slices: {differing} of {} values differ",
                self.block.name,
                n * d
            );
        }
        Ok(())
    }

    /// The pairs' subtrees from `s` holders: row pair * s + holder.
    fn sliced(
        &mut self,
        s: usize,
        pairs: usize,
        ids: &Buffer<i32>,
        x: &Buffer<bf16>,
    ) -> Result<Buffer<f32>, Error> {
        let (device, block) = (self.device, self.block);
        let fill = Fill::new(device)?;
        let mut parts: Buffer<f32> = device.zeros(pairs * s * block.hidden)?;
        device.fill_bytes(&mut parts, POISON)?;
        for holder in 0..s {
            let held = holder * self.g / s..(holder + 1) * self.g / s;
            let shape = ExpertShape::new(block.hidden, block.inner, self.g, held)?;
            let slots = block.slots(device, &fill, 1, &shape)?;
            let mut ffn = ExpertFfn::new(device, &shape, block.units, pairs)?;
            let target: Vec<i32> = (0..pairs).map(|pair| (pair * s + holder) as i32).collect();
            let target = device.upload(&target)?;
            let pairs =
                Pairs { target: Some(target.as_view()), ..Pairs::in_order(ids.as_view(), block.top_k) };
            let x = Rows { data: x, stride: block.hidden };
            let (y, tuning) = (Output::Subtree(&mut parts), Tuning::for_rows(8));
            ffn.run(device, &pairs, ExpertCall { weights: &slots, x, y, y_stride: block.hidden, tuning })?;
            device.synchronize()?;
        }
        Ok(parts)
    }
}

/// `residual + s`, s a chain of f32 multiply-adds in order of k, rounded to bf16.
fn merge_twin(y: &[u16], weights: &[f32], residual: &[bf16], top_k: usize, d: usize) -> Vec<bf16> {
    let value = |token: usize, column: usize| {
        let s = (0..top_k).fold(0.0f32, |s, k| {
            let y = bf16::from_bits(y[(token * top_k + k) * d + column]).to_f32();
            weights[token * top_k + k].mul_add(y, s)
        });
        bf16::from_f32(residual[token * d + column].to_f32() + s)
    };
    (0..residual.len()).map(|i| value(i / d, i % d)).collect()
}
