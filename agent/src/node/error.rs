//! Why a process cannot serve.

use crate::gateway::{KeysError, ServeError};
use crate::model::ModelError;
use crate::runtime::StartError;
use crate::table::SourceError;
use crate::transport::{SocketError, TlsError};

/// An agent that cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The engine.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The API keys.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The socket for peers of this host.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Where the placement table comes from.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The placement table.
    #[error("{0}")]
    Table(String),
    /// A listener.
    #[error(transparent)]
    Listen(#[from] ServeError),
    /// A defect of ours.
    #[error("the metrics cannot be set up: {0}")]
    Metrics(#[from] prometheus::Error),
    /// A worker failed, and with it the engine.
    #[error("{0}; the engine cannot go on without it")]
    Lost(String),
    /// A thread that ended by itself.
    #[error("a task of the server broke: {0}")]
    Task(#[from] tokio::task::JoinError),
}
