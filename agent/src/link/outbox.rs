//! One side of a session, shared by who speaks, the connection there is, and who waits for its end.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use sluice_core::session::{Arrival, Session, SessionLimits};
use tokio::sync::watch;

use super::end::{Broken, End, Lost};
use super::frame::{self, Envelope};

/// What is put into one write, at least, if there is so much.
const BATCH: usize = 64 << 10;

/// A session and its current connection.
#[derive(Debug)]
pub(super) struct Outbox {
    session: Mutex<Session<Bytes>>,
    /// There is something to send.
    ready: watch::Sender<()>,
    /// Changes only with the session locked.
    state: watch::Sender<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Only the newest connection may take from the session and give to it.
    connection: u64,
    lost: Option<Arc<Lost>>,
}

impl State {
    fn check(&self, connection: u64) -> Result<(), End> {
        match &self.lost {
            Some(lost) => Err(End::Lost(Arc::clone(lost))),
            None if self.connection != connection => Err(Broken::Superseded.into()),
            None => Ok(()),
        }
    }
}

impl Outbox {
    pub(super) fn new(limits: SessionLimits) -> Self {
        Self {
            session: Mutex::new(Session::new(limits)),
            ready: watch::Sender::new(()),
            state: watch::Sender::new(State::default()),
        }
    }

    fn session(&self) -> MutexGuard<'_, Session<Bytes>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a message, now or over a later connection. Does nothing once the session is lost.
    pub(super) fn push(&self, message: Bytes) {
        let length = message.len();
        if length > frame::MOST_MESSAGE {
            self.lose(Lost::Long { length, most: frame::MOST_MESSAGE });
            return;
        }
        let mut session = self.session();
        if self.state.borrow().lost.is_some() {
            return;
        }
        let pushed = session.push(message, length);
        drop(session);
        match pushed {
            Ok(()) => self.ready.send_replace(()),
            Err(error) => _ = self.lose(error.into()),
        }
    }

    /// The session is over. Gives the first reason, which counts.
    pub(super) fn lose(&self, why: Lost) -> Arc<Lost> {
        let _session = self.session();
        let mut first = Arc::new(why);
        self.state.send_if_modified(|state| match &state.lost {
            Some(before) => {
                first = Arc::clone(before);
                false
            }
            None => {
                state.lost = Some(Arc::clone(&first));
                true
            }
        });
        first
    }

    /// The number of the newest message that came.
    pub(super) fn has(&self) -> u64 {
        self.session().has()
    }

    /// A new connection, at whose other end the messages up to `has` are. Gives it a number: the one before it is
    /// over.
    pub(super) fn connect(&self, has: u64) -> Result<u64, End> {
        let mut session = self.session();
        if let Some(lost) = &self.state.borrow().lost {
            return Err(End::Lost(Arc::clone(lost)));
        }
        if let Err(error) = session.resume(has) {
            drop(session);
            return Err(End::Lost(self.lose(error.into())));
        }
        self.state.send_modify(|state| state.connection += 1);
        Ok(self.state.borrow().connection)
    }

    /// Appends what is to be written to a connection.
    pub(super) fn fill(&self, connection: u64, out: &mut BytesMut) -> Result<(), End> {
        let mut session = self.session();
        self.state.borrow().check(connection)?;
        let has = session.has();
        while out.len() < BATCH
            && let Some((number, message)) = session.give()
        {
            frame::put(out, has, Some((number, message)));
        }
        Ok(())
    }

    /// Appends a heartbeat.
    pub(super) fn beat(&self, out: &mut BytesMut) {
        frame::put(out, self.has(), None);
    }

    /// Something came over a connection. Gives the message, if it is one that did not come before.
    pub(super) fn take(&self, connection: u64, envelope: Envelope) -> Result<Option<Bytes>, End> {
        let mut session = self.session();
        self.state.borrow().check(connection)?;
        let taken = session.acked(envelope.has).and_then(|()| match envelope.message {
            Some((number, message)) => Ok((session.receive(number)? == Arrival::New).then_some(message)),
            None => Ok(None),
        });
        drop(session);
        taken.map_err(|error| End::Lost(self.lose(error.into())))
    }

    /// Changes when there is something to send.
    pub(super) fn ready(&self) -> watch::Receiver<()> {
        self.ready.subscribe()
    }

    /// Why the session is over, if it is.
    pub(super) fn is_lost(&self) -> Option<Arc<Lost>> {
        self.state.borrow().lost.clone()
    }

    /// Resolves when the session is over.
    pub(super) async fn lost(&self) -> Arc<Lost> {
        let mut state = self.state.subscribe();
        loop {
            if let Some(lost) = &state.borrow_and_update().lost {
                return Arc::clone(lost);
            }
            if state.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Resolves when a connection is not to be used any more.
    pub(super) async fn left(&self, connection: u64) -> End {
        let mut state = self.state.subscribe();
        loop {
            if let Err(end) = state.borrow_and_update().check(connection) {
                return end;
            }
            if state.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}
