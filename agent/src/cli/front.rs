//! The flags of the OpenAI-compatible front, and those that every process has.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::Invalid;
use super::options::{FrontOptions, TraceOptions};
use super::values::{bytes, duration};

/// What every process has.
#[derive(Args, Clone, Debug)]
pub struct ProcessArgs {
    /// Where /healthz, /readyz, /metrics and /v1/pressure are (the last, with --tls DIR, is on --peer-listen instead). Keep
    /// it from clients. `off` for none.
    #[arg(
        long,
        env = "SLUICE_ADMIN_LISTEN",
        default_value = "127.0.0.1:9090",
        value_name = "ADDR",
        value_parser = admin_address,
        help_heading = "Network"
    )]
    pub admin_listen: Admin,
    /// On SIGTERM or Ctrl-C no new request is taken, and those that run have so long to finish.
    #[arg(
        long,
        env = "SLUICE_SHUTDOWN_GRACE",
        default_value = "30s",
        value_name = "TIME",
        value_parser = duration,
        help_heading = "Limits"
    )]
    pub shutdown_grace: Duration,
}

/// The admin listener's address, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admin(pub Option<SocketAddr>);

fn admin_address(s: &str) -> Result<Admin, String> {
    if s == "off" {
        return Ok(Admin(None));
    }
    s.parse().map(|a| Admin(Some(a))).map_err(|e| format!("{e}; write HOST:PORT with a numeric host, or off"))
}

/// The front.
#[derive(Args, Clone, Debug)]
pub struct FrontArgs {
    /// The name clients call the model by. [default: the name of its directory]
    #[arg(long, env = "SLUICE_SERVED_MODEL_NAME", value_name = "NAME", help_heading = "Model")]
    pub served_model_name: Option<String>,

    /// Where clients connect (OpenAI API under /v1). Port 0 takes a free one.
    #[arg(
        long,
        env = "SLUICE_LISTEN",
        default_value = "127.0.0.1:8080",
        value_name = "ADDR",
        help_heading = "Network"
    )]
    pub listen: SocketAddr,
    /// A file of API keys, one a line (# begins a comment); or a directory, as a Secret is mounted, whose files have one
    /// key each. Read again when they change. Without it no key is asked for.
    #[arg(long, env = "SLUICE_API_KEY_FILE", value_name = "FILE|DIR", help_heading = "Network")]
    pub api_key_file: Option<PathBuf>,

    /// Longest request body; larger ones get 413.
    #[arg(
        long,
        env = "SLUICE_MAX_BODY",
        default_value = "4MiB",
        value_name = "SIZE",
        value_parser = bytes,
        help_heading = "Limits"
    )]
    pub max_body: u64,
    /// Longest prompt, in tokens; longer ones get 400. [default: what the model's context leaves]
    #[arg(
        long,
        env = "SLUICE_MAX_PROMPT_TOKENS",
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..),
        help_heading = "Limits"
    )]
    pub max_prompt_tokens: Option<u32>,
    /// Longest JSON schema, regular expression or grammar of structured output; longer ones get 400.
    #[arg(
        long,
        env = "SLUICE_MAX_SCHEMA",
        default_value = "256KiB",
        value_name = "SIZE",
        value_parser = bytes,
        help_heading = "Limits"
    )]
    pub max_schema: u64,
    /// Stop strings of one request.
    #[arg(
        long,
        env = "SLUICE_MAX_STOPS",
        default_value_t = 16,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(..=1024),
        help_heading = "Limits"
    )]
    pub max_stops: u32,
    /// Requests in flight; beyond that they get 429 with Retry-After.
    #[arg(
        long,
        env = "SLUICE_MAX_CONCURRENCY",
        default_value_t = 4096,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..),
        help_heading = "Limits"
    )]
    pub max_concurrency: u32,
    /// Sequences that wait for an attention rank; beyond that they get 429 with Retry-After.
    #[arg(
        long,
        env = "SLUICE_MAX_QUEUE",
        default_value_t = 1024,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..),
        help_heading = "Limits"
    )]
    pub max_queue: u32,
    /// Client connections at one time; the operating system's limit on open files bounds it too.
    #[arg(
        long,
        env = "SLUICE_MAX_CONNECTIONS",
        default_value_t = 8192,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..),
        help_heading = "Limits"
    )]
    pub max_connections: u32,
    /// Choices of one request, over all its prompts; no more than may wait (--max-queue).
    #[arg(
        long,
        env = "SLUICE_MAX_CHOICES",
        default_value_t = 16,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=1024),
        help_heading = "Limits"
    )]
    pub max_choices: u32,
    /// Deadline of every request, which a client can shorten (`timeout`, x-request-timeout) but not extend; past it the
    /// client gets an error. `0s` for the longest there is, 24 hours.
    #[arg(
        long,
        env = "SLUICE_REQUEST_TIMEOUT",
        default_value = "10m",
        value_name = "TIME",
        value_parser = duration,
        help_heading = "Limits"
    )]
    pub request_timeout: Duration,
    /// A client that takes nothing of its answer for so long is let go, and what it asked for is cancelled.
    #[arg(
        long,
        env = "SLUICE_WRITE_TIMEOUT",
        default_value = "60s",
        value_name = "TIME",
        value_parser = duration,
        help_heading = "Limits"
    )]
    pub write_timeout: Duration,

    /// Share of requests whose way is traced (spans of the request and of its tokens), 0 to 1. Others leave no span.
    #[arg(
        long,
        env = "SLUICE_TRACE_SAMPLE",
        default_value_t = 0.0,
        value_name = "SHARE",
        help_heading = "Logs and traces"
    )]
    pub trace_sample: f64,
    /// Send traces to an OpenTelemetry collector (OTLP over HTTP), as in http://127.0.0.1:4318. Needs a build with
    /// the feature `otlp`; without an endpoint spans go to the log.
    #[arg(long, env = "SLUICE_OTLP_ENDPOINT", value_name = "URL", help_heading = "Logs and traces")]
    pub otlp_endpoint: Option<String>,

    /// What every process has.
    #[command(flatten)]
    pub process: ProcessArgs,
}

