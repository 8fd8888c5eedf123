//! `sluice-agent inspect`.

use std::path::PathBuf;

use clap::Args;

use super::options::{InspectOptions, ModelSource};

pub(super) const EXAMPLES: &str = "\
Examples:
  sluice-agent inspect ~/models/Qwen3-30B-A3B
  sluice-agent inspect --json > model.json        (the model that comes with Sluice)
  sluice-agent inspect --devices                  (the GPUs of this machine)";

/// The flags of `inspect`.
#[derive(Args, Clone, Debug)]
pub struct InspectArgs {
    /// A Hugging Face model directory. Without it, the small model that comes with Sluice.
    #[arg(value_name = "DIR", env = "SLUICE_MODEL")]
    pub model: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// List the GPUs of this machine, and how they are, in place of a model.
    #[arg(long, conflicts_with = "model")]
    pub devices: bool,
}

impl InspectArgs {
    /// As plain data.
    pub fn options(&self) -> InspectOptions {
        InspectOptions {
            model: self.model.clone().map_or(ModelSource::Bundled, ModelSource::Directory),
            json: self.json,
            devices: self.devices,
        }
    }
}
