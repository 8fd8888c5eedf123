//! What the flags amount to, checked: plain data for the run time and the gateway.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sluice_core::hello::{Role, WireVersions};

use super::values::{BackendChoice, IsaChoice, Layout, Schedulers};
use crate::backend::routing::Routing;

/// Which model to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// The model that comes with the program.
    Bundled,
    /// A Hugging Face model directory.
    Directory(PathBuf),
}

/// Room for keys and values, per attention rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvSize {
    /// Enough for as many full-length sequences as memory sensibly allows; the engine decides.
    Auto,
    /// So many tokens.
    Tokens(u64),
    /// So many bytes.
    Bytes(u64),
}

/// The engine: everything between a bound sequence and its tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineOptions {
    /// Where attention and experts run.
    pub layout: Layout,
    /// Workers with the attention role, at least 1.
    pub attention_ranks: u32,
    /// Workers with the expert role, at least 1; with [`Layout::Hybrid`] the same workers.
    pub expert_workers: u32,
    /// Replicas of every unit, on different workers.
    pub replicas: u32,
    /// Segments of an expert's inner dimension: 1, 2, 4 or 8. Part of the numerics id.
    pub segments: u8,
    /// Slices an expert is held in; divides `segments`.
    pub slices: u8,
    /// The schedulers.
    pub schedulers: Schedulers,
    /// Decode waves.
    pub waves: u8,
    /// Most tokens of a prefill segment.
    pub prefill_chunk: u32,
    /// Most prefill tokens under way per rank.
    pub prefill_tokens: u32,
    /// Token budget of an attention step.
    pub max_step_tokens: u32,
    /// Row budget of an expert step.
    pub max_expert_rows: u32,
    /// Sequences per rank at one time.
    pub max_sequences: u32,
    /// A μ-queue whose oldest token waited so many cycles is released whole.
    pub release_cycles: u32,
    /// Whether a worker that holds whole blocks runs them as spans.
    pub spans: bool,
    /// Room for keys and values.
    pub kv: KvSize,
    /// Tokens per KV page.
    pub page_size: u32,
    /// Whether prompts share the pages of equal prefixes.
    pub prefix_cache: bool,
    /// What runs the steps.
    pub backend: BackendChoice,
    /// Compute threads in all; `None`: one per core.
    pub threads: Option<u32>,
    /// The instruction set.
    pub isa: IsaChoice,
    /// Who chooses the experts.
    pub routing: Routing,
}

impl EngineOptions {
    /// Workers in the process.
    pub const fn workers(&self) -> u32 {
        match self.layout {
            Layout::Disaggregated => self.attention_ranks + self.expert_workers,
            Layout::Hybrid => self.attention_ranks,
        }
    }
}

/// The OpenAI-compatible front.
#[derive(Clone, Debug, PartialEq)]
pub struct FrontOptions {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where health, metrics and pressure are; `None`: nowhere.
    pub admin_listen: Option<SocketAddr>,
    /// The name clients call the model by; `None`: the directory's name.
    pub served_model_name: Option<String>,
    /// A file of API keys, one a line, or a directory of files with one each; `None`: no key is asked for.
    pub api_key_file: Option<PathBuf>,
    /// Longest request body, in bytes.
    pub max_body: u64,
    /// Longest prompt, in tokens; `None`: what the model's context leaves.
    pub max_prompt_tokens: Option<u32>,
    /// Longest schema or grammar of structured output, in bytes.
    pub max_schema: u64,
    /// Stop strings of one request.
    pub max_stops: u32,
    /// Requests in flight; beyond that, 429.
    pub max_concurrency: u32,
    /// Sequences that wait for a rank; beyond that, 429.
    pub max_queue: u32,
    /// Client connections.
    pub max_connections: u32,
    /// Choices of one request, over all its prompts; no more than `max_queue`.
    pub max_choices: u32,
    /// Deadline of every request, which a client can only shorten; `None`: the longest there is.
    pub request_timeout: Option<Duration>,
    /// How long a client may take nothing of its answer.
    pub write_timeout: Duration,
    /// At shutdown, how long running requests may take to finish.
    pub shutdown_grace: Duration,
}

/// Traces of requests and tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceOptions {
    /// Share of requests that get spans, 0 to 1.
    pub sample: f64,
    /// Where spans are sent (OTLP over HTTP); `None`: to the log.
    pub otlp_endpoint: Option<String>,
}

/// All of `sluice-agent serve`.
#[derive(Clone, Debug, PartialEq)]
pub struct ServeOptions {
    /// The model.
    pub model: ModelSource,
    /// The engine.
    pub engine: EngineOptions,
    /// The front.
    pub front: FrontOptions,
    /// Traces.
    pub traces: TraceOptions,
}

