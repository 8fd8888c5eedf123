//! The architectures. To add one: a file here that implements [`Architecture`], and one line in [`ALL`].

mod mixtral;
mod olmoe;
mod qwen2_moe;
mod qwen3_moe;
mod shape;

use super::config::{Config, ConfigError};
use super::spec::ModelSpec;
use super::tensor::TensorId;

/// Every architecture that can be served.
pub const ALL: &[&dyn Architecture] =
    &[&mixtral::Mixtral, &olmoe::Olmoe, &qwen2_moe::Qwen2Moe, &qwen3_moe::Qwen3Moe];

/// One model architecture: how its `config.json` is to be understood, and what its tensors are called.
pub trait Architecture: Sync {
    /// Its class in transformers, as `architectures` in `config.json` has it.
    fn class(&self) -> &'static str;

    /// `model_type` in `config.json`.
    fn model_type(&self) -> &'static str;

    /// Reads the configuration. `max_positions` replaces the configuration's longest sequence.
    ///
    /// # Errors
    /// The key that is missing, wrong or not supported.
    fn spec(&self, config: &Config, max_positions: Option<usize>) -> Result<ModelSpec, ConfigError>;

    /// The names a tensor may have in a checkpoint; the first that exists is taken.
    fn names(&self, tensor: TensorId) -> Vec<String>;
}

/// The architecture a configuration names.
///
/// # Errors
/// It names none, or one that is not in [`ALL`].
pub fn of(config: &Config) -> Result<&'static dyn Architecture, ConfigError> {
    let named = match config.texts("architectures")? {
        Some(classes) if !classes.is_empty() => classes,
        _ => Vec::new(),
    };
    let model_type = config.text("model_type")?;
    let found = if named.is_empty() {
        ALL.iter().find(|architecture| Some(architecture.model_type()) == model_type)
    } else {
        ALL.iter().find(|architecture| named.iter().any(|class| class == architecture.class()))
    };
    if let Some(architecture) = found {
        return Ok(*architecture);
    }
    let name = named.first().map(String::as_str).or(model_type);
    let Some(name) = name else {
        return Err(config.wrong("architectures", "a list with the name of the model's class"));
    };
    Err(ConfigError::Architecture {
        path: config.path().to_owned(),
        name: name.to_owned(),
        supported: ALL.iter().map(|architecture| architecture.class()).collect::<Vec<_>>().join(", "),
    })
}

#[cfg(test)]
mod tests;
