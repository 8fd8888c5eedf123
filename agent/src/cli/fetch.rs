//! `sluice-agent fetch`.

use std::path::PathBuf;

use clap::Args;

use super::Invalid;
use super::options::FetchOptions;

pub(super) const EXAMPLES: &str = "\
Examples:
  sluice-agent fetch --repository Qwen/Qwen3-30B-A3B --out ~/models/Qwen3-30B-A3B
  sluice-agent fetch --repository org/gated --token-file ~/.cache/huggingface/token --out model

Configuration, tokenizer and weights (safetensors) are fetched. What was cut is resumed by the next call; processes that
fetch into one directory take turns, and those that find all of it there do nothing.";

/// The flags of `fetch`.
#[derive(Args, Clone, Debug)]
pub struct FetchArgs {
    /// The repository, OWNER/NAME.
    #[arg(long, env = "SLUICE_REPOSITORY", value_name = "OWNER/NAME")]
    pub repository: String,
    /// A branch, a tag, or best a commit.
    #[arg(long, env = "SLUICE_REVISION", default_value = "main", value_name = "REVISION")]
    pub revision: String,
    /// The hub, or a mirror that speaks its protocol.
    #[arg(long, env = "SLUICE_HUB", default_value = "https://huggingface.co", value_name = "URL")]
    pub endpoint: String,
    /// A file with the token for gated and private repositories.
    #[arg(long, env = "SLUICE_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// The model directory, made if there is none.
    #[arg(long, env = "SLUICE_MODEL", value_name = "DIR")]
    pub out: PathBuf,
}

impl FetchArgs {
    /// Checks what clap does not.
    ///
    /// # Errors
    /// What is wrong and what to do.
    pub fn check(&self) -> Result<FetchOptions, Invalid> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let parts: Vec<&str> = self.repository.split('/').collect();
        if parts.len() != 2 || parts.iter().any(|p| p.is_empty() || !p.chars().all(is_plain)) {
            return Err(Invalid(format!(
                "--repository {:?}: write OWNER/NAME, as in Qwen/Qwen3-30B-A3B",
                self.repository
            )));
        }
        if self.revision.is_empty() {
            return Err(Invalid("--revision is empty: give a branch, a tag or a commit".into()));
        }
        Ok(FetchOptions {
            repository: self.repository.clone(),
            revision: self.revision.clone(),
            endpoint: self.endpoint.clone(),
            token_file: self.token_file.clone(),
            out: self.out.clone(),
        })
    }
}
