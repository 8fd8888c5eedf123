use std::path::PathBuf;

use sluice_mapping::RangeError;

use crate::model::files::FileError;

/// What is wrong with a model's weights. Each names the file.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Neither a single file nor an index.
    #[error("no weights: neither {} nor {} exists{hint}", single.display(), index.display())]
    NoWeights {
        /// The single file.
        single: PathBuf,
        /// The index.
        index: PathBuf,
        /// What to do, by what is there instead.
        hint: &'static str,
    },
    /// A file could not be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file ends before the data its header describes.
    #[error("{} is truncated: it has {found} bytes and its header describes {expected}; download it again", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes by its header.
        expected: u64,
        /// Bytes.
        found: u64,
    },
    /// A file goes on after the data its header describes.
    #[error("{} has {found} bytes and its header describes only {expected}; it is damaged, download it again", path.display())]
    TrailingBytes {
        /// The file.
        path: PathBuf,
        /// Bytes by its header.
        expected: u64,
        /// Bytes.
        found: u64,
    },
    /// The first eight bytes announce a header that cannot be there.
    #[error("{}: its first 8 bytes announce a header of {announced} bytes, and {limit}; it is truncated, damaged, or no safetensors file; download it again", path.display())]
    HeaderLength {
        /// The file.
        path: PathBuf,
        /// The length.
        announced: u64,
        /// Why it cannot be.
        limit: String,
    },
    /// The header is not what safetensors prescribes.
    #[error("{}: the header is damaged: {reason}; download it again", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        reason: String,
    },
    /// A tensor's bytes overlap those of another, leave a hole, or run backwards.
    #[error("{}: the header places `{tensor}` at bytes {start}..{end}, {problem}; the file is damaged, download it again", path.display())]
    Offsets {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// First byte after the header.
        start: u64,
        /// One past the last.
        end: u64,
        /// What is wrong with that.
        problem: String,
    },
    /// A tensor's bytes do not fit its dtype and shape.
    #[error("{}: `{tensor}` has {bytes} bytes, which does not fit {dtype} {shape:?}; the file is damaged, download it again", path.display())]
    TensorSize {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its dtype by the header.
        dtype: String,
        /// Its shape by the header.
        shape: Vec<u64>,
        /// Its bytes by the header.
        bytes: u64,
    },
    /// The index is not what Hugging Face prescribes.
    #[error("{}: {reason}", path.display())]
    Index {
        /// The index.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A file that the index names does not exist.
    #[error("{} does not exist, in which {} places {tensors} tensors; download it", shard.display(), index.display())]
    ShardMissing {
        /// The index.
        index: PathBuf,
        /// The file.
        shard: PathBuf,
        /// How many tensors are lost.
        tensors: usize,
    },
    /// A file lacks a tensor that the index places in it.
    #[error("{} lacks `{tensor}`, which {} places in it; download both again", shard.display(), index.display())]
    NotInShard {
        /// The index.
        index: PathBuf,
        /// The file.
        shard: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor that the model needs is in none of the files.
    #[error("the tensor {names} is missing from {searched}; download the whole model again, config.json too")]
    MissingTensor {
        /// The names it could have.
        names: String,
        /// Where it was looked for.
        searched: String,
    },
    /// A tensor's elements are of a type that is not served.
    #[error("{}: `{tensor}` is {dtype}; {expected}", path.display())]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: String,
        /// What is.
        expected: &'static str,
    },
    /// A tensor has another shape than the configuration says.
    #[error("{}: `{tensor}` is {found:?}; by config.json it is {expected:?}; use the config.json that came with the weights", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape by the configuration.
        expected: Vec<usize>,
        /// Its shape.
        found: Vec<usize>,
    },
    /// The parts of one matrix have different dtypes.
    #[error("{}: `{tensor}` is {found} but `{other}` is {expected}; the parts of a unit must have one dtype", path.display())]
    MixedDtypes {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its dtype.
        found: String,
        /// The other.
        other: String,
        /// The other's dtype.
        expected: String,
    },
    /// A file changed while it was in use.
    #[error(transparent)]
    Changed(#[from] RangeError),
}
