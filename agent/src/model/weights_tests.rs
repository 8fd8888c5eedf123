use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::*;
use crate::model::testing;

struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// Rewrites a model's only weights file.
fn rewrite(directory: &Path, change: impl FnOnce(&mut BTreeMap<String, Tensor>)) {
    let path = directory.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let mut tensors: BTreeMap<String, Tensor> = SafeTensors::deserialize(&bytes)
        .unwrap()
        .iter()
        .map(|(name, view)| {
            let tensor =
                Tensor { dtype: view.dtype(), shape: view.shape().to_vec(), bytes: view.data().to_vec() };
            (name.to_owned(), tensor)
        })
        .collect();
    change(&mut tensors);
    let views = tensors.iter().map(|(name, tensor)| {
        (name, TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes).unwrap())
    });
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

#[test]
fn every_model_loads_whole() {
    for model in testing::fixtures().into_iter().chain([testing::tiny_moe()]) {
        let weights = testing::weights(&model).unwrap();
        weights.verify().unwrap();
        let inventory = weights.inventory();
        assert!(inventory.problems.is_empty(), "{model:?}: {:?}", inventory.problems);
        assert!(inventory.unexpected.is_empty(), "{model:?}: {:?}", inventory.unexpected);
        assert_eq!(inventory.found.len(), weights.checkpoint().names().count());
        for block in 0..weights.spec().blocks.len() {
            weights.attention(block).unwrap();
            weights.feed_forward_norm(block).unwrap();
            weights.router(block).unwrap();
        }
        weights.final_norm().unwrap();
        assert_eq!(weights.embedding().unwrap().rows(), weights.spec().vocab);
        assert_eq!(weights.head().unwrap().cols(), weights.spec().hidden);
    }
}

#[test]
fn slices_of_an_expert_cover_it() {
    let weights = testing::weights(&testing::tiny_moe()).unwrap();
    let whole = weights.expert(3, 5, 0..256).unwrap();
    assert_eq!(whole.size(), 3 * 256 * 256 * 2);
    let path = testing::tiny_moe().join("model.safetensors");
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let stored =
        |name| file.tensor(&format!("model.layers.3.block_sparse_moe.experts.5.{name}.weight")).unwrap();
    assert_eq!(whole.gate.contiguous(), stored("w1").data());
    assert_eq!(whole.up.contiguous(), stored("w3").data());
    assert_eq!(whole.down.contiguous(), stored("w2").data());

    let bounds = [0, 32, 64, 100, 256];
    for window in bounds.windows(2) {
        let (lo, hi) = (window[0], window[1]);
        let part = weights.expert(3, 5, lo..hi).unwrap();
        assert_eq!((part.gate.rows(), part.gate.cols()), (hi - lo, 256));
        assert_eq!((part.down.rows(), part.down.cols()), (256, hi - lo));
        assert_eq!(part.gate.contiguous(), &stored("w1").data()[lo * 512..hi * 512]);
        let down = part.down.contiguous();
        for row in 0..256 {
            let expected = &stored("w2").data()[row * 512 + lo * 2..row * 512 + hi * 2];
            assert_eq!(part.down.row(row), expected);
            assert_eq!(&down[row * (hi - lo) * 2..(row + 1) * (hi - lo) * 2], expected);
        }
        assert_ne!(part.hash(), whole.hash());
    }
}

/// The layout that transformers 5 holds in memory, and saves on request.
#[test]
fn fused_experts_are_the_same_experts() {
    let classic = testing::fixture("mixtral-f32");
    let fused = testing::copy(&classic);
    let spec = testing::spec(&classic);
    let (hidden, moe) = (spec.hidden, spec.blocks[0].feed_forward.moe().unwrap().clone());
    rewrite(fused.path(), |tensors| {
        for block in 0..spec.blocks.len() {
            let prefix = format!("model.layers.{block}.block_sparse_moe");
            let router = tensors.remove(&format!("{prefix}.gate.weight")).unwrap();
            tensors.insert(format!("model.layers.{block}.mlp.gate.weight"), router);
            let (mut gate_up, mut down) = (Vec::new(), Vec::new());
            for expert in 0..moe.experts {
                let mut take =
                    |name| tensors.remove(&format!("{prefix}.experts.{expert}.{name}.weight")).unwrap().bytes;
                gate_up.extend(take("w1"));
                gate_up.extend(take("w3"));
                down.extend(take("w2"));
            }
            let (experts, inner) = (moe.experts, moe.expert.inner);
            tensors.insert(
                format!("model.layers.{block}.mlp.experts.gate_up_proj"),
                Tensor { dtype: Dtype::F32, shape: vec![experts, 2 * inner, hidden], bytes: gate_up },
            );
            tensors.insert(
                format!("model.layers.{block}.mlp.experts.down_proj"),
                Tensor { dtype: Dtype::F32, shape: vec![experts, hidden, inner], bytes: down },
            );
        }
    });
    let (classic, fused) = (testing::weights(&classic).unwrap(), testing::weights(fused.path()).unwrap());
    fused.verify().unwrap();
    assert!(fused.inventory().unexpected.is_empty());
    let mut hashes = std::collections::BTreeSet::new();
    for block in 0..spec.blocks.len() {
        for expert in 0..moe.experts {
            for inner in [0..moe.expert.inner, 0..7, 7..moe.expert.inner] {
                let (a, b) = (
                    classic.expert(block, expert, inner.clone()).unwrap(),
                    fused.expert(block, expert, inner).unwrap(),
                );
                assert_eq!(a.gate.contiguous(), b.gate.contiguous());
                assert_eq!(a.up.contiguous(), b.up.contiguous());
                assert_eq!(a.down.contiguous(), b.down.contiguous());
                assert_eq!(a.hash(), b.hash());
                hashes.insert(a.hash());
            }
        }
    }
    assert_eq!(hashes.len(), spec.blocks.len() * moe.experts * 3);
}

