//! A conversation that outlives its connections: every message arrives once and in order, whatever breaks below it.
//!
//! Each side numbers its messages from 1 and keeps them until the other has said that it has them; that word travels
//! beside whatever else is said. A new connection begins with both sides naming what they have, and goes on there.
//! Nothing here knows what a connection is: the driver sends what [`Session::give`] gives, in that order, and each side
//! reads what it is sent in order.

mod opening;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt;

pub use opening::Opening;

/// Names a session. Of two sessions of one peer the greater is the newer, so that what is left of an old connection
/// never ends the session that came after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId {
    /// Of the process that opens sessions.
    pub incarnation: u64,
    /// Of the sessions that this incarnation opens with one peer.
    pub number: u64,
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "session {} of incarnation {}", self.number, self.incarnation)
    }
}

/// What a session keeps for a peer that does not acknowledge, at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionLimits {
    /// Messages.
    pub messages: usize,
    /// Their bytes.
    pub bytes: usize,
}

/// Why a session cannot go on. Whatever it is, the session is lost as a whole: a gap in it would be a silent one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// The peer does not keep up, or has been away for too long.
    #[error(
        "the peer has not acknowledged {messages} messages of {bytes} bytes in all, and no more are kept: it is too slow, or was away for too long"
    )]
    Full {
        /// Messages kept.
        messages: usize,
        /// Bytes kept.
        bytes: usize,
    },
    /// A message is missing.
    #[error("message {number} came, and {due} is the next: the peer left some out")]
    Gap {
        /// Its number.
        number: u64,
        /// The number that was due.
        due: u64,
    },
    /// The peer says it has what it was never sent.
    #[error("the peer says it has messages up to {has}, and was sent those up to {sent}")]
    Ahead {
        /// What it says.
        has: u64,
        /// What it was sent.
        sent: u64,
    },
    /// The peer has lost what it acknowledged.
    #[error(
        "the peer says it has messages up to {has}, and had acknowledged those up to {freed}: it lost some"
    )]
    Behind {
        /// What it says.
        has: u64,
        /// What it had acknowledged.
        freed: u64,
    },
}

/// What to do with a message that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// Deal with it.
    New,
    /// It came before: drop it.
    Duplicate,
}

/// One side of a session.
#[derive(Clone, Debug)]
pub struct Session<T> {
    limits: SessionLimits,
    /// Not acknowledged, the oldest first, each with its bytes.
    kept: VecDeque<(T, usize)>,
    bytes: usize,
    /// Number of the newest that was acknowledged: the oldest kept is the one after it.
    freed: u64,
    /// Number of the newest that was given to the connection there is.
    given: u64,
    /// Number of the newest that was ever given to one.
    sent: u64,
    /// Number of the newest that came.
    has: u64,
}

impl<T> Session<T> {
    /// In which nothing was said.
    pub fn new(limits: SessionLimits) -> Self {
        Self { limits, kept: VecDeque::new(), bytes: 0, freed: 0, given: 0, sent: 0, has: 0 }
    }

    /// Takes a message to send.
    ///
    /// # Errors
    /// Too much is kept: the session is lost.
    pub fn push(&mut self, message: T, bytes: usize) -> Result<(), SessionError> {
        if self.kept.len() >= self.limits.messages || self.bytes.saturating_add(bytes) > self.limits.bytes {
            return Err(SessionError::Full { messages: self.kept.len(), bytes: self.bytes });
        }
        self.kept.push_back((message, bytes));
        self.bytes += bytes;
        Ok(())
    }

    /// The next message for the connection there is, and its number.
    pub fn give(&mut self) -> Option<(u64, &T)> {
        let (message, _) = self.kept.get(usize::try_from(self.given - self.freed).ok()?)?;
        self.given += 1;
        self.sent = self.sent.max(self.given);
        Some((self.given, message))
    }

    /// Number of the newest message that came: what the peer is to be told.
    pub fn has(&self) -> u64 {
        self.has
    }

    /// A message came.
    ///
    /// # Errors
    /// One before it is missing: the session is lost.
    pub fn receive(&mut self, number: u64) -> Result<Arrival, SessionError> {
        let due = self.has + 1;
        if number > due {
            return Err(SessionError::Gap { number, due });
        }
        if number < due {
            return Ok(Arrival::Duplicate);
        }
        self.has = number;
        Ok(Arrival::New)
    }

    /// The peer has the messages up to this one: they are kept no longer. It may have said so before.
    ///
    /// # Errors
    /// It was never sent that many: the session is lost.
    pub fn acked(&mut self, has: u64) -> Result<(), SessionError> {
        if has > self.sent {
            return Err(SessionError::Ahead { has, sent: self.sent });
        }
        while self.freed < has
            && let Some((_, bytes)) = self.kept.pop_front()
        {
            self.bytes -= bytes;
            self.freed += 1;
        }
        self.given = self.given.max(self.freed);
        Ok(())
    }

    /// A new connection, at whose other end the messages up to `has` are: [`Self::give`] goes on behind them.
    ///
    /// # Errors
    /// What the peer has does not fit to what it was sent: the session is lost.
    pub fn resume(&mut self, has: u64) -> Result<(), SessionError> {
        if has < self.freed {
            return Err(SessionError::Behind { has, freed: self.freed });
        }
        self.acked(has)?;
        self.given = has;
        Ok(())
    }

    /// Messages that the peer has not acknowledged.
    pub fn kept(&self) -> usize {
        self.kept.len()
    }

    /// Their bytes.
    pub fn kept_bytes(&self) -> usize {
        self.bytes
    }
}
