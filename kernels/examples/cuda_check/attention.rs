//! Attention over the paged cache, with the norm, rotation and writing of heads before it.
//!
//! All positions of a few sequences are computed by one prefill of each: these are the bits that every other way must give:
//! decode, segments of any lengths, any sequences beside them, any tiles, any cut into units, any number of blocks, and a cache
//! whose later positions are poisoned.

use std::time::{Duration, Instant};

use half::bf16;
use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom, SliceRandom};
use sluice_kernels::cpu::{KvSegment, PAGE};
use sluice_kernels::cuda::{
    Attention, AttentionPlan, Buffer, Device, Error, HeadNorms, KvCache, KvCall, KvShape, PlanLimits,
    RopeAppend, RopeTable, Rows, Tiles,
};
use sluice_kernels::reference;

use crate::common::{random_rows, seeded};
use crate::{POISON, row_error};

/// A head's output: weights are rounded to bf16, and so is the output: 2^-8 at most for a value each.
const ROW_BOUND: f64 = 1.0 / 128.0;
/// A head that was normalised and turned is rounded once.
const TURN_BOUND: f64 = 1.0 / 256.0;
/// Rows whose twin is computed, per sequence: the last ones, and some at random.
const TWIN_ROWS: usize = 4;
const EPS: f32 = 1e-6;
/// The block of the cache that is used; there is one before it.
const BLOCK: usize = 1;

struct Case {
    name: &'static str,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    rotary: usize,
    norms: bool,
    window: Option<u32>,
    lengths: &'static [usize],
    full: bool,
}

const CASES: [Case; 6] = [
    Case {
        name: "small",
        heads: 8,
        kv_heads: 2,
        head_dim: 64,
        rotary: 64,
        norms: true,
        window: None,
        lengths: &[1, 16, 70],
        full: false,
    },
    Case {
        name: "Qwen3-30B-A3B",
        heads: 32,
        kv_heads: 4,
        head_dim: 128,
        rotary: 128,
        norms: true,
        window: None,
        lengths: &[1, 2, 15, 16, 17, 63, 64, 65, 500, 512, 513, 1030, 2100, 5000],
        full: true,
    },
    Case {
        name: "Mixtral-8x7B, window 700",
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        rotary: 128,
        norms: false,
        window: Some(700),
        lengths: &[3, 699, 701, 1300, 2500],
        full: true,
    },
    Case {
        name: "gpt-oss-like, window 128",
        heads: 64,
        kv_heads: 8,
        head_dim: 64,
        rotary: 64,
        norms: false,
        window: Some(128),
        lengths: &[5, 127, 128, 129, 640, 1200],
        full: true,
    },
    Case {
        name: "one query head per key head",
        heads: 4,
        kv_heads: 4,
        head_dim: 128,
        rotary: 64,
        norms: false,
        window: None,
        lengths: &[9, 600, 1537],
        full: true,
    },
    Case {
        name: "seven query heads per key head",
        heads: 28,
        kv_heads: 4,
        head_dim: 128,
        rotary: 128,
        norms: false,
        window: None,
        lengths: &[33, 512, 1100],
        full: true,
    },
];

pub fn check(device: &Device, quick: bool, stress: Duration) -> Result<(), Error> {
    for case in CASES.iter().filter(|case| !(quick && case.full)) {
        let mut checked = Checked::new(device, case)?;
        let (turned, error) = checked.against_twins()?;
        let rounds = if quick { 2 } else { 12 };
        for _ in 0..rounds {
            checked.replay_over_poison()?;
        }
        let start = Instant::now();
        let mut launches = 0;
        while launches < rounds || start.elapsed() < stress {
            checked.some_of_all()?;
            launches += 1;
        }
        println!(
            "attention, {}: worst error of a turned head {turned:.2e}, of an output {error:.2e}; {rounds} replays over a poisoned cache and {launches} random launches: the same bits",
            case.name
        );
    }
    Ok(())
}

/// A run of positions of a sequence.
#[derive(Clone, Copy, Debug)]
struct Run {
    sequence: usize,
    first: usize,
    len: usize,
}

struct Checked<'a> {
    device: &'a Device,
    case: &'a Case,
    shape: KvShape,
    cache: KvCache,
    call: KvCall,
    rope: RopeAppend,
    table: RopeTable,
    cosines: Vec<f32>,
    sines: Vec<f32>,
    norms: Option<HeadNorms>,
    norm_factors: [Vec<f32>; 2],
    /// Plans of both tiles, with room for parts and with little.
    plans: Vec<(Tiles, AttentionPlan)>,
    pages: Vec<Vec<u32>>,
    /// Where each sequence's rows begin in `raw`, `turned` and `bits`.
    starts: Vec<usize>,
    raw: Vec<bf16>,
    /// The same rows after queries were turned.
    turned: Vec<bf16>,
    bits: Vec<u16>,
    rng: SmallRng,
}

