//! The header of one safetensors file.
//!
//! The safetensors crate decides what is valid; where it refuses, the code here finds out which tensor it is and how,
//! for the crate's errors name neither.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use safetensors::{Dtype, SafeTensorError, SafeTensors};
use serde::Deserialize;
use serde_json::Value;

use super::CheckpointError;

/// Bytes of the length in front of the header.
const LENGTH: usize = 8;

/// A tensor by the header, its range in bytes of the file.
#[derive(Debug)]
pub struct Entry {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub range: Range<usize>,
}

/// Reads and checks the header of a whole file.
pub fn read(path: &Path, file: &[u8]) -> Result<BTreeMap<String, Entry>, CheckpointError> {
    let (header, metadata) = SafeTensors::read_metadata(file).map_err(|error| explain(path, file, &error))?;
    let data = LENGTH + header;
    Ok(metadata
        .tensors()
        .into_iter()
        .map(|(name, info)| {
            let range = data + info.data_offsets.0..data + info.data_offsets.1;
            (name, Entry { dtype: info.dtype, shape: info.shape.clone(), range })
        })
        .collect())
}

fn explain(path: &Path, file: &[u8], error: &SafeTensorError) -> CheckpointError {
    let path = path.to_owned();
    let found = file.len() as u64;
    let Some(length) = file.first_chunk::<LENGTH>() else {
        return CheckpointError::Truncated { path, expected: LENGTH as u64, found };
    };
    let announced = u64::from_le_bytes(*length);
    match error {
        SafeTensorError::HeaderTooLarge => {
            let limit = "the format allows 100,000,000".to_owned();
            return CheckpointError::HeaderLength { path, announced, limit };
        }
        SafeTensorError::InvalidHeaderLength | SafeTensorError::HeaderTooSmall => {
            let limit = format!("the whole file has {found}");
            return CheckpointError::HeaderLength { path, announced, limit };
        }
        _ => {}
    }
    let header =
        usize::try_from(announced).ok().and_then(|length| file.get(LENGTH..LENGTH.checked_add(length)?));
    let claims = header.and_then(|header| serde_json::from_slice::<BTreeMap<String, Value>>(header).ok());
    match claims {
        Some(claims) => contradiction(&path, LENGTH as u64 + announced, found, &claims),
        None => None,
    }
    .unwrap_or_else(|| CheckpointError::Header { path, reason: error.to_string() })
}

/// What a header says of one tensor.
#[derive(Deserialize)]
struct Claim {
    dtype: Value,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// The first way in which the header contradicts itself or the length of the file.
fn contradiction(
    path: &Path,
    data: u64,
    found: u64,
    claims: &BTreeMap<String, Value>,
) -> Option<CheckpointError> {
    let mut tensors = Vec::new();
    for (name, value) in claims {
        if name == "__metadata__" {
            continue;
        }
        match Claim::deserialize(value) {
            Ok(claim) => tensors.push((name, claim)),
            Err(error) => {
                let reason = format!("`{name}`: {error}");
                return Some(CheckpointError::Header { path: path.to_owned(), reason });
            }
        }
    }
    tensors.sort_by_key(|(_, claim)| claim.data_offsets);
    let mut previous = (0, None::<&str>);
    for (name, claim) in &tensors {
        let (start, end) = claim.data_offsets;
        let offsets = |problem: String| {
            Some(CheckpointError::Offsets {
                path: path.to_owned(),
                tensor: (*name).clone(),
                start,
                end,
                problem,
            })
        };
        if end < start {
            return offsets("which ends before it starts".to_owned());
        }
        match previous {
            (free, Some(other)) if start < free => return offsets(format!("inside `{other}`")),
            (free, _) if start > free => return offsets(format!("and nothing at {free}..{start}")),
            _ => {}
        }
        if !fits(claim, end - start) {
            return Some(CheckpointError::TensorSize {
                path: path.to_owned(),
                tensor: (*name).clone(),
                dtype: claim.dtype.as_str().map_or_else(|| claim.dtype.to_string(), str::to_owned),
                shape: claim.shape.clone(),
                bytes: end - start,
            });
        }
        previous = (end, Some(name));
    }
    let expected = data.saturating_add(previous.0);
    let path = path.to_owned();
    match found.cmp(&expected) {
        std::cmp::Ordering::Less => Some(CheckpointError::Truncated { path, expected, found }),
        std::cmp::Ordering::Greater => Some(CheckpointError::TrailingBytes { path, expected, found }),
        std::cmp::Ordering::Equal => None,
    }
}

fn fits(claim: &Claim, bytes: u64) -> bool {
    // A dtype that the crate does not know is told apart by its own message.
    let Ok(dtype) = Dtype::deserialize(&claim.dtype) else { return true };
    let elements = claim.shape.iter().try_fold(1u64, |product, &length| product.checked_mul(length));
    elements.and_then(|elements| elements.checked_mul(dtype.bitsize() as u64)) == bytes.checked_mul(8)
}
