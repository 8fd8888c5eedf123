//! Every test works on real files that are really broken.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use super::*;
use crate::model::testing;

fn open(directory: &Path) -> Result<Checkpoint, CheckpointError> {
    Checkpoint::open(&ModelFiles::Directory(directory.to_owned()))
}

/// A file with a header of one's own.
fn file(header: &Value, data: usize) -> Vec<u8> {
    let header = header.to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 0x3f);
    bytes
}

fn open_bytes(bytes: &[u8]) -> Result<Checkpoint, CheckpointError> {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join(SINGLE), bytes).unwrap();
    open(directory.path())
}

fn open_header(header: &Value, data: usize) -> Result<Checkpoint, CheckpointError> {
    open_bytes(&file(header, data))
}

fn tensor(dtype: &str, shape: &[u64], start: u64, end: u64) -> Value {
    json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]})
}

#[test]
fn reads_a_file() {
    let header = json!({
        "__metadata__": {"format": "pt"},
        "b": tensor("BF16", &[2, 3], 8, 20),
        "a": tensor("F32", &[2], 0, 8),
        "empty": tensor("F32", &[0, 7], 20, 20),
    });
    let checkpoint = open_header(&header, 20).unwrap();
    let names: Vec<_> = checkpoint.names().collect();
    assert_eq!(names, ["a", "b", "empty"]);
    let b = checkpoint.get("b").unwrap();
    assert_eq!((b.dtype, b.shape, b.bytes), (StoredDtype::BF16, &[2usize, 3][..], &[0x3f; 12][..]));
    assert!(checkpoint.get("c").is_none());
}

#[test]
fn no_weights_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let message = open(directory.path()).unwrap_err().to_string();
    assert!(message.contains("model.safetensors.index.json"), "{message}");
    fs::write(directory.path().join("pytorch_model.bin"), b"x").unwrap();
    let error = open(directory.path()).unwrap_err();
    assert!(matches!(error, CheckpointError::NoWeights { .. }) && error.to_string().contains("PyTorch"));
}

#[test]
fn a_single_file_goes_before_an_index() {
    let directory = testing::copy(&testing::fixture("mixtral-sharded"));
    let shards = open(directory.path()).unwrap().paths().count();
    assert!(shards > 1);
    fs::write(directory.path().join(SINGLE), small_file()).unwrap();
    let single = open(directory.path()).unwrap();
    assert_eq!((single.paths().count(), single.names().count()), (1, 2));
}

#[test]
fn a_truncated_file() {
    let directory = testing::copy(&testing::fixture("mixtral-f32"));
    let path = directory.path().join(SINGLE);
    let whole = fs::read(&path).unwrap();
    for lost in [1, 4096, whole.len() / 2] {
        fs::write(&path, &whole[..whole.len() - lost]).unwrap();
        let error = open(directory.path()).unwrap_err();
        let CheckpointError::Truncated { expected, found, .. } = error else { panic!("{error}") };
        assert_eq!((expected, found), (whole.len() as u64, (whole.len() - lost) as u64));
    }
    fs::write(&path, b"").unwrap();
    assert!(matches!(open(directory.path()), Err(CheckpointError::Truncated { found: 0, .. })));
    fs::write(&path, &whole[..500]).unwrap();
    assert!(matches!(open(directory.path()), Err(CheckpointError::HeaderLength { .. })));
    fs::write(&path, [&whole[..], b"more"].concat()).unwrap();
    assert!(matches!(open(directory.path()), Err(CheckpointError::TrailingBytes { .. })));
}

#[test]
fn a_header_that_lies_about_its_length() {
    for length in [u64::MAX, 1 << 62, 1 << 40, 100_000_001, 10_000] {
        let mut bytes = file(&json!({"a": tensor("F32", &[2], 0, 8)}), 8);
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        let error = open_bytes(&bytes).unwrap_err();
        let CheckpointError::HeaderLength { announced, .. } = error else { panic!("{error}") };
        assert_eq!(announced, length);
    }
}

#[test]
fn a_header_that_is_no_header() {
    for header in ["", "{", "[]", "{\"a\": 3}", "{\"a\": {\"dtype\": \"F32\"}}", "\u{fffd}"] {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        let error = open_bytes(&bytes).unwrap_err();
        assert!(matches!(error, CheckpointError::Header { .. }), "{header}: {error}");
    }
    let unknown = open_header(&json!({"a": tensor("F3", &[2], 0, 8)}), 8).unwrap_err();
    assert!(
        matches!(unknown, CheckpointError::Header { .. }) && unknown.to_string().contains("F3"),
        "{unknown}"
    );
}

#[test]
fn offsets_that_cannot_be() {
    let offsets = |header: Value, data, at: &str| {
        let error = open_header(&header, data).unwrap_err();
        let CheckpointError::Offsets { tensor, .. } = &error else { panic!("{error}") };
        assert_eq!(tensor, at);
        error.to_string()
    };
    let overlap = json!({"a": tensor("F32", &[2], 0, 8), "b": tensor("F32", &[2], 4, 12)});
    assert!(offsets(overlap, 12, "b").contains("inside `a`"));
    let hole = json!({"a": tensor("F32", &[2], 0, 8), "b": tensor("F32", &[2], 12, 20)});
    assert!(offsets(hole, 20, "b").contains("nothing at 8..12"));
    let backwards = json!({"a": tensor("F32", &[2], 8, 0)});
    assert!(offsets(backwards, 8, "a").contains("before it starts"));

    let beyond = json!({"a": tensor("F32", &[1 << 20], 0, 1 << 22)});
    let error = open_header(&beyond, 8).unwrap_err();
    assert!(matches!(error, CheckpointError::Truncated { .. }), "{error}");
}