impl<'a> Checked<'a> {
    fn new(device: &'a Device, case: &'a Case) -> Result<Self, Error> {
        let mut rng = seeded(21);
        let Case { heads, kv_heads, head_dim, .. } = *case;
        let needed: usize = case.lengths.iter().map(|l| l.div_ceil(PAGE)).sum();
        let shape = KvShape { blocks: 2, pages: needed + 3, heads: kv_heads, head_dim };
        let mut cache = KvCache::new(device, shape)?;
        device.fill_bytes(cache.data_mut(), POISON)?;
        let mut free: Vec<u32> = (0..shape.pages as u32).collect();
        free.shuffle(&mut rng);
        let pages = case.lengths.iter().map(|l| free.split_off(free.len() - l.div_ceil(PAGE))).collect();
        let mut rows = 0;
        let starts = case
            .lengths
            .iter()
            .map(|l| {
                rows += l;
                rows - l
            })
            .collect();
        let longest = case.lengths.iter().copied().max().unwrap_or(0);
        let half = case.rotary / 2;
        let angle =
            |i: usize| ((i / half) as f32 * 1e4f32.powf(-((i % half) as f32) / half as f32)).sin_cos();
        let (sines, cosines): (Vec<f32>, Vec<f32>) = (0..longest * half).map(angle).unzip();
        let factors: [Vec<f32>; 2] =
            std::array::from_fn(|_| (0..head_dim).map(|_| rng.random_range(0.5..2.0)).collect());
        let norms =
            HeadNorms { query: device.upload(&factors[0])?, key: device.upload(&factors[1])?, eps: EPS };
        let attention = Attention { heads, scale: (head_dim as f32).powf(-0.5), window: case.window };
        let mut plans = Vec::new();
        for (tiles, parts) in
            [(Tiles::Decode, 4096), (Tiles::Decode, 5), (Tiles::Prefill, 200), (Tiles::Prefill, 0)]
        {
            let limits = PlanLimits { units: 40_000, parts };
            plans.push((tiles, AttentionPlan::new(device, shape, attention, tiles, limits)?));
        }
        let raw = random_rows(rows * (heads + 2 * kv_heads) * head_dim, &mut rng);
        let mut checked = Self {
            device,
            case,
            shape,
            cache,
            call: KvCall::new(device, 64, rows.max(64 * 256), 64 * longest.div_ceil(PAGE))?,
            rope: RopeAppend::new(device)?,
            table: RopeTable::new(device, case.rotary, &cosines, &sines)?,
            cosines,
            sines,
            norms: case.norms.then_some(norms),
            norm_factors: factors,
            plans,
            pages,
            starts,
            raw,
            turned: Vec::new(),
            bits: Vec::new(),
            rng,
        };
        let all: Vec<Run> = case
            .lengths
            .iter()
            .enumerate()
            .map(|(sequence, len)| Run { sequence, first: 0, len: *len })
            .collect();
        checked.describe(&all)?;
        checked.turned = checked.append(&all)?;
        let out = checked.attend(&all, 2, all.len(), 0, 0)?;
        checked.bits = out.iter().map(|v| v.to_bits()).collect();
        Ok(checked)
    }

    fn width(&self) -> usize {
        (self.case.heads + 2 * self.case.kv_heads) * self.case.head_dim
    }

    fn out_width(&self) -> usize {
        self.case.heads * self.case.head_dim
    }

    fn describe(&mut self, runs: &[Run]) -> Result<(), Error> {
        let segments: Vec<KvSegment<'_>> = runs
            .iter()
            .map(|run| KvSegment {
                len: run.len,
                first_position: run.first as u32,
                pages: &self.pages[run.sequence],
            })
            .collect();
        self.call.set(self.device, self.shape, &segments)
    }

    /// The rows of some runs, of `width` values each, from those of all positions.
    fn rows_of<T: Copy>(&self, runs: &[Run], all: &[T], width: usize) -> Vec<T> {
        let rows = |run: &Run| (self.starts[run.sequence] + run.first) * width;
        runs.iter().flat_map(|run| &all[rows(run)..rows(run) + run.len * width]).copied().collect()
    }

    /// Turns the described runs' rows and writes their keys and values; returns the turned rows.
    fn append(&mut self, runs: &[Run]) -> Result<Vec<bf16>, Error> {
        let width = self.width();
        let mut qkv = self.device.upload(&self.rows_of(runs, &self.raw, width))?;
        self.rope.run(
            self.device,
            &mut self.cache,
            BLOCK,
            &self.call,
            &mut qkv,
            width,
            self.case.heads,
            &self.table,
            self.norms.as_ref(),
        )?;
        self.device.download(&qkv.as_view())
    }

