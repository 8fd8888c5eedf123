//! Weights on a device: what an attention rank needs, once per device, and units on their way into a slot.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use half::bf16;
use sluice_core::ids::Unit;
use sluice_kernels::cuda::{Buffer, DenseShape, DenseWeights, Device, Error, HeadNorms, RopeTable};

use super::limits::{HeadPlaces, STRIP, blocks};
use crate::backend::weights::rope_values;
use crate::model::checkpoint::CheckpointError;
use crate::model::spec::{ModelSpec, QkNorm};
use crate::model::weights::{AttentionWeights, Matrix, WeightDtype, Weights};

/// Weights that could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The checkpoint does not hold them.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The model has what no kernel computes.
    #[error(transparent)]
    NotYet(#[from] super::limits::NotYet),
    /// The device, or its memory.
    #[error("{what}: {source}")]
    Device {
        /// Which weights.
        what: String,
        /// Why.
        source: Error,
    },
    /// The model has no such unit.
    #[error("the model has no {0}")]
    NoSuchUnit(Unit),
}

/// One expert on the host, whole, for the slices of it that go to a slot.
#[derive(Debug)]
pub struct UnitWeights {
    /// The unit that it was loaded for.
    pub unit: Unit,
    pub(super) gate: Vec<bf16>,
    pub(super) up: Vec<bf16>,
    pub(super) down: Vec<bf16>,
}

/// Everything of a model but its experts, on the device.
#[derive(Debug)]
pub struct RankWeights {
    pub(super) embedding: Buffer<bf16>,
    pub(super) blocks: Vec<BlockWeights>,
    pub(super) rope: RopeTable,
    pub(super) final_norm: Buffer<f32>,
    /// Filled up to whole strips of rows.
    pub(super) head: DenseWeights,
}

#[derive(Debug)]
pub(super) struct BlockWeights {
    pub(super) attention_norm: Buffer<f32>,
    /// Q, K and V stacked, heads filled up.
    pub(super) qkv: DenseWeights,
    pub(super) norms: Option<HeadNorms>,
    pub(super) output: DenseWeights,
    pub(super) feed_forward_norm: Buffer<f32>,
    pub(super) router: DenseWeights,
    pub(super) selection_bias: Option<Buffer<f32>>,
}

/// Loads weights on demand; the rank's part is on the device once, while anybody holds it.
#[derive(Debug)]
pub struct WeightStore {
    weights: Arc<Weights>,
    device: Arc<Device>,
    segments: u8,
    positions: usize,
    rank: Mutex<Weak<RankWeights>>,
}

impl WeightStore {
    /// For a deployment of `segments` whose sequences have at most `positions` tokens.
    pub fn new(weights: Arc<Weights>, device: Arc<Device>, segments: u8, positions: usize) -> Self {
        Self { weights, device, segments, positions, rank: Mutex::default() }
    }

    /// The model.
    pub fn spec(&self) -> &Arc<ModelSpec> {
        self.weights.spec()
    }

