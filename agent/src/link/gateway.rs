//! The gateway's end of a link: dials a rank, and says when it is there and when it is lost.

mod opening;
mod rank;

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use sluice_core::front::RankLoad;
use sluice_core::ids::{Nanos, SECOND};
use sluice_core::session::SessionId;
use tokio::io::{AsyncRead, AsyncWrite};

use super::LinkConfig;
use super::carry::{Carried, Carry};
use super::end::{End, Lost};
use super::frame::Envelope;
use super::message::{self, ToGateway, Told};
use super::outbox::Outbox;
use super::ticks::Ticks;
use opening::{Opened, Opening, Pause};

pub use rank::Rank;

/// What a gateway's end of a link calls. None of it may block.
pub trait GatewaySide: Send + Sync + 'static {
    /// The clock that deadlines are on.
    fn now(&self) -> Nanos;

    /// The rank is there, with nothing of this gateway's. `numerics` is its numerics id.
    fn up(&self, rank: Rank, numerics: &str, load: RankLoad);

    /// The rank that was there is lost, and with it what was bound to it.
    fn down(&self, why: &Lost);

    /// What it says of sequences, in order.
    fn told(&self, events: Vec<Told>);

    /// What it says of its load.
    fn load(&self, load: RankLoad);
}

/// A connection to a rank, behind the hellos.
#[derive(Debug)]
pub struct Dialed<S> {
    /// What it is read from and written to.
    pub stream: S,
    /// The numerics id in the rank's hello.
    pub numerics: Arc<str>,
}

/// Why there is no connection to a rank.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// Nobody listens there, or who listens wants nothing to do with this gateway: whatever was there is gone.
    #[error("{0}")]
    Refused(String),
    /// Anything else: it may still be there.
    #[error("{0}")]
    Failed(String),
}

/// A connection that lasted so long was a good one: the next is dialled at once.
const GOOD: Nanos = SECOND;

/// The gateway's end of a link to one rank.
pub struct Link<D> {
    /// Connects and exchanges hellos.
    pub dial: D,
    /// What it calls.
    pub side: Arc<dyn GatewaySide>,
    /// The rank's name, for the log.
    pub rank: String,
    /// Rises each time this gateway starts.
    pub incarnation: u64,
    /// What it is told.
    pub config: LinkConfig,
}

impl<D> fmt::Debug for Link<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rank, incarnation, config, .. } = self;
        f.debug_struct("Link")
            .field("rank", rank)
            .field("incarnation", incarnation)
            .field("config", config)
            .finish_non_exhaustive()
    }
}

impl<D, F, S> Link<D>
where
    D: Fn() -> F,
    F: Future<Output = Result<Dialed<S>, DialError>>,
    S: AsyncRead + AsyncWrite + Unpin,
{
    /// Keeps a session with the rank, one after another, for as long as it is polled. When it is dropped the rank
    /// hears no more of this gateway, and does not come [down](GatewaySide::down).
    pub async fn run(self) {
        let mut pause = Pause::default();
        for number in 1.. {
            let session = SessionId { incarnation: self.incarnation, number };
            let outbox = Arc::new(Outbox::new(self.config.limits));
            let (was_up, why) = self.session(session, &outbox, &mut pause).await;
            // Whoever still has something to say to it is not waited for.
            outbox.lose(Lost::clone(&why));
            tracing::warn!(rank = self.rank, %session, %why, "the session with a rank is over");
            if was_up {
                self.side.down(&why);
            }
        }
    }

    /// One session. Gives why it is over, and whether the rank was up.
    async fn session(
        &self,
        session: SessionId,
        outbox: &Arc<Outbox>,
        pause: &mut Pause,
    ) -> (bool, Arc<Lost>) {
        let opening = Opening { link: self, session, outbox };
        let mut is_up = false;
        let mut opened = opening.fresh(pause).await;
        loop {
            let Opened { wire, numerics, connection } = match opened {
                Ok(opened) => opened,
                Err(why) => return (is_up, why),
            };
            let ticks = Ticks::start();
            let take = |envelope: Envelope| {
                if let Some(message) = outbox.take(connection, envelope)? {
                    self.take(&message, &numerics, outbox, &mut is_up)?;
                }
                Ok(())
            };
            let silence = self.config.silence;
            let carry = Carry { outbox, connection, silence, heard: || (), take };
            let Carried { end, patience } = carry.run(wire).await;
            if ticks.now() >= GOOD {
                *pause = Pause::default();
            }
            match end {
                End::Lost(why) => return (is_up, why),
                End::Broken(why) => {
                    tracing::info!(rank = self.rank, %session, %why, "a connection to a rank broke");
                    opened = opening.resume(pause, patience).await;
                }
            }
        }
    }

    fn take(
        &self,
        message: &[u8],
        numerics: &str,
        outbox: &Arc<Outbox>,
        is_up: &mut bool,
    ) -> Result<(), End> {
        let message = message::decode("message of a rank", message)
            .map_err(|garbage| End::Lost(outbox.lose(garbage.into())))?;
        match message {
            ToGateway::Load(load) if !*is_up => {
                *is_up = true;
                let (outbox, side) = (Arc::clone(outbox), Arc::clone(&self.side));
                self.side.up(Rank { outbox, side }, numerics, load);
            }
            ToGateway::Load(load) => self.side.load(load),
            ToGateway::Told(events) => self.side.told(events),
        }
        Ok(())
    }
}
