//! A model directory in Hugging Face form, read into what the backends and the gateway need.

pub mod arch;
pub mod bundled;
pub mod chat;
pub mod checkpoint;
pub mod config;
pub mod files;
pub mod generation;
pub mod rope;
pub mod spec;
pub mod tensor;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub mod tokenizer;
pub mod weights;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arch::Architecture;
use chat::{ChatError, ChatTemplates};
use checkpoint::CheckpointError;
use config::{Config, ConfigError};
use files::{FileError, ModelFiles};
use generation::{GenerationDefaults, GenerationError};
use spec::ModelSpec;
use tokenizer::{Tokenizer, TokenizerError};
use weights::Weights;

const CONFIG: &str = "config.json";

/// Why a model cannot be served. Each names the file.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// There is no such directory.
    #[error(
        "{}: no such directory; give the path of a downloaded model, such as `hf download NAME --local-dir PATH` leaves",
        path.display()
    )]
    NoDirectory {
        /// Where it should be.
        path: PathBuf,
    },
    /// A file could not be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// `config.json`.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The weights.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// `tokenizer.json`.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The chat template.
    #[error(transparent)]
    Chat(#[from] ChatError),
    /// `generation_config.json`.
    #[error(transparent)]
    Generation(#[from] GenerationError),
}

/// What may be chosen when a model is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModelOptions {
    /// The longest sequence, prompt and completion together; `None`: what `config.json` says. Rotary embeddings that
    /// depend on the length of the text are fixed for this one, so it is part of what decides a model's numbers.
    pub max_positions: Option<usize>,
}

/// A model, ready to be loaded onto devices: everything is checked, and no weight is read.
#[derive(Debug)]
pub struct Model {
    /// Where it came from.
    pub files: ModelFiles,
    /// Its class in transformers.
    pub architecture: &'static str,
    /// What it computes.
    pub spec: Arc<ModelSpec>,
    /// With what.
    pub weights: Arc<Weights>,
    /// Text to tokens and back.
    pub tokenizer: Arc<Tokenizer>,
    /// How conversations are written, for models that know any.
    pub chat: Option<Arc<ChatTemplates>>,
    /// Where it ends and how it is sampled.
    pub generation: GenerationDefaults,
}

impl Model {
    /// Opens a model directory; without one, the model inside the executable.
    ///
    /// # Errors
    /// What is missing, broken or not supported, with the file it is in.
    pub fn open(directory: Option<&Path>, options: ModelOptions) -> Result<Self, ModelError> {
        let (files, config, architecture, spec) = describe(directory, options)?;
        let tokenizer = Tokenizer::open(&files)?;
        let chat = ChatTemplates::open(&files)?;
        let generation = GenerationDefaults::open(&files, &config, &tokenizer)?;
        let weights = Weights::open(&files, architecture, Arc::clone(&spec))?;
        weights.verify()?;
        Ok(Self {
            files,
            architecture: architecture.class(),
            spec,
            weights: Arc::new(weights),
            tokenizer: Arc::new(tokenizer),
            chat: chat.map(Arc::new),
            generation,
        })
    }

    /// The name it is served under when none is given: its directory's.
    #[must_use]
    pub fn name(&self) -> String {
        self.files.name()
    }
}

/// A model as its `config.json` describes it.
pub(crate) fn describe(
    directory: Option<&Path>,
    options: ModelOptions,
) -> Result<(ModelFiles, Config, &'static dyn Architecture, Arc<ModelSpec>), ModelError> {
    let files = directory.map_or(ModelFiles::Bundled, |path| ModelFiles::Directory(path.to_owned()));
    if let ModelFiles::Directory(path) = &files
        && !path.is_dir()
    {
        return Err(ModelError::NoDirectory { path: path.clone() });
    }
    let path = files.path(CONFIG);
    let Some(bytes) = files.read(CONFIG)? else { return Err(ConfigError::Missing { path }.into()) };
    let config = Config::parse(&path, &bytes)?;
    let architecture = arch::of(&config)?;
    let spec = Arc::new(architecture.spec(&config, options.max_positions)?);
    Ok((files, config, architecture, spec))
}
