//! A load generator for any OpenAI-compatible server.
//!
//! It measures what a client sees and nothing else, so two servers compare by the same ruler:
//! - Tokens are counted from `token_ids` (or from `usage`), never from the number of SSE events.
//! - In the open loop a request's clock starts when it was due, not when the client got round to sending it.
//! - A refused request (429, 503) or a failed one is never counted as served, nor are its tokens.

mod arrivals;
mod client;
#[cfg(test)]
mod fake;
mod lengths;
mod options;
mod record;
mod report;
mod run;
mod sse;
mod stats;
mod trace;
mod wire;
mod workload;

pub use client::{Client, ClientError, Target};
pub use lengths::LengthSpec;
pub use options::{BenchOptions, DEFAULT_OUTPUT, End, Endpoint, Load, PromptSpec, Slo};
pub use record::{Failure, Outcome, Record};
pub use report::Report;
pub use run::{BenchError, Progress, run};
pub use sse::Events;
pub use stats::{Summary, percentile};
pub use workload::{Item, Prompt, Workload, WorkloadError};