/// Where the placement table comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlacementOptions {
    /// A file.
    File(PathBuf),
    /// The ExpertPlacements of a MoEDeployment.
    Watched {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The cohort of the workers that count; `None`: all of them.
        cohort: Option<String>,
        /// Where the last table is kept; `None`: nowhere.
        cache: Option<PathBuf>,
    },
}

impl PlacementOptions {
    /// The file that has the table, or its copy.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File(file) => Some(file),
            Self::Watched { cache, .. } => cache.as_deref(),
        }
    }
}

/// A process of a deployment of several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeOptions {
    /// Its name, the same over restarts.
    pub name: String,
    /// `NAMESPACE/NAME` of the deployment.
    pub deployment: String,
    /// Where the placement table comes from.
    pub placement: PlacementOptions,
    /// The directory of the certificates; `None`: no TLS.
    pub tls: Option<PathBuf>,
    /// The versions of the wire that it speaks.
    pub wire: WireVersions,
    /// The directory of Unix sockets between processes of this host; `None`: TCP only.
    pub sockets: Option<PathBuf>,
}

/// All of `sluice-agent attention`, `experts` and `hybrid`.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerOptions {
    /// The process.
    pub node: NodeOptions,
    /// What it does.
    pub role: Role,
    /// The model.
    pub model: ModelSource,
    /// The engine, of one worker.
    pub engine: EngineOptions,
    /// Where peers and gateways connect.
    pub peer_listen: SocketAddr,
    /// Where health, metrics and pressure are; `None`: nowhere.
    pub admin_listen: Option<SocketAddr>,
    /// Units it has room for; `None`: as many as the table gives it at the start, and half of that again, or as memory
    /// allows if it gives none.
    pub slots: Option<u32>,
    /// The most slices that a rank asks for an expert in; `None`: as many as the table has at the start.
    pub slices: Option<u8>,
    /// Attention ranks that it has landing rows for.
    pub max_ranks: u32,
    /// At shutdown, how long what is held may take to finish.
    pub shutdown_grace: Duration,
}

/// All of `sluice-agent gateway`.
#[derive(Clone, Debug, PartialEq)]
pub struct GatewayOptions {
    /// The process.
    pub node: NodeOptions,
    /// The model, of which it reads tokenizer and configuration only.
    pub model: ModelSource,
    /// Where pressure and placement are, for who has a certificate of the deployment; `None`: nowhere.
    pub peer_listen: Option<SocketAddr>,
    /// The front.
    pub front: FrontOptions,
    /// Traces.
    pub traces: TraceOptions,
}

/// All of `sluice-agent plan`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanOptions {
    /// The model.
    pub model: ModelSource,
    /// A table with the workers; its slices, if it has any, are planned anew with higher generations.
    pub workers: PathBuf,
    /// Copies of every expert.
    pub replicas: u32,
    /// Slices an expert is cut into.
    pub slices: u8,
    /// Segments of an expert's inner dimension.
    pub segments: u8,
    /// Slots per worker; `None`: as many as are needed.
    pub slots: Option<u32>,
}

/// All of `sluice-agent generate`.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateOptions {
    /// The model.
    pub model: ModelSource,
    /// The engine.
    pub engine: EngineOptions,
    /// What the user typed; `None`: standard input.
    pub prompt: Option<String>,
    /// A system message before it.
    pub system: Option<String>,
    /// Continue the text as it is, without the chat template.
    pub raw: bool,
    /// Tokens to produce at most.
    pub max_tokens: u32,
    /// 0: greedy.
    pub temperature: f32,
    /// Nucleus sampling.
    pub top_p: f32,
    /// Decides the draws; `None`: a new one.
    pub seed: Option<u64>,
    /// No progress bars, no summary: the text only.
    pub quiet: bool,
}

/// All of `sluice-agent fetch`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchOptions {
    /// `OWNER/NAME`.
    pub repository: String,
    /// A branch, a tag or a commit.
    pub revision: String,
    /// The hub.
    pub endpoint: String,
    /// A file with the token that it wants; `None`: everybody may read the repository.
    pub token_file: Option<PathBuf>,
    /// The model directory.
    pub out: PathBuf,
}

/// All of `sluice-agent inspect`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InspectOptions {
    /// The model.
    pub model: ModelSource,
    /// Machine-readable.
    pub json: bool,
    /// The GPUs of this machine, in place of a model.
    pub devices: bool,
}
