//! What a gateway is told at its start.

use std::time::Duration;

/// Bounds on what clients may ask, and on what they may hold.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// Prompts of one completion request.
    pub prompts: usize,
    /// Choices of one request, over all its prompts.
    pub choices: usize,
    /// Stop strings.
    pub stops: usize,
    /// Bytes of one stop string.
    pub stop_bytes: usize,
    /// The most probable tokens a client may ask for beside the drawn one.
    pub top_logprobs: u32,
    /// Entries of `logit_bias`.
    pub logit_bias: usize,
    /// Tools of one request.
    pub tools: usize,
    /// Tokens of a prompt, if less than the model's context.
    pub prompt_tokens: Option<usize>,
    /// Requests at one time: beyond that 429.
    pub requests: usize,
    /// Connections at one time, further bounded by the file descriptors of the process: beyond that the kernel's
    /// backlog waits.
    pub connections: usize,
    /// Tokens a client may be behind before its request is cancelled.
    pub backlog: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 8 << 20,
            prompts: 256,
            choices: 256,
            stops: 16,
            stop_bytes: 1024,
            top_logprobs: 20,
            logit_bias: 1024,
            tools: 128,
            prompt_tokens: None,
            requests: 2048,
            connections: 16_384,
            backlog: 4096,
        }
    }
}

/// How long things may take.
#[derive(Clone, Debug)]
pub struct Timeouts {
    /// From a connection's beginning to its first request's headers.
    pub header: Duration,
    /// From the headers to the end of the body.
    pub body: Duration,
    /// A connection between two requests.
    pub idle: Duration,
    /// A client that takes nothing of what is written to it.
    pub write: Duration,
    /// A request that asks for no deadline.
    pub request: Duration,
    /// The longest deadline a request may ask for.
    pub longest: Duration,
    /// Before a stream that has no token yet begins with a comment: until then a refusal has a status of its own.
    pub first: Duration,
    /// Between comments on a stream without tokens.
    pub heartbeat: Duration,
    /// From the signal to stop until what still runs is cut.
    pub drain: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            header: Duration::from_secs(10),
            body: Duration::from_secs(60),
            idle: Duration::from_secs(120),
            write: Duration::from_secs(60),
            request: Duration::from_secs(1800),
            longest: Duration::from_secs(24 * 3600),
            first: Duration::from_secs(5),
            heartbeat: Duration::from_secs(15),
            drain: Duration::from_secs(300),
        }
    }
}

/// Sampling parameters for requests that say nothing of them: generation_config.json's, else OpenAI's.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationDefaults {
    /// Divides the logits.
    pub temperature: Option<f32>,
    /// The mass of the most probable tokens.
    pub top_p: Option<f32>,
    /// The most probable tokens; 0 for all.
    pub top_k: Option<u32>,
    /// Tokens at least this probable relative to the most probable.
    pub min_p: Option<f32>,
    /// Of prompt and output.
    pub repetition_penalty: Option<f32>,
    /// Tokens to produce at most.
    pub max_tokens: Option<u32>,
}

/// The model behind the gateway.
#[derive(Clone, Debug)]
pub struct ServedModel {
    /// Names a request may use; the first is the one answers carry.
    pub names: Vec<String>,
    /// Positions of a sequence, prompt and completion together.
    pub context: usize,
    /// Token ids are in `0..vocab`.
    pub vocab: usize,
    /// Ids that end an output unless `ignore_eos`.
    pub eos: Vec<u32>,
    /// From generation_config.json.
    pub defaults: GenerationDefaults,
    /// Seconds since 1970, for `/v1/models`.
    pub created: u64,
}

impl ServedModel {
    /// The name answers carry.
    pub fn name(&self) -> &str {
        self.names.first().map_or("model", String::as_str)
    }
}
