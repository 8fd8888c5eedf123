//! What the programs for a GPU share: seeded experts, inputs and routing.

use half::bf16;
use rand::rngs::SmallRng;
use rand::seq::index::{IndexVec, sample, sample_weighted};
use rand::{Rng, SeedableRng};
use sluice_kernels::cuda::{Buffer, Device, Error, ExpertShape, ExpertSlots, ExpertSource, Fill};

/// Standard deviation of the weights.
const WEIGHT_SCALE: f32 = 0.02;

/// The experts of one block.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    pub name: &'static str,
    pub units: usize,
    pub top_k: usize,
    pub hidden: usize,
    pub inner: usize,
}

/// One expert's matrices on the device, row-major.
pub struct Matrices {
    pub gate: Buffer<bf16>,
    pub up: Buffer<bf16>,
    pub down: Buffer<bf16>,
}

impl Block {
    /// The matrices of one expert, from a seed.
    pub fn matrices(&self, device: &Device, fill: &Fill, seed: u64, unit: usize) -> Result<Matrices, Error> {
        let values = self.hidden * self.inner;
        let mut matrices =
            Matrices { gate: device.zeros(values)?, up: device.zeros(values)?, down: device.zeros(values)? };
        let seed = (seed * 4096 + unit as u64) * 4;
        for (i, matrix) in [&mut matrices.gate, &mut matrices.up, &mut matrices.down].into_iter().enumerate()
        {
            fill.normal(device, matrix, (seed + i as u64) << 40, WEIGHT_SCALE)?;
        }
        Ok(matrices)
    }

    /// All experts of a seed, loaded into slots of the given shape.
    pub fn slots(
        &self,
        device: &Device,
        fill: &Fill,
        seed: u64,
        shape: &ExpertShape,
    ) -> Result<ExpertSlots, Error> {
        let mut slots = ExpertSlots::new(device, shape, self.units)?;
        for unit in 0..self.units {
            let Matrices { gate, up, down } = self.matrices(device, fill, seed, unit)?;
            let source = ExpertSource { gate: gate.as_view(), up: up.as_view(), down: down.as_view() };
            slots.load(device, unit, &source)?;
        }
        device.synchronize()?;
        Ok(slots)
    }
}

/// How tokens choose experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routing {
    /// Every expert alike.
    Even,
    /// With up to 8 experts, the first takes 0.40 of all assignments; with more, one in sixteen has 8 times the mean.
    Skewed,
}

/// The choices of `n` tokens, distinct within a token.
pub fn route(block: &Block, routing: Routing, n: usize, rng: &mut SmallRng) -> Vec<i32> {
    let (units, top_k) = (block.units, block.top_k);
    let mut ids = Vec::with_capacity(n * top_k);
    for _ in 0..n {
        let chosen: Vec<usize> = match routing {
            Routing::Even => sample(rng, units, top_k).into_vec(),
            Routing::Skewed if units <= 8 => {
                let hot = rng.random_bool(0.40 * top_k as f64);
                let others = sample(rng, units - 1, top_k - usize::from(hot)).into_iter().map(|e| e + 1);
                others.chain(hot.then_some(0)).collect()
            }
            Routing::Skewed => {
                let hot = units / 16;
                let (hot_weight, weight) = (8.0, 8.0 / 15.0);
                let weight_of = |e: usize| if e < hot { hot_weight } else { weight };
                sample_weighted(rng, units, weight_of, top_k)
                    .map_or_else(|_| (0..top_k).collect(), IndexVec::into_vec)
            }
        };
        ids.extend(chosen.into_iter().map(|e| e as i32));
    }
    ids
}

/// Values of about unit variance.
pub fn random_rows(values: usize, rng: &mut SmallRng) -> Vec<bf16> {
    let one = |rng: &mut SmallRng| (0..3).map(|_| rng.random_range(-1.0f32..1.0)).sum::<f32>();
    (0..values).map(|_| bf16::from_f32(one(rng))).collect()
}

/// A generator from a seed.
pub fn seeded(seed: u64) -> SmallRng {
    SmallRng::seed_from_u64(seed)
}