    /// Attention of the described runs: those before `decoded_from` by plan `prefill` (2 or 3), the others by decode tiles (0
    /// or 1).
    fn attend(
        &mut self,
        runs: &[Run],
        prefill: usize,
        decoded_from: usize,
        cut_for: usize,
        blocks: usize,
    ) -> Result<Vec<bf16>, Error> {
        let (device, width, out_width) = (self.device, self.width(), self.out_width());
        let q = device.upload(&self.rows_of(runs, &self.turned, width))?;
        let rows: usize = runs.iter().map(|run| run.len).sum();
        let mut out: Buffer<bf16> = device.zeros(rows * out_width)?;
        device.fill_bytes(&mut out, POISON)?;
        for (index, segments) in [(prefill, 0..decoded_from), (prefill - 2, decoded_from..runs.len())] {
            let (_, plan) = &mut self.plans[index];
            let blocks = blocks.min(plan.max_blocks(device));
            let (values, sums) = plan.parts_mut();
            device.fill_bytes(values, POISON)?;
            device.fill_bytes(sums, POISON)?;
            plan.build(device, &self.call, segments, cut_for)?;
            let q = Rows { data: &q, stride: width };
            plan.run(device, &self.cache, BLOCK, &self.call, &q, &mut out, out_width, blocks)?;
        }
        device.download(&out.as_view())
    }

    fn same_bits(&self, runs: &[Run], out: &[bf16], how: &str) {
        let expected = self.rows_of(runs, &self.bits, self.out_width());
        let differs = |(a, b): (&bf16, &u16)| a.to_bits() != *b;
        if let Some(i) = out.iter().zip(&expected).position(differs) {
            let mut row = i / self.out_width();
            let count = out.iter().zip(&expected).filter(|pair| differs((pair.0, pair.1))).count();
            for run in runs {
                if row < run.len {
                    let head = i % self.out_width() / self.case.head_dim;
                    panic!(
                        "{}: {how}: {count} values differ, the first at position {} head {head} of {run:?}: {} and not {}",
                        self.case.name,
                        run.first + row,
                        out[i],
                        bf16::from_bits(expected[i])
                    );
                }
                row -= run.len;
            }
        }
    }

    /// Random segments of a complete cache, in one call.
    fn some_of_all(&mut self) -> Result<(), Error> {
        let count = self.rng.random_range(1..=40);
        let runs: Vec<Run> = (0..count)
            .map(|_| {
                let sequence = self.rng.random_range(0..self.case.lengths.len());
                let length = self.case.lengths[sequence];
                let most = if self.rng.random_bool(0.7) { 1 } else { 200 };
                let len = self.rng.random_range(1..=most.min(length));
                Run { sequence, first: self.rng.random_range(0..=length - len), len }
            })
            .collect();
        self.describe(&runs)?;
        let how = self.how();
        let from = self.rng.random_range(0..=count);
        let out = self.attend(&runs, how.0, from, how.1, how.2)?;
        self.same_bits(&runs, &out, &format!("{count} segments, the last {} decoded, {how:?}", count - from));
        Ok(())
    }

    /// The plan of prefill tiles, for how many blocks the work is cut, and how many there are.
    fn how(&mut self) -> (usize, usize, usize) {
        let all = self.device.multiprocessors();
        let blocks = |rng: &mut SmallRng| *[0, 1, 7, all, 2 * all, 5000].choose(rng).unwrap();
        let cut_for = blocks(&mut self.rng);
        (self.rng.random_range(2..4), cut_for, blocks(&mut self.rng))
    }

    /// Some sequences again, up to some position, over a cache of NaN: segment after segment.
    fn replay_over_poison(&mut self) -> Result<(), Error> {
        self.device.fill_bytes(self.cache.data_mut(), POISON)?;
        let mut ends: Vec<usize> = vec![0; self.case.lengths.len()];
        for _ in 0..4 {
            let mut runs = Vec::new();
            for (sequence, end) in ends.iter_mut().enumerate() {
                let left = self.case.lengths[sequence] - *end;
                let len = *[0, 1, left / 3, left].choose(&mut self.rng).unwrap();
                if len > 0 && len <= left {
                    runs.push(Run { sequence, first: *end, len });
                    *end += len;
                }
            }
            if runs.is_empty() {
                continue;
            }
            self.describe(&runs)?;
            self.append(&runs)?;
            let how = self.how();
            let from = self.rng.random_range(0..=runs.len());
            let out = self.attend(&runs, how.0, from, how.1, how.2)?;
            self.same_bits(&runs, &out, &format!("over poison, {from} of {} prefilled, {how:?}", runs.len()));
        }
        // And what is left, so that the cache is complete again.
        let rest: Vec<Run> = ends
            .iter()
            .enumerate()
            .map(|(sequence, end)| Run { sequence, first: *end, len: self.case.lengths[sequence] - end })
            .filter(|run| run.len > 0)
            .collect();
        self.describe(&rest)?;
        self.append(&rest)?;
        Ok(())
    }