impl FrontArgs {
    /// Checks what one flag alone cannot tell.
    pub(super) fn check(&self) -> Result<(FrontOptions, TraceOptions), Invalid> {
        if !(0.0..=1.0).contains(&self.trace_sample) {
            return Err(Invalid(format!("--trace-sample {} is not between 0 and 1", self.trace_sample)));
        }
        if self.otlp_endpoint.is_some() && cfg!(not(feature = "otlp")) {
            return Err(Invalid(
                "--otlp-endpoint: this build has no OTLP export; build with --features otlp, or leave it out"
                    .into(),
            ));
        }
        if self.write_timeout.is_zero() {
            return Err(Invalid(
                "--write-timeout 0s: no answer could ever be written; give at least 1ms".into(),
            ));
        }
        if self.process.admin_listen.0 == Some(self.listen) && self.listen.port() != 0 {
            return Err(Invalid(format!(
                "--listen and --admin-listen are both {}: give the admin listener a port of its own",
                self.listen
            )));
        }
        if self.max_choices > self.max_queue {
            return Err(Invalid(format!(
                "--max-choices {} is more than --max-queue {}: a request with so many choices would never find room; \
                 raise --max-queue or lower --max-choices",
                self.max_choices, self.max_queue
            )));
        }
        let front = FrontOptions {
            listen: self.listen,
            admin_listen: self.process.admin_listen.0,
            served_model_name: self.served_model_name.clone(),
            api_key_file: self.api_key_file.clone(),
            max_body: self.max_body,
            max_prompt_tokens: self.max_prompt_tokens,
            max_schema: self.max_schema,
            max_stops: self.max_stops,
            max_concurrency: self.max_concurrency,
            max_queue: self.max_queue,
            max_connections: self.max_connections,
            max_choices: self.max_choices,
            request_timeout: Some(self.request_timeout).filter(|t| !t.is_zero()),
            write_timeout: self.write_timeout,
            shutdown_grace: self.process.shutdown_grace,
        };
        let traces = TraceOptions { sample: self.trace_sample, otlp_endpoint: self.otlp_endpoint.clone() };
        Ok((front, traces))
    }
}
