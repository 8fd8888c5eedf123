//! One agent put together: a model, its engine, the gateway before it, telemetry around it.

mod admin;
mod drain;
mod error;
mod front;
mod gateway;
mod hearing;
mod incarnation;
mod listen;
mod local;
mod observers;
mod plan;
mod ranks;
mod serve;
mod source;
mod text;
mod worker;

pub use error::NodeError;
pub use gateway::run_gateway;
pub use local::{Answer, LocalEngine, LocalError};
pub use plan::plan_table;
pub use serve::{Serving, serve};
pub use text::ModelText;
pub use worker::{WorkerServing, run_worker};

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
