//! The OpenAI-compatible front of a deployment.
//!
//! | file | subject |
//! | --- | --- |
//! | `server`, `sniff`, `admin` | listeners, connections, shutdown |
//! | `http`, `body`, `auth`, `keys`, `error` | routes, limits, who asks, what went wrong |
//! | `chat`, `completions`, `tokenize`, `models` | one endpoint each |
//! | `params`, `structured`, `tools` | what a request may say |
//! | `work`, `generate`, `output`, `choice`, `stops`, `logprobs`, `answer`, `sse` | from a prompt to what the client is shown |
//! | `engine`, `text`, `observe` | what the gateway needs of others |

mod admin;
mod answer;
mod auth;
mod body;
mod chat;
mod choice;
mod completions;
mod config;
mod engine;
mod error;
mod generate;
mod http;
mod keys;
mod logprobs;
mod models;
mod observe;
mod output;
mod params;
mod server;
mod sniff;
mod sse;
mod stops;
mod structured;
#[cfg(test)]
mod tests;
mod text;
mod tokenize;
mod tools;
mod work;

pub use admin::{Admin, admin_router};
pub use auth::{Caller, Keys};
pub use config::{GenerationDefaults, Limits, ServedModel, Timeouts};
pub use engine::{Engine, EventSink, EventSource, Generate, Gone, SeqEvent, events};
pub use error::ApiError;
pub use generate::Gateway;
pub use http::router;
pub use keys::KeysError;
pub use observe::{Observer, Silent, TRACED};
#[cfg(any(test, fuzzing))]
pub(crate) use server::serve_stream;
pub use server::{ServeConfig, ServeError, connection_budget, serve};
pub use text::{Conversation, Detokenizer, TextError, TextModel};