    /// The device.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// The expert of a unit.
    pub fn unit(&self, unit: Unit) -> Result<Arc<UnitWeights>, LoadError> {
        let (block, expert) = (usize::from(unit.block), usize::from(unit.expert));
        let moe = self.spec().blocks.get(block).and_then(|block| block.feed_forward.moe());
        let Some(moe) = moe.filter(|moe| expert < moe.experts && unit.slice.hi <= self.segments) else {
            return Err(LoadError::NoSuchUnit(unit));
        };
        let network = self.weights.expert(block, expert, 0..moe.expert.inner)?;
        let values = |matrix: &Matrix<'_>| {
            self.weights.prefetch(matrix)?;
            let values = halves(matrix);
            self.weights.release(matrix);
            Ok::<_, CheckpointError>(values)
        };
        let (gate, up, down) = (values(&network.gate)?, values(&network.up)?, values(&network.down)?);
        Ok(Arc::new(UnitWeights { unit, gate, up, down }))
    }

    /// What an attention rank needs; blocks while it is loaded.
    pub fn rank(&self) -> Result<Arc<RankWeights>, LoadError> {
        let mut held = self.rank.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(weights) = held.upgrade() {
            return Ok(weights);
        }
        let weights = Arc::new(self.load_rank()?);
        *held = Arc::downgrade(&weights);
        Ok(weights)
    }

    fn load_rank(&self) -> Result<RankWeights, LoadError> {
        let spec = self.spec();
        let shape = blocks(spec)?;
        let places = HeadPlaces { values: shape.attention.head_dim, head: shape.head };
        let embedding = halves(&self.weights.embedding()?);
        let head = self.weights.head()?;
        let rows = head.rows().next_multiple_of(STRIP);
        let mut head = halves(&head);
        head.resize(rows * spec.hidden, bf16::ZERO);
        let positions = self.positions.min(spec.max_positions);
        Ok(RankWeights {
            embedding: self.upload(&embedding, "the embedding")?,
            blocks: (0..spec.blocks.len()).map(|b| self.load_block(b, places)).collect::<Result<_, _>>()?,
            rope: self.rope(positions, places)?,
            final_norm: self.upload(&self.weights.final_norm()?.to_f32(), "the final norm")?,
            head: self.dense(&head, rows, "the head")?,
        })
    }

    fn load_block(&self, block: usize, places: HeadPlaces) -> Result<BlockWeights, LoadError> {
        let AttentionWeights { norm, q, k, v, o, qk_norm } = self.weights.attention(block)?;
        let spec = &self.spec().blocks[block];
        let mut qkv = Vec::new();
        for part in [&q.weight, &k.weight, &v.weight] {
            spread_rows(&halves(part), part.cols(), places, &mut qkv);
        }
        let of = |what: &str| format!("{what} of block {block}");
        let output = spread_columns(&halves(&o.weight), places);
        let norms = match (qk_norm, spec.attention.qk_norm) {
            (Some((query, key)), QkNorm::PerHead { eps }) => Some(HeadNorms {
                query: self.upload(&query.to_f32(), "the norm of queries")?,
                key: self.upload(&key.to_f32(), "the norm of keys")?,
                eps,
            }),
            _ => None,
        };
        let hidden = self.spec().hidden;
        let router = self.weights.router(block)?.ok_or_else(|| super::limits::no_router(block))?;
        let bias = router.bias.map(|bias| self.upload(&bias.to_f32(), "the router's bias"));
        Ok(BlockWeights {
            attention_norm: self.upload(&norm.to_f32(), "a norm")?,
            qkv: self.dense(&qkv, qkv.len() / hidden, &of("q, k and v"))?,
            norms,
            output: self.dense(&output, hidden, &of("the output projection"))?,
            feed_forward_norm: self.upload(&self.weights.feed_forward_norm(block)?.to_f32(), "a norm")?,
            router: self.dense(&halves(&router.weight), router.weight.rows(), &of("the router"))?,
            selection_bias: bias.transpose()?,
        })
    }

    /// The pairs that fill a short head up turn by nothing.
    fn rope(&self, positions: usize, places: HeadPlaces) -> Result<RopeTable, LoadError> {
        let (half, pairs) = (places.values / 2, places.head / 2);
        let what = || "the rotary embedding".to_owned();
        let rope = &self.spec().blocks[0].attention.rope;
        let (cos, sin) = rope_values(rope, positions)
            .map_err(|source| LoadError::Device { what: what(), source: source.into() })?;
        let fill = |values: &[f32], rest: f32| -> Vec<f32> {
            let rows = values.chunks_exact(half);
            rows.flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(rest, pairs - half))).collect()
        };
        RopeTable::new(&self.device, places.head, &fill(&cos, 1.0), &fill(&sin, 0.0))
            .map_err(|source| LoadError::Device { what: what(), source })
    }

    fn upload<T: Copy>(&self, values: &[T], what: &str) -> Result<Buffer<T>, LoadError>
    where
        Device: Upload<T>,
    {
        self.device.put(values).map_err(|source| LoadError::Device { what: what.to_owned(), source })
    }

    fn dense(&self, values: &[bf16], rows: usize, what: &str) -> Result<DenseWeights, LoadError> {
        let load = || {
            let shape = DenseShape::new(rows, values.len() / rows.max(1))?;
            let mut weights = DenseWeights::new(&self.device, &shape)?;
            weights.load(&self.device, 0, &self.device.upload(values)?.as_view())?;
            Ok(weights)
        };
        load().map_err(|source| LoadError::Device { what: what.to_owned(), source })
    }
}

/// Values that go to a device as they are.
pub(super) trait Upload<T> {
    fn put(&self, values: &[T]) -> Result<Buffer<T>, Error>;
}

impl Upload<f32> for Device {
    fn put(&self, values: &[f32]) -> Result<Buffer<f32>, Error> {
        self.upload(values)
    }
}

impl Upload<bf16> for Device {
    fn put(&self, values: &[bf16]) -> Result<Buffer<bf16>, Error> {
        self.upload(values)
    }
}

/// A matrix's values as the device has them: other dtypes are rounded.
fn halves(matrix: &Matrix<'_>) -> Vec<bf16> {
    let bytes = matrix.contiguous();
    match matrix.dtype() {
        WeightDtype::Bf16 => bytes.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b)).collect(),
        dtype => crate::model::weights::widen(dtype, &bytes).into_iter().map(bf16::from_f32).collect(),
    }
}

/// Appends rows that make heads, with rows of zeros where a head is filled up.
fn spread_rows(values: &[bf16], columns: usize, places: HeadPlaces, into: &mut Vec<bf16>) {
    for head in values.chunks_exact(places.values * columns) {
        let start = into.len();
        into.resize(start + places.head * columns, bf16::ZERO);
        for (i, row) in head.chunks_exact(columns).enumerate() {
            into[start + places.of(i) * columns..][..columns].copy_from_slice(row);
        }
    }
}

/// The same of columns.
fn spread_columns(values: &[bf16], places: HeadPlaces) -> Vec<bf16> {
    let mut spread = vec![bf16::ZERO; values.len() / places.values * places.head];
    let heads = values.chunks_exact(places.values).zip(spread.chunks_exact_mut(places.head));
    for (from, to) in heads {
        from.iter().enumerate().for_each(|(i, value)| to[places.of(i)] = *value);
    }
    spread
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_columns_of_short_heads_are_spread_alike() {
        let places = HeadPlaces { values: 4, head: 8 };
        let numbers = |n: usize| (1..=n).map(|i| bf16::from_f32(i as f32)).collect::<Vec<_>>();
        let mut rows = Vec::new();
        spread_rows(&numbers(8), 1, places, &mut rows);
        let expected = [1., 2., 0., 0., 3., 4., 0., 0., 5., 6., 0., 0., 7., 8., 0., 0.].map(bf16::from_f32);
        assert_eq!(rows, expected);
        assert_eq!(spread_columns(&numbers(8), places), expected);
    }
}
