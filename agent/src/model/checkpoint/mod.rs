//! The safetensors files of a model: one `model.safetensors`, or the shards of `model.safetensors.index.json`.

mod error;
mod header;
mod index;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use safetensors::Dtype as StoredDtype;

pub use error::CheckpointError;
use header::Entry;

use super::files::{Data, FileError, ModelFiles};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Open safetensors files. Opening reads the headers only; weights are read where they are used.
#[derive(Debug)]
pub struct Checkpoint {
    shards: Vec<Shard>,
    tensors: BTreeMap<String, Location>,
    /// In a shard, but not in the index.
    unlisted: Vec<String>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    data: Data,
}

#[derive(Debug)]
struct Location {
    shard: usize,
    entry: Entry,
}

/// A tensor as it lies in its file.
#[derive(Clone, Debug)]
pub struct StoredTensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// The type of its elements.
    pub dtype: StoredDtype,
    /// Its shape.
    pub shape: &'a [usize],
    /// Its elements, little-endian and row-major, at any alignment.
    pub bytes: &'a [u8],
    /// The file it lies in.
    pub path: &'a Path,
    shard: usize,
    offset: usize,
}

impl StoredTensor<'_> {
    /// Where it lies, for the hints of [`Checkpoint`].
    #[must_use]
    pub fn region(&self) -> Region {
        Region { shard: self.shard, range: self.offset..self.offset + self.bytes.len() }
    }
}

/// A range of bytes of one of a checkpoint's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    shard: usize,
    range: Range<usize>,
}

impl Region {
    /// A part of this region, relative to its start and cut at its end.
    #[must_use]
    pub fn part(&self, range: Range<usize>) -> Self {
        let at = |offset: usize| self.range.start.saturating_add(offset).min(self.range.end);
        Self { shard: self.shard, range: at(range.start)..at(range.end) }
    }
}

impl Checkpoint {
    /// Opens a model's weights.
    ///
    /// # Errors
    /// No weights, or files that do not hold what their headers and the index say.
    pub fn open(files: &ModelFiles) -> Result<Self, CheckpointError> {
        // The single file first, as transformers.
        if let Some(data) = files.open(SINGLE)? {
            let path = files.path(SINGLE);
            let tensors = header::read(&path, &data)?
                .into_iter()
                .map(|(name, entry)| (name, Location { shard: 0, entry }))
                .collect();
            return Ok(Self { shards: vec![Shard { path, data }], tensors, unlisted: Vec::new() });
        }
        match files.read(INDEX)? {
            Some(bytes) => Self::open_sharded(files, &bytes),
            None => Err(CheckpointError::NoWeights {
                single: files.path(SINGLE),
                index: files.path(INDEX),
                hint: other_format(files)?,
            }),
        }
    }

    fn open_sharded(files: &ModelFiles, index: &[u8]) -> Result<Self, CheckpointError> {
        let index_path = files.path(INDEX);
        let mut listed = index::parse(&index_path, index)?;
        let mut checkpoint = Self { shards: Vec::new(), tensors: BTreeMap::new(), unlisted: Vec::new() };
        for (shard, file) in index::shards(&listed).into_iter().enumerate() {
            let path = files.path(&file);
            let Some(data) = files.open(&file)? else {
                let tensors = listed.iter().filter(|(_, shard)| **shard == file).count();
                return Err(CheckpointError::ShardMissing { index: index_path, shard: path, tensors });
            };
            for (name, entry) in header::read(&path, &data)? {
                if listed.get(&name) == Some(&file) {
                    listed.remove(&name);
                    checkpoint.tensors.insert(name, Location { shard, entry });
                } else {
                    checkpoint.unlisted.push(name);
                }
            }
            checkpoint.shards.push(Shard { path, data });
        }
        if let Some((tensor, file)) = listed.into_iter().next() {
            return Err(CheckpointError::NotInShard { index: index_path, shard: files.path(&file), tensor });
        }
        Ok(checkpoint)
    }

    /// The tensor of a name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<StoredTensor<'_>> {
        let (name, location) = self.tensors.get_key_value(name)?;
        let shard = &self.shards[location.shard];
        Some(StoredTensor {
            name,
            dtype: location.entry.dtype,
            shape: &location.entry.shape,
            // The header was checked against the file's length when it was opened.
            bytes: shard.data.get(location.entry.range.clone())?,
            path: &shard.path,
            shard: location.shard,
            offset: location.entry.range.start,
        })
    }

    /// The names of all tensors, those that the index leaves out too.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().chain(&self.unlisted).map(String::as_str)
    }

    /// The files.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.shards.iter().map(|shard| shard.path.as_path())
    }

    /// Whether the file of a region is as long as when it was opened. Look before a region is read for the first time:
    /// reading what a shorter file no longer has ends the process.
    ///
    /// # Errors
    /// [`CheckpointError::Changed`].
    pub fn check(&self, region: &Region) -> Result<(), CheckpointError> {
        Ok(self.shards[region.shard].data.check_length()?)
    }

    /// Hints that a region will be read soon, so that it is read ahead.
    pub fn will_need(&self, region: &Region) {
        self.shards[region.shard].data.will_need(region.range.clone());
    }

    /// Gives the memory of a region back once its content is held elsewhere.
    pub fn release(&self, region: &Region) {
        self.shards[region.shard].data.release(region.range.clone());
    }
}

/// What else may lie in a directory that has no safetensors.
fn other_format(files: &ModelFiles) -> Result<&'static str, FileError> {
    if !files.list("", ".bin")?.is_empty() {
        return Ok("; its PyTorch .bin files are not read, convert them to safetensors");
    }
    if !files.list("", ".gguf")?.is_empty() {
        return Ok("; its GGUF file is not read, use the original model");
    }
    if !files.list("", ".safetensors")?.is_empty() {
        return Ok("; its .safetensors files have other names, which only an index could explain");
    }
    Ok("; download the whole model, as `hf download NAME --local-dir PATH` does")
}

#[cfg(test)]
mod tests;