#[test]
fn a_missing_tensor_is_named_with_the_file() {
    let model = testing::copy(&testing::fixture("mixtral-f32"));
    let name = "model.layers.1.block_sparse_moe.experts.2.w3.weight";
    rewrite(model.path(), |tensors| {
        tensors.remove(name).unwrap();
    });
    let weights = testing::weights(model.path()).unwrap();
    let error = weights.verify().unwrap_err();
    assert!(matches!(error, CheckpointError::MissingTensor { .. }));
    let message = error.to_string();
    assert!(message.contains(name) && message.contains("model.safetensors"), "{message}");
    assert_eq!(weights.inventory().problems.len(), 1);
}

#[test]
fn a_wrong_shape() {
    let model = testing::copy(&testing::fixture("mixtral-f32"));
    rewrite(model.path(), |tensors| {
        tensors.get_mut("model.layers.0.self_attn.k_proj.weight").unwrap().shape.reverse();
        let norm = tensors.get_mut("model.norm.weight").unwrap();
        norm.shape.insert(0, 1);
    });
    let weights = testing::weights(model.path()).unwrap();
    assert!(matches!(weights.attention(0), Err(CheckpointError::Shape { .. })));
    assert!(matches!(weights.final_norm(), Err(CheckpointError::Shape { .. })));
    let error = weights.verify().unwrap_err();
    assert!(error.to_string().contains("config.json"), "{error}");
}

#[test]
fn a_wrong_dtype() {
    for (dtype, says) in
        [(Dtype::F8_E4M3, "quantised"), (Dtype::I8, "quantised"), (Dtype::F64, "must be bf16")]
    {
        let model = testing::copy(&testing::fixture("mixtral-f32"));
        rewrite(model.path(), |tensors| {
            let tensor = tensors.get_mut("model.layers.0.self_attn.k_proj.weight").unwrap();
            tensor.bytes.resize(tensor.bytes.len() / 4 * dtype.bitsize() / 8, 0);
            tensor.dtype = dtype;
        });
        let error = testing::weights(model.path()).unwrap().verify().unwrap_err();
        let message = error.to_string();
        assert!(matches!(error, CheckpointError::Dtype { .. }), "{message}");
        assert!(message.contains("k_proj") && message.contains(says), "{message}");
    }
}

#[test]
fn the_parts_of_an_expert_have_one_dtype() {
    let model = testing::copy(&testing::fixture("mixtral-f32"));
    let name = "model.layers.0.block_sparse_moe.experts.1.w2.weight";
    rewrite(model.path(), |tensors| {
        let tensor = tensors.get_mut(name).unwrap();
        tensor.bytes.truncate(tensor.bytes.len() / 2);
        tensor.dtype = Dtype::BF16;
    });
    let error = testing::weights(model.path()).unwrap().verify().unwrap_err();
    assert!(
        matches!(error, CheckpointError::MixedDtypes { .. }) && error.to_string().contains(name),
        "{error}"
    );
}

#[test]
fn tensors_without_a_use_are_reported() {
    let model = testing::copy(&testing::fixture("olmoe-clip"));
    rewrite(model.path(), |tensors| {
        let bytes = vec![0; 8];
        tensors
            .insert("model.layers.9.extra".to_owned(), Tensor { dtype: Dtype::F32, shape: vec![2], bytes });
    });
    let weights = testing::weights(model.path()).unwrap();
    weights.verify().unwrap();
    assert_eq!(weights.inventory().unexpected, ["model.layers.9.extra"]);
}

#[test]
fn widening_is_exact() {
    let values = [0.0f32, -0.0, 1.0, -2.5, 0.125, 65504.0, f32::from_bits(0x3380_0000)];
    let f16s: Vec<u8> = values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect();
    assert_eq!(widen(WeightDtype::F16, &f16s), values);
    let bf16s: Vec<u8> = values[..5].iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect();
    assert_eq!(widen(WeightDtype::Bf16, &bf16s), values[..5]);
    let f32s: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    assert_eq!(widen(WeightDtype::F32, &f32s), values);
}

#[test]
fn prefetch_and_release_change_nothing() {
    let weights = testing::weights(&testing::tiny_moe()).unwrap();
    let unit = weights.expert(0, 0, 32..64).unwrap();
    let before = unit.hash();
    for matrix in [&unit.gate, &unit.up, &unit.down] {
        weights.prefetch(matrix).unwrap();
        weights.release(matrix);
    }
    assert_eq!(weights.expert(0, 0, 32..64).unwrap().hash(), before);
}
