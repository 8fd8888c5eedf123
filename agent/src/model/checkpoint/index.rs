//! `model.safetensors.index.json`: which shard holds which tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use serde::Deserialize;

use super::CheckpointError;

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The shard's file name of each tensor.
pub fn parse(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, String>, CheckpointError> {
    let wrong = |reason| CheckpointError::Index { path: path.to_owned(), reason };
    let index: Index = serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))?;
    for (tensor, file) in &index.weight_map {
        let mut components = Path::new(file).components();
        let inside = matches!((components.next(), components.next()), (Some(Component::Normal(_)), None));
        if !inside || !file.ends_with(".safetensors") {
            return Err(wrong(format!(
                "`{tensor}` is placed in {file:?}, which is no safetensors file beside the index"
            )));
        }
    }
    if index.weight_map.is_empty() {
        return Err(wrong("`weight_map` is empty".to_owned()));
    }
    Ok(index.weight_map)
}

/// The files of an index, sorted.
pub fn shards(index: &BTreeMap<String, String>) -> Vec<String> {
    index.values().collect::<BTreeSet<_>>().into_iter().cloned().collect()
}
