//! Bad input, against the real program: broken model directories, bad requests, more connections than file
//! descriptors, a client that reads nothing. Each has its message and its exit code or status, and leaves nothing held.
//!
//! `cargo test -p sluice-agent --test bad_input -- --nocapture` prints a line for each.

#![allow(clippy::unwrap_used, reason = "a test's own files and processes")]

mod crowd;
mod deaf;
mod http;
mod metrics;
mod models;
mod requests;
mod server;