#[test]
fn a_size_that_does_not_fit_dtype_and_shape() {
    for (shape, end) in [(vec![3], 8), (vec![1 << 40, 1 << 40], 8), (vec![u64::MAX, 2], 8)] {
        let error = open_header(&json!({"a": tensor("F32", &shape, 0, end)}), 8).unwrap_err();
        let CheckpointError::TensorSize { tensor, shape: found, .. } = &error else { panic!("{error}") };
        assert_eq!((tensor.as_str(), found), ("a", &shape));
    }
}

#[test]
fn a_shard_that_is_missing() {
    let directory = testing::copy(&testing::fixture("mixtral-sharded"));
    open(directory.path()).unwrap();
    fs::remove_file(directory.path().join("model-00002-of-00003.safetensors")).unwrap();
    let error = open(directory.path()).unwrap_err();
    let CheckpointError::ShardMissing { shard, tensors, .. } = &error else { panic!("{error}") };
    assert!(shard.ends_with("model-00002-of-00003.safetensors") && *tensors > 0);
}

#[test]
fn a_shard_without_the_tensor_the_index_places_in_it() {
    let directory = testing::copy(&testing::fixture("mixtral-sharded"));
    let path = directory.path().join(INDEX);
    let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let map = index["weight_map"].as_object_mut().unwrap();
    let first = map["model.norm.weight"].clone();
    let other = map.values().find(|file| **file != first).unwrap().clone();
    map["model.norm.weight"] = other.clone();
    fs::write(&path, index.to_string()).unwrap();
    let error = open(directory.path()).unwrap_err();
    let CheckpointError::NotInShard { shard, tensor, .. } = &error else { panic!("{error}") };
    assert!(shard.ends_with(other.as_str().unwrap()));
    assert_eq!(tensor, "model.norm.weight");
}

#[test]
fn an_index_that_is_none() {
    let directory = tempfile::tempdir().unwrap();
    for index in [
        "",
        "{}",
        "{\"weight_map\": {}}",
        "{\"weight_map\": {\"a\": 3}}",
        "{\"weight_map\": {\"a\": \"../secret.safetensors\"}}",
        "{\"weight_map\": {\"a\": \"/etc/passwd\"}}",
        "{\"weight_map\": {\"a\": \"tokenizer.json\"}}",
        "{\"weight_map\": {\"a\": \"..\"}}",
    ] {
        fs::write(directory.path().join(INDEX), index).unwrap();
        let error = open(directory.path()).unwrap_err();
        assert!(matches!(error, CheckpointError::Index { .. }), "{index}: {error}");
    }
}

#[test]
fn a_tensor_the_index_leaves_out_is_seen() {
    let directory = testing::copy(&testing::fixture("mixtral-sharded"));
    let path = directory.path().join(INDEX);
    let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    index["weight_map"].as_object_mut().unwrap().remove("model.norm.weight");
    fs::write(&path, index.to_string()).unwrap();
    let checkpoint = open(directory.path()).unwrap();
    assert!(checkpoint.get("model.norm.weight").is_none());
    assert!(checkpoint.names().any(|name| name == "model.norm.weight"));
}

#[test]
fn a_file_that_shrinks_while_it_is_open() {
    let directory = testing::copy(&testing::fixture("mixtral-f32"));
    let checkpoint = open(directory.path()).unwrap();
    let region = checkpoint.get("lm_head.weight").unwrap().region();
    checkpoint.check(&region).unwrap();
    fs::File::options().write(true).open(directory.path().join(SINGLE)).unwrap().set_len(1000).unwrap();
    assert!(matches!(checkpoint.check(&region), Err(CheckpointError::Changed(_))));
}

fn small_file() -> Vec<u8> {
    let (a, b) = ([1u8; 24], [2u8; 8]);
    let views = [
        ("model.embed_tokens.weight", TensorView::new(StoredDtype::F32, vec![2, 3], &a).unwrap()),
        ("model.layers.0.w", TensorView::new(StoredDtype::BF16, vec![4], &b).unwrap()),
    ];
    safetensors::serialize(views, None).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Whatever happens to the bytes of a file, opening it and reading all its tensors is an error or works.
    #[test]
    fn damaged_bytes_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in prop::option::of(any::<prop::sample::Index>()),
        numbers in prop::collection::vec((any::<prop::sample::Index>(), "[0-9]{1,20}|-1|1e9|null|\"F4\""), 0..3),
    ) {
        let mut bytes = small_file();
        // Whole numbers of the header, replaced: single bytes rarely give a valid header that lies.
        for (place, number) in &numbers {
            let digits: Vec<usize> =
                (8..bytes.len()).filter(|&at| bytes[at].is_ascii_digit() && !bytes[at - 1].is_ascii_digit()).collect();
            if digits.is_empty() { break; }
            let start = digits[place.index(digits.len())];
            let end = (start..bytes.len()).find(|&at| !bytes[at].is_ascii_digit()).unwrap_or(bytes.len());
            bytes.splice(start..end, number.bytes());
        }
        if numbers.is_empty() {
            for (place, value) in changes {
                let at = place.index(bytes.len());
                bytes[at] = value;
            }
        } else if let Some(end) = bytes.iter().rposition(|byte| *byte == b'}') {
            let length = (end + 1 - 8) as u64;
            bytes[..8].copy_from_slice(&length.to_le_bytes());
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        match header::read(Path::new("f"), &bytes) {
            Err(error) => prop_assert!(!error.to_string().is_empty()),
            Ok(entries) => {
                for (_, entry) in entries {
                    prop_assert!(bytes.get(entry.range).is_some());
                }
            }
        }
    }
}
