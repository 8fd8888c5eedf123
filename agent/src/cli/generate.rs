//! `sluice-agent generate`.

use clap::Args;

use super::Invalid;
use super::engine::{EngineArgs, LayoutArgs, ModelArgs};
use super::options::GenerateOptions;

pub(super) const EXAMPLES: &str = "\
Examples:
  sluice-agent generate \"Tell me a story about a lighthouse.\"
  sluice-agent generate --temperature 0.8 --seed 7 \"Write a short poem.\"
  echo \"Once upon a time\" | sluice-agent generate --raw --max-tokens 50";

/// The flags of `generate`.
#[derive(Args, Clone, Debug)]
pub struct GenerateArgs {
    /// What to say to the model. Without it, standard input.
    #[arg(value_name = "PROMPT")]
    pub prompt: Option<String>,
    /// A system message before the prompt.
    #[arg(long, value_name = "TEXT", conflicts_with = "raw", help_heading = "Text")]
    pub system: Option<String>,
    /// Continue the text as it is, without the model's chat template.
    #[arg(long, help_heading = "Text")]
    pub raw: bool,
    /// Tokens to produce at most.
    #[arg(
        long,
        default_value_t = 256,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..),
        help_heading = "Text"
    )]
    pub max_tokens: u32,
    /// 0 always takes the most likely token; higher is more varied.
    #[arg(long, default_value_t = 0.0, value_name = "T", help_heading = "Text")]
    pub temperature: f32,
    /// Draw from the most likely tokens that together have this probability.
    #[arg(long, default_value_t = 1.0, value_name = "P", help_heading = "Text")]
    pub top_p: f32,
    /// Decides the draws: the same seed gives the same text.
    #[arg(long, value_name = "SEED", help_heading = "Text")]
    pub seed: Option<u64>,
    /// The text only: no progress bars, no summary.
    #[arg(long, short, help_heading = "Text")]
    pub quiet: bool,
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// How many workers.
    #[command(flatten)]
    pub layout: LayoutArgs,
    /// The engine.
    #[command(flatten)]
    pub engine: EngineArgs,
}

impl GenerateArgs {
    /// Checks what one flag alone cannot tell.
    ///
    /// # Errors
    /// What is wrong and what to do.
    pub fn check(&self) -> Result<GenerateOptions, Invalid> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(Invalid(format!("--temperature {} is not a number of at least 0", self.temperature)));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(Invalid(format!("--top-p {} is not over 0 and at most 1", self.top_p)));
        }
        Ok(GenerateOptions {
            model: self.model.source(),
            engine: self.engine.check(&self.layout)?,
            prompt: self.prompt.clone(),
            system: self.system.clone(),
            raw: self.raw,
            max_tokens: self.max_tokens,
            temperature: self.temperature,
            top_p: self.top_p,
            seed: self.seed,
            quiet: self.quiet,
        })
    }
}
