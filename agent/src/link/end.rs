//! How connections and sessions end.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use sluice_core::session::{SessionError, SessionId};

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum End {
    /// Its session goes on over the next one.
    #[error("the connection ended: {0}")]
    Broken(#[from] Broken),
    /// So did its session.
    #[error("the session is over: {0}")]
    Lost(Arc<Lost>),
}

/// What ended a connection, and only that.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// As a process that leaves, or dies, does.
    #[error("the peer closed it")]
    Closed,
    /// The network.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// No heartbeat came.
    #[error("nothing was heard for {0:?}")]
    Silent(Duration),
    /// The peer connected and said nothing.
    #[error("no session was opened on it within {0:?}")]
    Opening(Duration),
    /// The peer dialled again before this side knew that the old connection is dead.
    #[error("a newer one of the same session took its place")]
    Superseded,
}

/// What ended a session.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// What the peer said makes no sense.
    #[error("{0}; both sides must be of builds that speak the same version of the wire")]
    Garbage(#[from] Garbage),
    /// The two sides do not agree on what was said, or too much was left unacknowledged.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// It was started anew, or its lease lapsed.
    #[error("the rank knows nothing of it: it was started anew, or the lease has lapsed")]
    Unknown,
    /// Nobody is there any more.
    #[error("the connection was refused: {0}")]
    Refused(String),
    /// Nobody answers.
    #[error("it could not be resumed within {patience:?}: {why}")]
    Unreachable {
        /// For how long it was tried.
        patience: Duration,
        /// What came of the last try.
        why: String,
    },
    /// The gateway was silent for too long.
    #[error("the gateway was not heard for the {0:?} of its lease")]
    Lapsed(Duration),
    /// The gateway has begun another.
    #[error("the gateway has opened {0} instead")]
    Replaced(SessionId),
    /// A message that no peer would take.
    #[error("a message of {length} bytes cannot be sent, a peer takes {most} at most")]
    Long {
        /// Its bytes.
        length: usize,
        /// The most there may be.
        most: usize,
    },
}

/// Bytes that are no message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Garbage {
    /// Longer than any can be.
    #[error("the peer announced a message of {length} bytes, and none has more than {most}")]
    Long {
        /// What was announced.
        length: usize,
        /// The most there may be.
        most: usize,
    },
    /// Too short to have a number.
    #[error("the peer sent a message of {length} bytes, and none has fewer than {least}")]
    Short {
        /// Its bytes.
        length: usize,
        /// The least there must be.
        least: usize,
    },
    /// A heartbeat with something behind it.
    #[error("the peer sent a heartbeat with {length} bytes behind it")]
    Beat {
        /// How many.
        length: usize,
    },
    /// Not what was due.
    #[error("the peer sent {length} bytes that are no {what}: {why}")]
    Message {
        /// What was due.
        what: &'static str,
        /// How many bytes.
        length: usize,
        /// What is wrong with them.
        why: String,
    },
}

impl From<Lost> for End {
    fn from(lost: Lost) -> Self {
        Self::Lost(Arc::new(lost))
    }
}

impl From<Garbage> for End {
    fn from(garbage: Garbage) -> Self {
        Lost::from(garbage).into()
    }
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Broken::from(error).into()
    }
}