    /// The worst errors of turned heads and of outputs.
    fn against_twins(&mut self) -> Result<(f64, f64), Error> {
        let Case { heads, kv_heads, head_dim, .. } = *self.case;
        let data = self.device.download(&self.cache.data_mut().as_view())?;
        let (width, group) = (self.width(), heads / kv_heads);
        let (mut worst_turn, mut worst) = (0.0f64, 0.0f64);
        for (sequence, length) in self.case.lengths.iter().copied().enumerate() {
            let mut positions = vec![length - 1, length / 2];
            positions.extend((0..TWIN_ROWS).map(|_| self.rng.random_range(0..length)));
            for position in positions {
                let row = self.starts[sequence] + position;
                let head = self.rng.random_range(0..heads);
                let kv_head = head / group;
                let first = self.case.window.map_or(0, |w| (position + 1).saturating_sub(w as usize));
                let stored =
                    |position: usize, part: usize| self.stored(&data, sequence, position, kv_head, part);
                let floats = |values: &[bf16]| values.iter().map(|v| v.to_f32()).collect::<Vec<f32>>();
                let raw = floats(&self.raw[row * width..][..width]);
                let turned = floats(&self.turned[row * width..][..width]);
                let half = self.case.rotary / 2;
                for (found, column, factors) in [
                    (turned[head * head_dim..][..head_dim].to_vec(), head, &self.norm_factors[0]),
                    (stored(position, 0), heads + kv_head, &self.norm_factors[1]),
                ] {
                    let raw = &raw[column * head_dim..][..head_dim];
                    let normed: Vec<f32> = if self.case.norms {
                        reference::rmsnorm(raw, Some(factors), EPS).iter().map(|v| *v as f32).collect()
                    } else {
                        raw.to_vec()
                    };
                    let line = position * half..(position + 1) * half;
                    let twin = reference::rope(&normed, &self.cosines[line.clone()], &self.sines[line]);
                    let (error, _) = row_error(&found, &twin);
                    assert!(error <= TURN_BOUND, "{}: turned head: error {error:.2e}", self.case.name);
                    worst_turn = worst_turn.max(error);
                }
                assert_eq!(
                    stored(position, 1),
                    raw[(heads + kv_heads + kv_head) * head_dim..][..head_dim],
                    "{}: a stored value",
                    self.case.name
                );
                let keys: Vec<Vec<f32>> = (first..=position).map(|p| stored(p, 0)).collect();
                let values: Vec<Vec<f32>> = (first..=position).map(|p| stored(p, 1)).collect();
                let scale = (head_dim as f32).powf(-0.5);
                let twin =
                    reference::attention(&turned[head * head_dim..][..head_dim], &keys, &values, scale);
                let found: Vec<f32> = self.bits[(row * heads + head) * head_dim..][..head_dim]
                    .iter()
                    .map(|b| bf16::from_bits(*b).to_f32())
                    .collect();
                let (error, _) = row_error(&found, &twin);
                assert!(
                    error <= ROW_BOUND,
                    "{}: position {position} head {head}: error {error:.2e} (bound {ROW_BOUND:.2e})",
                    self.case.name
                );
                worst = worst.max(error);
            }
        }
        let unwritten = self.bits.iter().filter(|b| bf16::from_bits(**b).is_nan()).count();
        assert_eq!(unwritten, 0, "{}: unwritten values", self.case.name);
        Ok((worst_turn, worst))
    }

    /// The key (part 0) or the value (part 1) of a position, read out of the cache as `cuda/kv.cuh` lays it.
    fn stored(&self, data: &[bf16], sequence: usize, position: usize, head: usize, part: usize) -> Vec<f32> {
        let d = self.case.head_dim;
        let page = self.pages[sequence][position / PAGE] as usize;
        let token = position % PAGE;
        let start = (((BLOCK * self.shape.pages + page) * self.shape.heads + head) * 2 + part) * PAGE * d;
        let offset = |c: usize| match part {
            0 => (token / 8 * (d / 8) + c / 8) * 64 + token % 8 * 8 + c % 8,
            _ => (c / 8 * 2 + token / 8) * 64 + c % 8 * 8 + token % 8,
        };
        (0..d).map(|c| data[start + offset(c)].to_f32()).collect()
    }
}
