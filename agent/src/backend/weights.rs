//! Weights in the form the CPU kernels want, packed once per process and shared by its workers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use sluice_core::ids::Unit;
use sluice_kernels::Error as KernelError;
use sluice_kernels::cpu::{Dtype, Expert, PackedMatrix, RopeTable, Source, Table};

use crate::model::checkpoint::CheckpointError;
use crate::model::spec::{ModelSpec, RopeSpec};
use crate::model::weights::{AttentionWeights, Linear, Matrix, NetworkWeights, Vector, WeightDtype, Weights};

/// Weights that could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The checkpoint does not hold them.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The kernels do not take them.
    #[error("{what}: {source}")]
    Kernel {
        /// Which weights.
        what: String,
        /// Why.
        source: KernelError,
    },
    /// The model has no such unit.
    #[error("the model has no {0}")]
    NoSuchUnit(Unit),
}

/// One unit, packed.
#[derive(Debug)]
pub struct UnitWeights {
    /// What it is.
    pub unit: Unit,
    /// The packed matrices.
    pub expert: Expert,
}

/// Everything of a model but its experts, packed: what an attention rank needs.
#[derive(Debug)]
pub struct RankWeights {
    pub(super) embedding: Table,
    pub(super) blocks: Vec<BlockWeights>,
    pub(super) final_norm: Vec<f32>,
    pub(super) head: PackedMatrix,
}

impl UnitWeights {
    /// Bytes held in memory.
    pub fn bytes(&self) -> usize {
        self.expert.bytes()
    }
}

impl RankWeights {
    /// Bytes held in memory, vectors aside.
    pub fn bytes(&self) -> usize {
        let network = |weights: &FeedForwardWeights| match weights {
            FeedForwardWeights::Dense(network) => network.bytes(),
            FeedForwardWeights::Moe { router, shared, .. } => {
                router.bytes() + shared.as_ref().map_or(0, |shared| shared.network.bytes())
            }
        };
        let block =
            |block: &BlockWeights| block.qkv.bytes() + block.output.bytes() + network(&block.feed_forward);
        self.embedding.bytes() + self.head.bytes() + self.blocks.iter().map(block).sum::<usize>()
    }
}

#[derive(Debug)]
pub(super) struct BlockWeights {
    pub(super) attention_norm: Vec<f32>,
    /// Q, K and V stacked.
    pub(super) qkv: PackedMatrix,
    pub(super) qkv_bias: Option<Vec<f32>>,
    pub(super) qk_norm: Option<(Vec<f32>, Vec<f32>)>,
    pub(super) output: PackedMatrix,
    pub(super) output_bias: Option<Vec<f32>>,
    pub(super) rope: Arc<RopeTable>,
    pub(super) feed_forward_norm: Vec<f32>,
    pub(super) feed_forward: FeedForwardWeights,
}

#[derive(Debug)]
pub(super) enum FeedForwardWeights {
    Dense(Expert),
    Moe { router: PackedMatrix, bias: Option<Vec<f32>>, shared: Option<SharedExpert> },
}

#[derive(Debug)]
pub(super) struct SharedExpert {
    pub(super) network: Expert,
    pub(super) gate: Option<PackedMatrix>,
}

/// Packs weights on demand. A unit is packed once and shared while anybody holds it; so is the rank's part.
#[derive(Debug)]
pub struct WeightStore {
    weights: Arc<Weights>,
    segments: u8,
    positions: usize,
    units: Mutex<HashMap<Unit, Arc<Mutex<Weak<UnitWeights>>>>>,
    rank: Mutex<Weak<RankWeights>>,
}

impl WeightStore {
    /// For a deployment of `segments` whose sequences have at most `positions` tokens.
    pub fn new(weights: Arc<Weights>, segments: u8, positions: usize) -> Self {
        Self { weights, segments, positions, units: Mutex::default(), rank: Mutex::default() }
    }

    /// The model.
    pub fn spec(&self) -> &Arc<ModelSpec> {
        self.weights.spec()
    }

    /// The segments of an expert's inner dimension, G.
    pub fn segments(&self) -> u8 {
        self.segments
    }

    /// One unit; blocks while it is packed, here or by another thread.
    pub fn unit(&self, unit: Unit) -> Result<Arc<UnitWeights>, LoadError> {
        let cell = {
            let mut units = self.units.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(units.entry(unit).or_default())
        };
        let mut held = cell.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(weights) = held.upgrade() {
            return Ok(weights);
        }
        let weights = Arc::new(self.pack_unit(unit)?);
        *held = Arc::downgrade(&weights);
        Ok(weights)
    }

