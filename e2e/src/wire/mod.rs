//! The product's own transport over loopback, between two processes, beside iperf3.
//!
//! A *rank* process sends batches of tokens to a *host* process, which writes their rows into the rank's landing ring
//! and gives the credits back, both as a worker's thread does: everything between is `agent/src/transport` as it is
//! served. Only what the rows are for, the model, is left out.

mod connect;
mod door;
mod flow;
mod host;
mod iperf;
mod processes;
mod rank;
mod report;
mod stats;

pub use connect::{Setup, Via};
pub use flow::{Flow, Load};
pub use host::host;
pub use rank::{Task, rank};
pub use report::Report;
