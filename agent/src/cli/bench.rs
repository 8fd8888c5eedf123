//! `sluice-agent bench`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::Invalid;
use super::values::{Switch, duration};
use crate::bench::{BenchOptions, End, Endpoint, LengthSpec, Load, PromptSpec, Slo};

pub(super) const EXAMPLES: &str = "\
Examples:
  32 clients, each asking again as soon as it has its answer:
    sluice-agent bench --concurrency 32 --requests 256 --input-len 128 --output-len 64

  Requests that arrive by themselves, 4 a second, and the share of them served in time:
    sluice-agent bench --rate 4 --duration 60s --slo-ttft 500ms --slo-itl 50ms \\
      --input-len lognormal:200,0.8 --output-len lognormal:100,0.6

  Real prompts, through the chat template:
    sluice-agent bench --prompts e2e/traces/prompts.jsonl --endpoint chat --concurrency 8 --requests 100

  Lengths of real conversations, against any OpenAI-compatible server:
    sluice-agent bench --url http://gpu-7:8000 --rate 10 --duration 5m \\
      --input-len trace:e2e/traces/sharegpt_lengths.csv.gz --output-len trace:e2e/traces/sharegpt_lengths.csv.gz

Tokens are counted from the server's token ids (or its usage), not from events. Refused requests (429, 503) and failed
ones are counted apart. With --rate a request's time runs from when it was due.";

/// The flags of `bench`.
#[derive(Args, Clone, Debug)]
pub struct BenchArgs {
    /// The server.
    #[arg(
        long,
        env = "SLUICE_BENCH_URL",
        default_value = "http://127.0.0.1:8080",
        value_name = "URL",
        help_heading = "Server"
    )]
    pub url: String,
    /// The model's name. [default: the first the server lists]
    #[arg(long, value_name = "NAME", help_heading = "Server")]
    pub model: Option<String>,
    /// The API key, sent as a bearer token.
    #[arg(
        long,
        env = "SLUICE_BENCH_API_KEY",
        hide_env_values = true,
        value_name = "KEY",
        help_heading = "Server"
    )]
    pub api_key: Option<String>,
    /// Which API: completions sends the prompt as it is, chat as a user's message.
    #[arg(
        long,
        value_enum,
        default_value = "completions",
        hide_possible_values = true,
        value_name = "completions|chat",
        help_heading = "Server"
    )]
    pub endpoint: Endpoint,
    /// Stream the answers; without, there is no time to the first token.
    #[arg(
        long,
        value_enum,
        default_value = "on",
        hide_possible_values = true,
        value_name = "on|off",
        help_heading = "Server"
    )]
    pub stream: Switch,
    /// How long to wait for a server that does not answer yet.
    #[arg(long, default_value = "0s", value_name = "TIME", value_parser = duration, help_heading = "Server")]
    pub wait: Duration,
    /// A request that takes longer has failed.
    #[arg(long, default_value = "10m", value_name = "TIME", value_parser = duration, help_heading = "Server")]
    pub timeout: Duration,

    /// Closed loop: so many clients, each with one request at a time. With --rate, the most in flight.
    /// [default: 1 without --rate, no limit with it]
    #[arg(long, short = 'c', value_name = "N", help_heading = "Load")]
    pub concurrency: Option<usize>,
    /// Open loop: so many requests per second, with exponential gaps (Poisson arrivals), whether or not the server
    /// keeps up.
    #[arg(long, value_name = "R", help_heading = "Load")]
    pub rate: Option<f64>,
    /// End after so many requests. [default: 100 without --duration]
    #[arg(long, short = 'n', value_name = "M", conflicts_with = "duration", help_heading = "Load")]
    pub requests: Option<u64>,
    /// Start no request after so long; rates are those within this time.
    #[arg(long, value_name = "TIME", value_parser = duration, help_heading = "Load")]
    pub duration: Option<Duration>,
    /// Requests before the run that are not counted.
    #[arg(long, default_value_t = 2, value_name = "N", help_heading = "Load")]
    pub warmup: u64,
    /// Decides prompts, lengths and arrivals.
    #[arg(long, default_value_t = 1, value_name = "SEED", help_heading = "Load")]
    pub seed: u64,

    /// A JSON-lines file with a field `prompt` (a text or an array of token ids) in each line, and `max_tokens` if you
    /// like. Every line is sent once, in an order that the seed decides, before one is sent again.
    #[arg(long, value_name = "FILE", conflicts_with = "input_len", help_heading = "Requests")]
    pub prompts: Option<PathBuf>,
    /// Random prompts of this length in tokens: N, uniform:A,B, lognormal:MEAN,SIGMA or trace:FILE. [default: 128]
    #[arg(long, value_name = "LENGTH", help_heading = "Requests")]
    pub input_len: Option<LengthSpec>,
    /// Random prompts are of token ids below this.
    #[arg(
        long,
        default_value_t = 1000,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..),
        help_heading = "Requests"
    )]
    pub vocabulary: u32,
    /// Tokens to ask for: N, uniform:A,B, lognormal:MEAN,SIGMA or trace:FILE. [default: the field `max_tokens` of the
    /// prompt's line, or 64]
    #[arg(long, value_name = "LENGTH", help_heading = "Requests")]
    pub output_len: Option<LengthSpec>,
    /// Cut random prompts and outputs so that both together are at most so long (the model's context).
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(2..),
        help_heading = "Requests"
    )]
    pub max_total: Option<u32>,
    /// Bytes per token of a trace file that has lengths in bytes.
    #[arg(long, default_value_t = 4.0, value_name = "X", help_heading = "Requests")]
    pub bytes_per_token: f64,
    /// Let the model end an answer early instead of asking for `ignore_eos`.
    #[arg(long, help_heading = "Requests")]
    pub allow_eos: bool,
    /// Sampling temperature; 0 is greedy.
    #[arg(long, default_value_t = 0.0, value_name = "T", help_heading = "Requests")]
    pub temperature: f64,
    /// Further fields of each request, as in '{"top_p": 0.9}'. They win over those from flags.
    #[arg(long, value_name = "JSON", help_heading = "Requests")]
    pub extra: Option<String>,

    /// A request is good if its first token came within this.
    #[arg(long, value_name = "TIME", value_parser = duration, help_heading = "Result")]
    pub slo_ttft: Option<Duration>,
    /// A request is good if the mean time between its tokens is within this.
    #[arg(long, value_name = "TIME", value_parser = duration, help_heading = "Result")]
    pub slo_itl: Option<Duration>,
    /// Also write the result as JSON (- for standard output, instead of the table).
    #[arg(long, value_name = "FILE", help_heading = "Result")]
    pub json: Option<PathBuf>,
    /// No progress bar.
    #[arg(long, short, help_heading = "Result")]
    pub quiet: bool,
}