    fn pack_unit(&self, unit: Unit) -> Result<UnitWeights, LoadError> {
        let (block, expert) = (usize::from(unit.block), usize::from(unit.expert));
        let moe = self.spec().blocks.get(block).and_then(|block| block.feed_forward.moe());
        let Some(moe) = moe.filter(|moe| expert < moe.experts && unit.slice.hi <= self.segments) else {
            return Err(LoadError::NoSuchUnit(unit));
        };
        let network = self.weights.expert(block, expert, 0..moe.expert.inner)?;
        let held = usize::from(unit.slice.lo)..usize::from(unit.slice.hi);
        let expert = self.network(&network, usize::from(self.segments), held, || unit.to_string())?;
        Ok(UnitWeights { unit, expert })
    }

    /// What an attention rank needs; blocks while it is packed.
    pub fn rank(&self) -> Result<Arc<RankWeights>, LoadError> {
        let mut held = self.rank.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(weights) = held.upgrade() {
            return Ok(weights);
        }
        let weights = Arc::new(self.pack_rank()?);
        *held = Arc::downgrade(&weights);
        Ok(weights)
    }

    fn pack_rank(&self) -> Result<RankWeights, LoadError> {
        let embedding = self.weights.embedding()?;
        self.weights.prefetch(&embedding)?;
        let table =
            Table::new(dtype(embedding.dtype()), embedding.rows(), embedding.cols(), &embedding.contiguous())
                .map_err(|source| kernel("the embedding", source))?;
        let mut ropes = Vec::new();
        let blocks = (0..self.spec().blocks.len())
            .map(|block| self.pack_block(block, &mut ropes))
            .collect::<Result<_, _>>()?;
        let head = self.matrix(&self.weights.head()?, "the head")?;
        self.weights.release(&embedding);
        Ok(RankWeights { embedding: table, blocks, final_norm: self.weights.final_norm()?.to_f32(), head })
    }

    fn pack_block(
        &self,
        block: usize,
        ropes: &mut Vec<(Arc<RopeSpec>, Arc<RopeTable>)>,
    ) -> Result<BlockWeights, LoadError> {
        let AttentionWeights { norm, q, k, v, o, qk_norm } = self.weights.attention(block)?;
        let qkv = self.stack(&[&q.weight, &k.weight, &v.weight], &format!("q, k and v of block {block}"))?;
        let vectors = |(a, b): (Vector<'_>, Vector<'_>)| (a.to_f32(), b.to_f32());
        Ok(BlockWeights {
            attention_norm: norm.to_f32(),
            qkv,
            qkv_bias: stacked_bias(&[&q, &k, &v]),
            qk_norm: qk_norm.map(vectors),
            output: self.matrix(&o.weight, &format!("the output projection of block {block}"))?,
            output_bias: o.bias.map(|bias| bias.to_f32()),
            rope: self.rope(&self.spec().blocks[block].attention.rope, ropes)?,
            feed_forward_norm: self.weights.feed_forward_norm(block)?.to_f32(),
            feed_forward: self.pack_feed_forward(block)?,
        })
    }

    fn pack_feed_forward(&self, block: usize) -> Result<FeedForwardWeights, LoadError> {
        if let Some(network) = self.weights.dense(block)? {
            let network =
                self.network(&network, 1, 0..1, || format!("the dense network of block {block}"))?;
            return Ok(FeedForwardWeights::Dense(network));
        }
        let Some(router) = self.weights.router(block)? else {
            let what = format!("block {block} has neither experts nor a dense network");
            return Err(kernel("the feed-forward part", KernelError::Unsupported { what }));
        };
        let shared = match self.weights.shared(block)? {
            None => None,
            Some(shared) => {
                let name = || format!("the shared expert of block {block}");
                let gate =
                    shared.gate.map(|gate| self.matrix(&gate, "the shared expert's gate")).transpose()?;
                Some(SharedExpert { network: self.network(&shared.network, 1, 0..1, name)?, gate })
            }
        };
        Ok(FeedForwardWeights::Moe {
            router: self.matrix(&router.weight, &format!("the router of block {block}"))?,
            bias: router.bias.map(|bias| bias.to_f32()),
            shared,
        })
    }

