//! A model's weights for a backend: the right tensors, of the right dtype and shape, as views into the checkpoint.
//!
//! Nothing here copies or converts weights. A backend packs a [`Matrix`] into its own form and then gives the file's
//! pages back with [`Weights::release`].

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};
use safetensors::Dtype as StoredDtype;

use super::arch::Architecture;
use super::checkpoint::{Checkpoint, CheckpointError, Region, StoredTensor};
use super::files::ModelFiles;
use super::spec::{ModelSpec, NetworkSpec};
use super::tensor::{self, AttentionPart, BlockTensor, ExpertLayout, Projection, TensorId};

/// The type of a weight's elements in the checkpoint. Quantised types, whose elements come with scales, will be
/// further variants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WeightDtype {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl WeightDtype {
    /// Bytes of one element.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

impl fmt::Display for WeightDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        })
    }
}

/// A `[rows, cols]` window of a row-major little-endian matrix in the checkpoint.
#[derive(Clone, Debug)]
pub struct Matrix<'a> {
    name: &'a str,
    dtype: WeightDtype,
    /// The whole matrix.
    bytes: &'a [u8],
    /// Elements from one row's start to the next.
    stride: usize,
    rows: Range<usize>,
    cols: Range<usize>,
    /// Of `bytes`.
    region: Region,
}

impl<'a> Matrix<'a> {
    /// The tensor's name in its file.
    #[must_use]
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// The type of the elements.
    #[must_use]
    pub fn dtype(&self) -> WeightDtype {
        self.dtype
    }

    /// Rows: outputs of the layer.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Columns: inputs of the layer.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols.len()
    }

    /// Bytes of the window's elements.
    #[must_use]
    pub fn size(&self) -> usize {
        self.rows() * self.cols() * self.dtype.size()
    }

    /// One row's elements.
    ///
    /// # Panics
    /// If `row` is not below [`Self::rows`].
    #[must_use]
    pub fn row(&self, row: usize) -> &'a [u8] {
        assert!(row < self.rows(), "row {row} of {}", self.rows());
        let start = (self.rows.start + row) * self.stride;
        let size = self.dtype.size();
        &self.bytes[(start + self.cols.start) * size..(start + self.cols.end) * size]
    }

    /// The window's elements without gaps; copied only if the window does not span whole rows.
    #[must_use]
    pub fn contiguous(&self) -> Cow<'a, [u8]> {
        if self.cols.len() == self.stride {
            let row = self.stride * self.dtype.size();
            return Cow::Borrowed(&self.bytes[self.rows.start * row..self.rows.end * row]);
        }
        let mut bytes = Vec::with_capacity(self.size());
        for row in 0..self.rows() {
            bytes.extend_from_slice(self.row(row));
        }
        Cow::Owned(bytes)
    }

    /// The whole matrix of which this is a window: its bytes, its columns, the window's rows and columns.
    #[must_use]
    pub fn parts(&self) -> (&'a [u8], usize, Range<usize>, Range<usize>) {
        (self.bytes, self.stride, self.rows.clone(), self.cols.clone())
    }

    /// Only these rows.
    ///
    /// # Panics
    /// If they are not rows of this window.
    #[must_use]
    pub fn with_rows(mut self, rows: Range<usize>) -> Self {
        assert!(rows.start <= rows.end && rows.end <= self.rows(), "rows {rows:?} of {}", self.rows());
        self.rows = self.rows.start + rows.start..self.rows.start + rows.end;
        self
    }

    /// Only these columns.
    ///
    /// # Panics
    /// If they are not columns of this window.
    #[must_use]
    pub fn with_cols(mut self, cols: Range<usize>) -> Self {
        assert!(cols.start <= cols.end && cols.end <= self.cols(), "columns {cols:?} of {}", self.cols());
        self.cols = self.cols.start + cols.start..self.cols.start + cols.end;
        self
    }

    /// The bytes from the window's first element to its last, for the hints of [`Weights`].
    fn region(&self) -> Region {
        let size = self.dtype.size();
        let last = self.rows.end.saturating_sub(1) * self.stride + self.cols.end;
        self.region.part((self.rows.start * self.stride + self.cols.start) * size..last * size)
    }

    fn feed(&self, hasher: &mut blake3::Hasher) {
        hasher.update(self.dtype.to_string().as_bytes());
        hasher.update(&(self.rows() as u64).to_le_bytes());
        hasher.update(&(self.cols() as u64).to_le_bytes());
        if self.cols.len() == self.stride {
            hasher.update(&self.contiguous());
        } else {
            for row in 0..self.rows() {
                hasher.update(self.row(row));
            }
        }
    }
}

