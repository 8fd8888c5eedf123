//! `sluice-agent serve`.

use clap::Args;

use super::Invalid;
use super::engine::{EngineArgs, LayoutArgs, ModelArgs};
use super::front::FrontArgs;
use super::options::ServeOptions;

pub(super) const EXAMPLES: &str = "\
Examples:
  Serve the model that comes with Sluice, on http://127.0.0.1:8080/v1:
    sluice-agent serve

  Serve a model of your own with attention and experts on workers of their own:
    sluice-agent serve --model ~/models/Qwen3-30B-A3B --layout disaggregated --attention-ranks 2 --expert-workers 4

  Ask it something:
    curl http://127.0.0.1:8080/v1/chat/completions -H 'content-type: application/json' \\
      -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Tell me a story.\"}], \"stream\": true}'

Every flag can be set by the environment variable shown with it, or in a TOML file given by --config, with the flags'
names as keys (attention-ranks = 2). A flag wins over the environment, the environment over the file.";

/// The flags of `serve`.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// The front.
    #[command(flatten)]
    pub front: FrontArgs,
    /// How many workers.
    #[command(flatten)]
    pub layout: LayoutArgs,
    /// The engine.
    #[command(flatten)]
    pub engine: EngineArgs,
}

impl ServeArgs {
    /// Checks what one flag alone cannot tell.
    ///
    /// # Errors
    /// What is wrong and what to do.
    pub fn check(&self) -> Result<ServeOptions, Invalid> {
        let (front, traces) = self.front.check()?;
        Ok(ServeOptions {
            model: self.model.source(),
            engine: self.engine.check(&self.layout)?,
            front,
            traces,
        })
    }
}
