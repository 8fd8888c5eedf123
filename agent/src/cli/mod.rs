//! The command line: what the flags are, how they are checked, and what they amount to.

mod bench;
mod engine;
mod fetch;
mod file;
mod front;
mod generate;
mod inspect;
mod node;
pub mod options;
mod serve;
#[cfg(test)]
mod tests;
pub mod values;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

pub use bench::BenchArgs;
pub use engine::{EngineArgs, LayoutArgs, ModelArgs};
pub use fetch::FetchArgs;
pub use file::FileError;
pub use front::{Admin, FrontArgs, ProcessArgs};
pub use generate::GenerateArgs;
pub use inspect::InspectArgs;
pub use node::{GatewayArgs, PlanArgs, WorkerArgs};
pub use options::{
    EngineOptions, FetchOptions, FrontOptions, GatewayOptions, GenerateOptions, InspectOptions, KvSize,
    ModelSource, NodeOptions, PlacementOptions, PlanOptions, ServeOptions, TraceOptions, WorkerOptions,
};
pub use serve::ServeArgs;
pub use values::{BackendChoice, IsaChoice, Layout, Schedulers, Switch};

pub use crate::backend::routing::Routing;

/// Flags that are each valid and together are not: what is wrong and what to do.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub String);

/// Serves Mixture-of-Experts language models by asynchronous expert parallelism.
#[derive(Debug, Parser)]
#[command(name = "sluice-agent", version, max_term_width = 110, arg_required_else_help = true)]
pub struct Cli {
    /// A TOML file with defaults for the flags of all that serves, and of generate.
    #[arg(long, global = true, env = "SLUICE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How log lines are written, to standard error. What is logged: RUST_LOG, as in RUST_LOG=debug.
    #[arg(
        long,
        global = true,
        env = "SLUICE_LOG_FORMAT",
        value_enum,
        default_value = "text",
        hide_possible_values = true,
        value_name = "text|json"
    )]
    pub log_format: LogFormat,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a model over the OpenAI API.
    #[command(after_help = serve::EXAMPLES)]
    Serve(Box<ServeArgs>),
    /// Run a gateway: the OpenAI API before attention ranks in other processes.
    #[command(after_help = node::EXAMPLES)]
    Gateway(Box<GatewayArgs>),
    /// Run a worker with the attention role, for gateways and experts in other processes.
    #[command(after_help = node::EXAMPLES)]
    Attention(Box<WorkerArgs>),
    /// Run a worker with the expert role, for attention ranks in other processes.
    #[command(after_help = node::EXAMPLES)]
    Experts(Box<WorkerArgs>),
    /// Run a worker with both roles.
    #[command(after_help = node::EXAMPLES)]
    Hybrid(Box<WorkerArgs>),
    /// Print a placement table for a list of workers.
    #[command(after_help = node::PLAN_EXAMPLES)]
    Plan(Box<PlanArgs>),
    /// Download a model from a Hugging Face hub into a directory.
    #[command(after_help = fetch::EXAMPLES)]
    Fetch(FetchArgs),
    /// Answer one prompt on the terminal.
    #[command(after_help = generate::EXAMPLES)]
    Generate(Box<GenerateArgs>),
    /// Measure a server: latency, throughput, and the share of requests served in time.
    #[command(after_help = bench::EXAMPLES)]
    Bench(Box<BenchArgs>),
    /// Look into a model directory: parameters, experts, memory, tensors found and missing.
    #[command(after_help = inspect::EXAMPLES)]
    Inspect(InspectArgs),
}

/// A command line that cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// Wrong flags, or a call for help.
    #[error(transparent)]
    Usage(#[from] clap::Error),
    /// A wrong configuration file.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Parses a command line, with the environment, and with the configuration file that it names.
///
/// # Errors
/// Flags or file are wrong. A call for `--help` or `--version` is an error of clap's too.
pub fn parse(args: &[OsString]) -> Result<Cli, CliError> {
    let mut command = Cli::command();
    if let Some(path) = file::path_of(args, std::env::var_os("SLUICE_CONFIG")) {
        command = file::apply(command, &path)?;
    }
    let matches = command.try_get_matches_from_mut(args)?;
    Ok(Cli::from_arg_matches(&matches).map_err(|e| e.format(&mut command))?)
}
