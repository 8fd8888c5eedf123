//! What a run of the load generator is told.

use std::path::PathBuf;
use std::time::Duration;

use super::lengths::LengthSpec;

/// Which of the two generating endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Endpoint {
    /// `/v1/completions`: the prompt as it is, or token ids.
    Completions,
    /// `/v1/chat/completions`: the prompt as a user's message.
    Chat,
}

/// When requests are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Load {
    /// So many clients, each sending its next request when the last is over.
    Closed {
        /// Clients.
        concurrency: usize,
    },
    /// Poisson arrivals.
    Open {
        /// Requests per second.
        rate: f64,
        /// Requests in flight at most; later ones wait in the client, and the wait counts as latency.
        limit: Option<usize>,
    },
}

/// When the run ends. What is in flight then is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// After so many requests.
    Requests(u64),
    /// No request is started after so long.
    After(Duration),
}

/// Where prompts come from.
#[derive(Clone, Debug, PartialEq)]
pub enum PromptSpec {
    /// A JSON-lines file, field `prompt`: a text or an array of token ids; and, if wanted, `max_tokens`. Every line is
    /// used once, in an order that the seed decides, before one is used again.
    File(PathBuf),
    /// Random token ids below `vocabulary`.
    Random {
        /// How many per prompt.
        lengths: LengthSpec,
        /// One more than the largest id.
        vocabulary: u32,
    },
}

/// Latency objectives of goodput.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slo {
    /// Time to the first token, at most.
    pub ttft: Option<Duration>,
    /// Mean time between a request's tokens, at most.
    pub itl: Option<Duration>,
}

impl Slo {
    /// Whether there is any objective.
    pub fn is_set(&self) -> bool {
        self.ttft.is_some() || self.itl.is_some()
    }
}

/// Tokens asked for when nothing else says.
pub const DEFAULT_OUTPUT: u32 = 64;

/// All of `sluice-agent bench`.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// The server, with or without a trailing `/v1`.
    pub url: String,
    /// The model's name; `None`: the first the server lists.
    pub model: Option<String>,
    /// Sent as a bearer token.
    pub api_key: Option<String>,
    /// The endpoint.
    pub endpoint: Endpoint,
    /// Whether answers are streamed. Without, there is no time to the first token.
    pub stream: bool,
    /// When requests are sent.
    pub load: Load,
    /// When the run ends.
    pub end: End,
    /// Requests before the run that are not counted.
    pub warmup: u64,
    /// The prompts.
    pub prompts: PromptSpec,
    /// Tokens asked for per request; `None`: what each line of the file of prompts says, else [`DEFAULT_OUTPUT`].
    pub output: Option<LengthSpec>,
    /// Prompt and output together are cut to so many tokens.
    pub max_total: Option<u32>,
    /// Bytes of a trace file's text per token.
    pub bytes_per_token: f64,
    /// Let the model end an answer before the length asked for.
    pub allow_eos: bool,
    /// Sampling temperature.
    pub temperature: f64,
    /// Further fields of the request, a JSON object.
    pub extra: serde_json::Map<String, serde_json::Value>,
    /// A request that takes longer has failed.
    pub timeout: Duration,
    /// How long to wait for the server to answer at all.
    pub wait: Duration,
    /// The objectives.
    pub slo: Slo,
    /// Decides prompts, lengths and arrivals.
    pub seed: u64,
}