impl BenchArgs {
    /// Checks what one flag alone cannot tell.
    ///
    /// # Errors
    /// What is wrong and what to do.
    pub fn check(&self) -> Result<BenchOptions, Invalid> {
        if self.concurrency == Some(0) {
            return Err(Invalid("--concurrency 0 would never send a request".into()));
        }
        let load = match self.rate {
            None => Load::Closed { concurrency: self.concurrency.unwrap_or(1) },
            Some(rate) if rate > 0.0 && rate.is_finite() => Load::Open { rate, limit: self.concurrency },
            Some(rate) => return Err(Invalid(format!("--rate {rate} is not a number over 0"))),
        };
        let extra = match self.extra.as_deref().map(serde_json::from_str) {
            None => serde_json::Map::new(),
            Some(Ok(serde_json::Value::Object(map))) => map,
            Some(Ok(_)) => {
                return Err(Invalid("--extra is not a JSON object; write '{\"top_p\": 0.9}'".into()));
            }
            Some(Err(e)) => return Err(Invalid(format!("--extra is not valid JSON: {e}"))),
        };
        if !(self.bytes_per_token > 0.0 && self.bytes_per_token.is_finite()) {
            return Err(Invalid(format!(
                "--bytes-per-token {} is not a number over 0",
                self.bytes_per_token
            )));
        }
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(Invalid(format!("--temperature {} is not a number of at least 0", self.temperature)));
        }
        let prompts = match &self.prompts {
            Some(path) => PromptSpec::File(path.clone()),
            None => PromptSpec::Random {
                lengths: self.input_len.clone().unwrap_or(LengthSpec::Fixed(128)),
                vocabulary: self.vocabulary,
            },
        };
        Ok(BenchOptions {
            url: self.url.clone(),
            model: self.model.clone(),
            api_key: self.api_key.clone(),
            endpoint: self.endpoint,
            stream: self.stream.is_on(),
            load,
            end: match self.duration {
                Some(time) => End::After(time),
                None => End::Requests(self.requests.unwrap_or(100)),
            },
            warmup: self.warmup,
            prompts,
            output: self.output_len.clone(),
            max_total: self.max_total,
            bytes_per_token: self.bytes_per_token,
            allow_eos: self.allow_eos,
            temperature: self.temperature,
            extra,
            timeout: self.timeout,
            wait: self.wait,
            slo: Slo { ttft: self.slo_ttft, itl: self.slo_itl },
            seed: self.seed,
        })
    }
}
