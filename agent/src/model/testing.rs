//! Model directories for tests.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::arch;
use super::config::Config;
use super::files::ModelFiles;
use super::spec::ModelSpec;
use super::weights::Weights;

pub fn tiny_moe() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny-moe")
}

/// The random-weight models, one of each architecture and more.
pub fn fixtures() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../e2e/fixtures");
    let mut models: Vec<_> = std::fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("config.json").exists())
        .collect();
    models.sort();
    assert!(models.len() >= 9);
    models
}

pub fn fixture(name: &str) -> PathBuf {
    fixtures().into_iter().find(|path| path.ends_with(name)).unwrap()
}

/// A copy to be damaged.
pub fn copy(model: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(model).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}

pub fn spec(model: &Path) -> ModelSpec {
    let path = model.join("config.json");
    let config = Config::parse(&path, &std::fs::read(&path).unwrap()).unwrap();
    arch::of(&config).unwrap().spec(&config, None).unwrap()
}

pub fn weights(model: &Path) -> Result<Weights, super::checkpoint::CheckpointError> {
    let path = model.join("config.json");
    let config = Config::parse(&path, &std::fs::read(&path).unwrap()).unwrap();
    let architecture = arch::of(&config).unwrap();
    let spec = Arc::new(architecture.spec(&config, None).unwrap());
    Weights::open(&ModelFiles::Directory(model.to_owned()), architecture, spec)
}
