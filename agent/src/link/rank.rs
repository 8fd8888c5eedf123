//! The rank's end of its links: a session per gateway, which outlives the connections it comes over.

mod session;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sluice_core::ids::{Attempt, GatewayId, Nanos, SeqKey};
use sluice_core::sequence;
use sluice_core::session::Opening;
use tokio::io::{AsyncRead, AsyncWrite};

use super::LinkConfig;
use super::carry::Carry;
use super::end::{Broken, End, Lost};
use super::frame::{Envelope, Wire};
use super::grammars::Grammars;
use super::message::{Answer, Open};
use crate::sampling::{CompiledGrammar, GrammarCompiler, SamplingParams};
use session::Session;

pub use session::Gateway;

/// What a rank's end of its links calls. None of it may block.
pub trait RankSide: Send + Sync + 'static {
    /// The clock that deadlines are on.
    fn now(&self) -> Nanos;

    /// A gateway has begun a session. It takes the rank as there once it is told its [load](Gateway::load).
    fn opened(&self, gateway: Gateway);

    /// Take a sequence.
    fn bind(&self, bind: sequence::Bind, sampling: Arc<SamplingParams>, grammar: Option<CompiledGrammar>);

    /// Drop an attempt; it may be gone already.
    fn cancel(&self, seq: SeqKey, attempt: Attempt);

    /// A session is over. What was bound in it has been cancelled, and nothing more comes of it.
    fn closed(&self, gateway: GatewayId);
}

/// The rank's end of the links with all gateways.
pub struct Gateways {
    shared: Arc<Shared>,
}

impl fmt::Debug for Gateways {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sessions = self.shared.sessions().by_name.len();
        f.debug_struct("Gateways").field("sessions", &sessions).finish_non_exhaustive()
    }
}

/// What all sessions share.
struct Shared {
    side: Arc<dyn RankSide>,
    grammars: Grammars,
    /// Token ids of the model.
    vocab: usize,
    config: LinkConfig,
    sessions: Mutex<Sessions>,
}

#[derive(Default)]
struct Sessions {
    /// By the gateway's name.
    by_name: HashMap<String, Arc<Session>>,
    /// Sessions begun so far: each has a number of its own, so nothing said in one reaches the next.
    begun: u32,
}

impl Shared {
    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gateways {
    /// Of a rank whose model has `vocab` token ids, and a compiler if its tokenizer allows one.
    pub fn new(
        side: Arc<dyn RankSide>,
        vocab: usize,
        compiler: Option<Arc<GrammarCompiler>>,
        config: LinkConfig,
    ) -> Self {
        let (grammars, sessions) = (Grammars::new(compiler), Mutex::default());
        Self { shared: Arc::new(Shared { side, grammars, vocab, config, sessions }) }
    }

    /// Whether gateways have anything bound here, be it that a grammar of it is still compiled.
    pub fn has_bound(&self) -> bool {
        self.shared.sessions().by_name.values().any(|session| session.has_bound())
    }

    /// Serves a connection, behind the hellos, of the gateway of this name. Gives why it ended; its session may go on.
    /// Needs the run time of tokio, on which sessions outlive it.
    pub async fn serve<S: AsyncRead + AsyncWrite + Unpin>(&self, name: &str, stream: S) -> End {
        let LinkConfig { opening, silence, .. } = self.shared.config;
        let mut wire = Wire::new(stream);
        let (session, connection) = match tokio::time::timeout(opening, self.open(name, &mut wire)).await {
            Ok(Ok(opened)) => opened,
            Ok(Err(end)) => return end,
            Err(_) => return Broken::Opening(opening).into(),
        };
        let heard = || session.heard();
        let take = |envelope: Envelope| session.take(connection, envelope);
        Carry { outbox: session.outbox(), connection, silence, heard, take }.run(wire).await.end
    }

    /// Reads what session the gateway wants, and answers.
    async fn open<S>(&self, name: &str, wire: &mut Wire<S>) -> Result<(Arc<Session>, u64), End>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let open = wire.read::<Open>("opening of a session").await?;
        let Some(session) = self.find(name, &open) else {
            wire.write(&Answer::Unknown).await?;
            return Err(Lost::Unknown.into());
        };
        match session.outbox().connect(open.has) {
            Ok(connection) => {
                session.heard();
                wire.write(&Answer::Opened { has: session.outbox().has() }).await?;
                Ok((session, connection))
            }
            Err(end) => {
                wire.write(&Answer::Unknown).await?;
                Err(end)
            }
        }
    }

    /// The session that a gateway wants to go on with, or a new one if it may begin.
    fn find(&self, name: &str, open: &Open) -> Option<Arc<Session>> {
        let mut sessions = self.shared.sessions();
        let current = sessions.by_name.get(name);
        let is_lost = current.is_some_and(|session| session.outbox().is_lost().is_some());
        match open.session.opening(open.fresh, current.map(|session| session.id()), is_lost) {
            Opening::Resume => return current.cloned(),
            Opening::Unknown => return None,
            Opening::Begin => {}
        }
        let gateway = GatewayId(sessions.begun);
        sessions.begun = sessions.begun.wrapping_add(1);
        let session = Arc::new(Session::new(Arc::clone(&self.shared), name, gateway, open.session));
        if let Some(old) = sessions.by_name.insert(name.to_owned(), Arc::clone(&session)) {
            old.outbox().lose(Lost::Replaced(open.session));
        }
        // Before anything is bound in it.
        self.shared.side.opened(Gateway::new(Arc::clone(&session)));
        tokio::spawn(keep(Arc::clone(&session), Arc::clone(&self.shared)));
        Some(session)
    }
}

/// Until the session is over, and its end.
async fn keep(session: Arc<Session>, shared: Arc<Shared>) {
    let why = session.over().await;
    tracing::warn!(gateway = session.name(), session = %session.id(), %why, "the session with a gateway is over");
    session.end();
    let mut sessions = shared.sessions();
    if sessions.by_name.get(session.name()).is_some_and(|current| Arc::ptr_eq(current, &session)) {
        sessions.by_name.remove(session.name());
    }
}
