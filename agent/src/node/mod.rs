//! One agent put together: a model, its engine, the gateway before it, telemetry around it.

mod admin;
mod local;
mod observers;
mod serve;
mod text;

pub use local::{Answer, LocalEngine, LocalError};
pub use serve::{NodeError, Serving, serve};
pub use text::ModelText;

use std::path::Path;

use crate::cli::ModelSource;
use crate::model::{Model, ModelError, ModelOptions};

/// Opens the model that the options name.
///
/// # Errors
/// What is missing or broken, with the file it is in.
pub fn open_model(source: &ModelSource) -> Result<Model, ModelError> {
    Model::open(directory(source), ModelOptions::default())
}

/// The directory that the options name; `None` for the bundled model.
pub fn directory(source: &ModelSource) -> Option<&Path> {
    match source {
        ModelSource::Bundled => None,
        ModelSource::Directory(path) => Some(path),
    }
}