/// A vector in the checkpoint: a norm's weight or a bias.
#[derive(Clone, Debug)]
pub struct Vector<'a> {
    dtype: WeightDtype,
    bytes: &'a [u8],
}

impl Vector<'_> {
    /// Elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Its elements, which an f32 holds exactly whatever their type.
    #[must_use]
    pub fn to_f32(&self) -> Vec<f32> {
        widen(self.dtype, self.bytes)
    }
}

/// Little-endian elements as f32, exactly.
#[must_use]
pub fn widen(dtype: WeightDtype, bytes: &[u8]) -> Vec<f32> {
    let pairs = bytes.as_chunks::<2>().0.iter();
    match dtype {
        WeightDtype::F32 => bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        WeightDtype::F16 => pairs.map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect(),
        WeightDtype::Bf16 => pairs.map(|bytes| bf16::from_le_bytes(*bytes).to_f32()).collect(),
    }
}

/// A linear layer.
#[derive(Clone, Debug)]
pub struct Linear<'a> {
    /// `[out, in]`.
    pub weight: Matrix<'a>,
    /// `[out]`.
    pub bias: Option<Vector<'a>>,
}

/// Attention of one block.
#[derive(Clone, Debug)]
pub struct AttentionWeights<'a> {
    /// The norm before it, `[hidden]`.
    pub norm: Vector<'a>,
    /// Queries, `[heads · head_dim, hidden]`.
    pub q: Linear<'a>,
    /// Keys, `[kv_heads · head_dim, hidden]`.
    pub k: Linear<'a>,
    /// Values, as keys.
    pub v: Linear<'a>,
    /// Output, `[hidden, heads · head_dim]`.
    pub o: Linear<'a>,
    /// The norms of q and k.
    pub qk_norm: Option<(Vector<'a>, Vector<'a>)>,
}

/// The router of one block.
#[derive(Clone, Debug)]
pub struct RouterWeights<'a> {
    /// `[experts, hidden]`.
    pub weight: Matrix<'a>,
    /// `[experts]`, added to the scores for the choice.
    pub bias: Option<Vector<'a>>,
}

/// A gated network, or a slice of one along its inner dimension.
#[derive(Clone, Debug)]
pub struct NetworkWeights<'a> {
    /// `[inner, hidden]`.
    pub gate: Matrix<'a>,
    /// `[inner, hidden]`.
    pub up: Matrix<'a>,
    /// `[hidden, inner]`.
    pub down: Matrix<'a>,
}

impl NetworkWeights<'_> {
    /// Bytes of its weights.
    #[must_use]
    pub fn size(&self) -> usize {
        self.gate.size() + self.up.size() + self.down.size()
    }

    /// Identifies the weights by their content: the same for the same numbers in the same dtype, however the file
    /// lays them out. Reads all of them.
    #[must_use]
    pub fn hash(&self) -> WeightsHash {
        let mut hasher = blake3::Hasher::new_derive_key("sluice 2026-11 weights of a gated network");
        for matrix in [&self.gate, &self.up, &self.down] {
            matrix.feed(&mut hasher);
        }
        WeightsHash(*hasher.finalize().as_bytes())
    }
}

/// The content of a unit's weights, as a hash. Two workers whose slots hold the same hash return the same numbers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WeightsHash(pub [u8; 32]);