    fn network(
        &self,
        network: &NetworkWeights<'_>,
        segments: usize,
        held: std::ops::Range<usize>,
        what: impl Fn() -> String,
    ) -> Result<Expert, LoadError> {
        let matrices = [&network.gate, &network.up, &network.down];
        matrices.iter().try_for_each(|matrix| self.weights.prefetch(matrix))?;
        let pack = || {
            let [gate, up, down] = matrices.map(source);
            Expert::pack(&gate?, &up?, &down?, segments, held.clone())
        };
        let packed = pack().map_err(|source| kernel(&what(), source))?;
        matrices.iter().for_each(|matrix| self.weights.release(matrix));
        Ok(packed)
    }

    fn matrix(&self, matrix: &Matrix<'_>, what: &str) -> Result<PackedMatrix, LoadError> {
        self.stack(&[matrix], what)
    }

    fn stack(&self, matrices: &[&Matrix<'_>], what: &str) -> Result<PackedMatrix, LoadError> {
        matrices.iter().try_for_each(|matrix| self.weights.prefetch(matrix))?;
        let sources = matrices.iter().map(|matrix| source(matrix)).collect::<Result<Vec<_>, _>>();
        let packed =
            sources.and_then(|sources| PackedMatrix::stack(&sources)).map_err(|e| kernel(what, e))?;
        matrices.iter().for_each(|matrix| self.weights.release(matrix));
        Ok(packed)
    }

    fn rope(
        &self,
        spec: &Arc<RopeSpec>,
        known: &mut Vec<(Arc<RopeSpec>, Arc<RopeTable>)>,
    ) -> Result<Arc<RopeTable>, LoadError> {
        if let Some((_, table)) = known.iter().find(|(other, _)| other == spec) {
            return Ok(Arc::clone(table));
        }
        let table = rope_table(spec, self.positions.min(self.spec().max_positions))
            .map_err(|source| kernel("the rotary embedding", source))?;
        let table = Arc::new(table);
        known.push((Arc::clone(spec), Arc::clone(&table)));
        Ok(table)
    }
}

/// The rotary table of the CPU kernels.
fn rope_table(spec: &RopeSpec, positions: usize) -> Result<RopeTable, KernelError> {
    let (cos, sin) = rope_values(spec, positions)?;
    RopeTable::new(2 * spec.inv_freq.len(), cos, sin)
}

/// Cosines and sines, position after position. Angles are products of f32, as the checkpoints' authors compute them; their
/// sines and cosines are rounded from f64 by a library of our own choice, so that every platform has the same.
pub(super) fn rope_values(spec: &RopeSpec, positions: usize) -> Result<(Vec<f32>, Vec<f32>), KernelError> {
    let count = positions.saturating_mul(spec.inv_freq.len());
    let room = || {
        let mut values = Vec::new();
        let bytes = count.saturating_mul(size_of::<f32>());
        values.try_reserve_exact(count).map(|()| values).map_err(|_| KernelError::Memory { bytes })
    };
    let (mut cos, mut sin) = (room()?, room()?);
    for position in 0..positions {
        for &frequency in &spec.inv_freq {
            let (s, c) = libm::sincos(f64::from(position as f32 * frequency));
            cos.push(c as f32 * spec.attention_factor);
            sin.push(s as f32 * spec.attention_factor);
        }
    }
    Ok((cos, sin))
}

fn stacked_bias(parts: &[&Linear<'_>]) -> Option<Vec<f32>> {
    parts
        .iter()
        .map(|part| part.bias.as_ref().map(Vector::to_f32))
        .collect::<Option<Vec<_>>>()
        .map(|v| v.concat())
}

fn source<'a>(matrix: &Matrix<'a>) -> Result<Source<'a>, KernelError> {
    let (bytes, stride, rows, cols) = matrix.parts();
    let size = stride * matrix.dtype().size();
    Source::new(dtype(matrix.dtype()), bytes.len() / size.max(1), stride, bytes)?.rows(rows)?.cols(cols)
}

fn dtype(dtype: WeightDtype) -> Dtype {
    match dtype {
        WeightDtype::F32 => Dtype::F32,
        WeightDtype::F16 => Dtype::F16,
        WeightDtype::Bf16 => Dtype::Bf16,
    }
}

fn kernel(what: &str, source: KernelError) -> LoadError {
    LoadError::Kernel { what: what.to_owned(), source }
}
