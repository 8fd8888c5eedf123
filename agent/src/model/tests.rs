use std::fs;

use super::*;

fn open(path: &Path) -> Result<Model, ModelError> {
    Model::open(Some(path), ModelOptions::default())
}

#[test]
fn every_model_opens() {
    for path in testing::fixtures().into_iter().chain([testing::tiny_moe()]) {
        let model = open(&path).unwrap();
        assert_eq!(Some(model.name().as_ref()), path.file_name().and_then(|name| name.to_str()));
        assert!(model.tokenizer.size() <= model.spec.vocab);
        assert!(!model.generation.eos.is_empty());
    }
}

#[test]
fn the_bundled_model_is_the_one_in_the_repository() {
    let bundled = Model::open(None, ModelOptions::default()).unwrap();
    let directory = open(&testing::tiny_moe()).unwrap();
    assert_eq!(bundled.name(), "tiny-moe");
    assert_eq!(bundled.spec, directory.spec);
    assert_eq!(bundled.generation, directory.generation);
    assert_eq!(bundled.generation.eos, [2]);
    assert_eq!(bundled.weights.fingerprint(), directory.weights.fingerprint());
    let unit = |model: &Model| model.weights.expert(5, 7, 0..256).unwrap().hash();
    assert_eq!(unit(&bundled), unit(&directory));
    assert!(bundled.chat.is_some());
}

#[test]
fn each_file_that_fails_is_named() {
    for file in [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "model.safetensors",
    ] {
        let model = testing::copy(&testing::fixture("mixtral-f32"));
        let path = model.path().join(file);
        fs::write(&path, b"{\"").unwrap();
        let message = open(model.path()).unwrap_err().to_string();
        assert!(message.starts_with(path.to_str().unwrap()), "{message}");
        fs::remove_file(&path).unwrap();
        let opened = open(model.path());
        if ["tokenizer_config.json", "generation_config.json"].contains(&file) {
            opened.unwrap();
        } else {
            let message = opened.unwrap_err().to_string();
            assert!(message.contains(path.to_str().unwrap()), "{message}");
        }
    }
}

#[test]
fn no_directory() {
    let error = open(Path::new("Qwen/Qwen3-30B-A3B")).unwrap_err();
    assert!(matches!(error, ModelError::NoDirectory { .. }) && error.to_string().contains("hf download"));
    let file = testing::tiny_moe().join("config.json");
    assert!(matches!(open(&file), Err(ModelError::NoDirectory { .. })));
}

#[test]
fn a_longest_sequence_of_ones_own() {
    let options = ModelOptions { max_positions: Some(100) };
    assert_eq!(Model::open(None, options).unwrap().spec.max_positions, 100);
}

#[test]
fn other_weights_have_another_fingerprint() {
    let original = testing::fixture("mixtral-f32");
    let changed = testing::copy(&original);
    let path = changed.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let fingerprint = |path: &Path| open(path).unwrap().weights.fingerprint();
    assert_eq!(fingerprint(&original), fingerprint(&original));
    assert_ne!(fingerprint(&original), fingerprint(changed.path()));
}