impl fmt::Display for WeightsHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for WeightsHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WeightsHash({self})")
    }
}

/// The shared expert of one block.
#[derive(Clone, Debug)]
pub struct SharedWeights<'a> {
    /// The expert.
    pub network: NetworkWeights<'a>,
    /// The gate on its output, `[1, hidden]`.
    pub gate: Option<Matrix<'a>>,
}

/// What of a model's tensors is there.
#[derive(Debug, Default)]
pub struct Inventory {
    /// Tensors that are there and fit.
    pub found: Vec<TensorId>,
    /// Bytes of the experts among those.
    pub expert_bytes: u64,
    /// Bytes of the others.
    pub rank_bytes: u64,
    /// Those that are missing, have the wrong shape or a dtype that is not served.
    pub problems: Vec<CheckpointError>,
    /// Names in the checkpoint that the model has no use for.
    pub unexpected: Vec<String>,
}

/// The weights of one model.
pub struct Weights {
    checkpoint: Checkpoint,
    architecture: &'static dyn Architecture,
    spec: Arc<ModelSpec>,
    /// Of each block.
    layouts: Vec<ExpertLayout>,
}

impl fmt::Debug for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Weights")
            .field("architecture", &self.architecture.class())
            .field("files", &self.checkpoint.paths().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

impl Weights {
    /// Opens a model's weights. The tensors are not looked at yet; see [`Self::verify`].
    ///
    /// # Errors
    /// The files are missing or damaged.
    pub fn open(
        files: &ModelFiles,
        architecture: &'static dyn Architecture,
        spec: Arc<ModelSpec>,
    ) -> Result<Self, CheckpointError> {
        let checkpoint = Checkpoint::open(files)?;
        let layouts = (0..spec.blocks.len())
            .map(|block| {
                let names = architecture.names(TensorId::Block(block, BlockTensor::FusedGateUp));
                if names.iter().any(|name| checkpoint.get(name).is_some()) {
                    ExpertLayout::Fused
                } else {
                    ExpertLayout::PerExpert
                }
            })
            .collect();
        Ok(Self { checkpoint, architecture, spec, layouts })
    }

    /// The model they belong to.
    #[must_use]
    pub fn spec(&self) -> &Arc<ModelSpec> {
        &self.spec
    }

    /// The files.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Every tensor the model has in this checkpoint.
    fn tensors(&self) -> Vec<TensorId> {
        tensor::all(&self.spec, |block| self.layouts[block])
    }

    /// The dtype of a tensor and the bytes of one of its elements, if it is there and fits.
    pub(crate) fn dtype(&self, id: TensorId) -> Option<(String, u64)> {
        self.tensor(id).ok().map(|(_, dtype)| (dtype.to_string(), dtype.size() as u64))
    }

    /// Looks for every tensor; reads no weights.
    #[must_use]
    pub fn inventory(&self) -> Inventory {
        let mut inventory = Inventory::default();
        let mut used = std::collections::BTreeSet::new();
        for id in self.tensors() {
            used.extend(
                self.architecture.names(id).into_iter().find(|name| self.checkpoint.get(name).is_some()),
            );
            match self.tensor(id) {
                Ok((tensor, _)) => {
                    inventory.found.push(id);
                    let bytes =
                        if id.is_expert() { &mut inventory.expert_bytes } else { &mut inventory.rank_bytes };
                    *bytes += tensor.bytes.len() as u64;
                }
                Err(problem) => inventory.problems.push(problem),
            }
        }
        inventory.unexpected =
            self.checkpoint.names().filter(|name| !used.contains(*name)).map(str::to_owned).collect();
        inventory
    }

    /// Every tensor is there, with the right shape and dtype, and the parts of each unit have one dtype.
    ///
    /// # Errors
    /// The first that is not so.
    pub fn verify(&self) -> Result<(), CheckpointError> {
        for id in self.tensors() {
            self.tensor(id)?;
        }
        for (block, spec) in self.spec.blocks.iter().enumerate() {
            if let Some(moe) = spec.feed_forward.moe() {
                for expert in 0..moe.experts {
                    self.expert(block, expert, 0..moe.expert.inner)?;
                }
            }
            self.shared(block)?;
            self.dense(block)?;
        }
        Ok(())
    }

    /// Tells models apart without reading them whole: what the spec says, and of every tensor its name, dtype, shape and
    /// pieces of its content at the beginning, in the middle and at the end. Part of the numerics id. A change of single
    /// weights between the pieces escapes it; what a slot really holds is told by [`NetworkWeights::hash`].
    #[must_use]
    pub fn fingerprint(&self) -> WeightsHash {
        const PIECE: usize = 64;
        let mut hasher = blake3::Hasher::new_derive_key("sluice 2026-11 fingerprint of a model");
        hasher.update(format!("{:?}", self.spec).as_bytes());
        let mut names: Vec<&str> = self.checkpoint.names().collect();
        names.sort_unstable();
        for tensor in names.into_iter().filter_map(|name| self.checkpoint.get(name)) {
            hasher.update(format!("{} {:?} {:?}", tensor.name, tensor.dtype, tensor.shape).as_bytes());
            let length = tensor.bytes.len();
            for start in [0, length / 2, length.saturating_sub(PIECE)] {
                hasher.update(&tensor.bytes[start..length.min(start + PIECE)]);
            }
        }
        WeightsHash(*hasher.finalize().as_bytes())
    }

    /// The embedding, `[vocab, hidden]`.
    ///
    /// # Errors
    /// The tensor is missing or does not fit.
    pub fn embedding(&self) -> Result<Matrix<'_>, CheckpointError> {
        self.matrix(TensorId::Embedding)
    }

    /// The head, `[vocab, hidden]`: the embedding where they are tied.
    ///
    /// # Errors
    /// The tensor is missing or does not fit.
    pub fn head(&self) -> Result<Matrix<'_>, CheckpointError> {
        self.matrix(if self.spec.tied_head { TensorId::Embedding } else { TensorId::Head })
    }

    /// The norm before the head, `[hidden]`.
    ///
    /// # Errors
    /// The tensor is missing or does not fit.
    pub fn final_norm(&self) -> Result<Vector<'_>, CheckpointError> {
        self.vector(TensorId::FinalNorm)
    }

    /// Attention of a block.
    ///
    /// # Errors
    /// A tensor is missing or does not fit.
    pub fn attention(&self, block: usize) -> Result<AttentionWeights<'_>, CheckpointError> {
        let spec = &self.spec.blocks[block].attention;
        let linear = |part, bias: bool| -> Result<Linear<'_>, CheckpointError> {
            Ok(Linear {
                weight: self.matrix(TensorId::Block(block, BlockTensor::Attention(part)))?,
                bias: bias
                    .then(|| self.vector(TensorId::Block(block, BlockTensor::AttentionBias(part))))
                    .transpose()?,
            })
        };
        let qk_norm = if spec.qk_norm == super::spec::QkNorm::None {
            None
        } else {
            Some((
                self.vector(TensorId::Block(block, BlockTensor::QNorm))?,
                self.vector(TensorId::Block(block, BlockTensor::KNorm))?,
            ))
        };
        Ok(AttentionWeights {
            norm: self.vector(TensorId::Block(block, BlockTensor::AttentionNorm))?,
            q: linear(AttentionPart::Q, spec.qkv_bias)?,
            k: linear(AttentionPart::K, spec.qkv_bias)?,
            v: linear(AttentionPart::V, spec.qkv_bias)?,
            o: linear(AttentionPart::O, spec.o_bias)?,
            qk_norm,
        })
    }

    /// The norm before the feed-forward part of a block, `[hidden]`.
    ///
    /// # Errors
    /// The tensor is missing or does not fit.
    pub fn feed_forward_norm(&self, block: usize) -> Result<Vector<'_>, CheckpointError> {
        self.vector(TensorId::Block(block, BlockTensor::FeedForwardNorm))
    }

    /// The router of a block; `None` where it is dense.
    ///
    /// # Errors
    /// A tensor is missing or does not fit.
    pub fn router(&self, block: usize) -> Result<Option<RouterWeights<'_>>, CheckpointError> {
        let Some(moe) = self.spec.blocks[block].feed_forward.moe() else { return Ok(None) };
        Ok(Some(RouterWeights {
            weight: self.matrix(TensorId::Block(block, BlockTensor::Router))?,
            bias: moe
                .router
                .selection_bias
                .then(|| self.vector(TensorId::Block(block, BlockTensor::RouterBias)))
                .transpose()?,
        }))
    }

    /// An expert of a block, or the slice of it that covers `inner` of its inner dimension: those rows of gate and up,
    /// those columns of down.
    ///
    /// # Errors
    /// A tensor is missing or does not fit.
    ///
    /// # Panics
    /// If the block is dense, or has no such expert or inner range.
    pub fn expert(
        &self,
        block: usize,
        expert: usize,
        inner: Range<usize>,
    ) -> Result<NetworkWeights<'_>, CheckpointError> {
        let moe = self.spec.blocks[block].feed_forward.moe();
        let moe = moe.filter(|moe| expert < moe.experts && inner.end <= moe.expert.inner);
        let Some(moe) = moe else { panic!("block {block} has no expert {expert} with {inner:?}") };
        let whole = match self.layouts[block] {
            ExpertLayout::PerExpert => {
                self.network(|projection| TensorId::Block(block, BlockTensor::Expert(expert, projection)))?
            }
            ExpertLayout::Fused => {
                let gate_up = self.matrix(TensorId::Block(block, BlockTensor::FusedGateUp))?;
                let down = self.matrix(TensorId::Block(block, BlockTensor::FusedDown))?;
                let (f, hidden) = (moe.expert.inner, self.spec.hidden);
                let first = expert * 2 * f;
                same_dtype(&self.checkpoint, &[&gate_up, &down])?;
                NetworkWeights {
                    gate: gate_up.clone().with_rows(first..first + f),
                    up: gate_up.with_rows(first + f..first + 2 * f),
                    down: down.with_rows(expert * hidden..(expert + 1) * hidden),
                }
            }
        };
        Ok(NetworkWeights {
            gate: whole.gate.with_rows(inner.clone()),
            up: whole.up.with_rows(inner.clone()),
            down: whole.down.with_cols(inner),
        })
    }

    /// The shared expert of a block, if it has one.
    ///
    /// # Errors
    /// A tensor is missing or does not fit.
    pub fn shared(&self, block: usize) -> Result<Option<SharedWeights<'_>>, CheckpointError> {
        let moe = self.spec.blocks[block].feed_forward.moe();
        let Some(shared) = moe.and_then(|moe| moe.shared) else { return Ok(None) };
        Ok(Some(SharedWeights {
            network: self.network(|projection| TensorId::Block(block, BlockTensor::Shared(projection)))?,
            gate: shared
                .gated
                .then(|| self.matrix(TensorId::Block(block, BlockTensor::SharedGate)))
                .transpose()?,
        }))
    }

    /// The network of a dense block; `None` where it has experts.
    ///
    /// # Errors
    /// A tensor is missing or does not fit.
    pub fn dense(&self, block: usize) -> Result<Option<NetworkWeights<'_>>, CheckpointError> {
        match &self.spec.blocks[block].feed_forward {
            super::spec::FeedForward::Dense(NetworkSpec { .. }) => {
                self.network(|projection| TensorId::Block(block, BlockTensor::Dense(projection))).map(Some)
            }
            super::spec::FeedForward::Moe(_) => Ok(None),
        }
    }

    /// Reads ahead what a matrix holds, and makes sure that its file is still there in its length: call it before the
    /// weights are read.
    ///
    /// # Errors
    /// The file has become shorter.
    pub fn prefetch(&self, matrix: &Matrix<'_>) -> Result<(), CheckpointError> {
        let region = matrix.region();
        self.checkpoint.check(&region)?;
        self.checkpoint.will_need(&region);
        Ok(())
    }

    /// Gives the file's pages back once a matrix has been packed.
    pub fn release(&self, matrix: &Matrix<'_>) {
        self.checkpoint.release(&matrix.region());
    }

    fn network(&self, id: impl Fn(Projection) -> TensorId) -> Result<NetworkWeights<'_>, CheckpointError> {
        let [gate, up, down] = Projection::ALL.map(|projection| self.matrix(id(projection)));
        let (gate, up, down) = (gate?, up?, down?);
        same_dtype(&self.checkpoint, &[&gate, &up, &down])?;
        Ok(NetworkWeights { gate, up, down })
    }

    /// A tensor of two dimensions, or of three with the first two run together.
    fn matrix(&self, id: TensorId) -> Result<Matrix<'_>, CheckpointError> {
        let (tensor, dtype) = self.tensor(id)?;
        let (cols, rows) =
            tensor.shape.split_last().map_or((1, 1), |(cols, rows)| (*cols, rows.iter().product()));
        Ok(Matrix {
            name: tensor.name,
            dtype,
            bytes: tensor.bytes,
            stride: cols,
            rows: 0..rows,
            cols: 0..cols,
            region: tensor.region(),
        })
    }

    fn vector(&self, id: TensorId) -> Result<Vector<'_>, CheckpointError> {
        let (tensor, dtype) = self.tensor(id)?;
        Ok(Vector { dtype, bytes: tensor.bytes })
    }

    fn tensor(&self, id: TensorId) -> Result<(StoredTensor<'_>, WeightDtype), CheckpointError> {
        let names = self.architecture.names(id);
        let Some(tensor) = names.iter().find_map(|name| self.checkpoint.get(name)) else {
            return Err(CheckpointError::MissingTensor {
                names: names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" or "),
                searched: searched(&self.checkpoint),
            });
        };
        // Before the shape: quantised weights are packed, and it is that which should be told.
        let dtype = match tensor.dtype {
            StoredDtype::F32 => WeightDtype::F32,
            StoredDtype::F16 => WeightDtype::F16,
            StoredDtype::BF16 => WeightDtype::Bf16,
            other => {
                return Err(CheckpointError::Dtype {
                    path: tensor.path.to_owned(),
                    tensor: tensor.name.to_owned(),
                    dtype: other.to_string(),
                    expected: if other.bitsize() <= 8 {
                        "quantised weights are not supported, use a checkpoint in bf16, f16 or f32"
                    } else {
                        "weights must be bf16, f16 or f32"
                    },
                });
            }
        };
        let expected = id.shape(&self.spec).unwrap_or_default();
        if tensor.shape != expected {
            return Err(CheckpointError::Shape {
                path: tensor.path.to_owned(),
                tensor: tensor.name.to_owned(),
                expected,
                found: tensor.shape.to_vec(),
            });
        }
        Ok((tensor, dtype))
    }
}

fn same_dtype(checkpoint: &Checkpoint, matrices: &[&Matrix<'_>]) -> Result<(), CheckpointError> {
    let first = matrices[0];
    match matrices.iter().find(|matrix| matrix.dtype != first.dtype) {
        None => Ok(()),
        Some(other) => Err(CheckpointError::MixedDtypes {
            path: checkpoint.get(other.name).map_or_else(Default::default, |tensor| tensor.path.to_owned()),
            tensor: other.name.to_owned(),
            found: other.dtype.to_string(),
            other: first.name.to_owned(),
            expected: first.dtype.to_string(),
        }),
    }
}

fn searched(checkpoint: &Checkpoint) -> String {
    let mut paths = checkpoint.paths();
    let Some(first) = paths.next() else { return "no file".to_owned() };
    match paths.count() {
        0 => first.display().to_string(),
        more => format!("{} and the {more} other shards beside it", first.display()),
    }
}

#[cfg(test)]
#[path = "weights_tests.rs"]
mod tests;
