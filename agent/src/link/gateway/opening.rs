//! From a dial to a session that is open.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use sluice_core::ids::Nanos;
use sluice_core::session::SessionId;
use sluice_core::silence::{Silence, SilenceConfig};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{DialError, Dialed, Link};
use crate::link::end::{End, Lost};
use crate::link::frame::Wire;
use crate::link::message::{Answer, Open};
use crate::link::outbox::Outbox;
use crate::link::ticks::Ticks;

/// Between two dials, at first.
const SHORT: Duration = Duration::from_millis(50);
/// While a session is to be resumed, at most.
const SOON: Duration = Duration::from_millis(100);
/// While there is none, at most.
const LATER: Duration = Duration::from_secs(1);

/// How long the next dial waits: the first does not.
#[derive(Debug, Default)]
pub(super) struct Pause(Duration);

impl Pause {
    async fn wait(&mut self, most: Duration) {
        tokio::time::sleep(self.0.min(most)).await;
        self.0 = (2 * self.0).clamp(SHORT, LATER);
    }
}

/// A connection on which a session goes on.
pub(super) struct Opened<S> {
    pub wire: Wire<S>,
    /// The rank's numerics id.
    pub numerics: Arc<str>,
    /// Its number in the outbox.
    pub connection: u64,
}

/// A session to be opened.
pub(super) struct Opening<'a, D> {
    pub link: &'a Link<D>,
    pub session: SessionId,
    pub outbox: &'a Outbox,
}

/// What came of one try.
enum Failed {
    /// Try again.
    Now(String),
    /// Nobody is there.
    Refused(String),
    /// Trying again leads nowhere.
    Lost(Arc<Lost>),
}

impl From<End> for Failed {
    fn from(end: End) -> Self {
        match end {
            End::Broken(why) => Self::Now(why.to_string()),
            End::Lost(why) => Self::Lost(why),
        }
    }
}

impl<D, F, S> Opening<'_, D>
where
    D: Fn() -> F,
    F: Future<Output = Result<Dialed<S>, DialError>>,
    S: AsyncRead + AsyncWrite + Unpin,
{
    /// Dials until the rank has begun the session.
    pub(super) async fn fresh(&self, pause: &mut Pause) -> Result<Opened<S>, Arc<Lost>> {
        let mut said = String::new();
        loop {
            pause.wait(LATER).await;
            let why = match self.attempt(true, self.link.config.opening).await {
                Ok(opened) => return Ok(opened),
                Err(Failed::Lost(why)) => return Err(why),
                Err(Failed::Now(why) | Failed::Refused(why)) => why,
            };
            if why != said {
                tracing::warn!(rank = self.link.rank, why, "a rank cannot be reached; trying on");
                said = why;
            }
        }
    }

    /// Dials until the rank goes on with the session, for as long as it might have been silent.
    pub(super) async fn resume(&self, pause: &mut Pause, patience: Nanos) -> Result<Opened<S>, Arc<Lost>> {
        let beat = self.link.config.silence.beat;
        let (ticks, limit) = (Ticks::start(), Duration::from_nanos(patience));
        let mut silence = Silence::new(SilenceConfig { beat, least: patience, most: patience }, ticks.now());
        let over = async {
            while !silence.is_lost(ticks.now()) {
                ticks.reach(silence.next()).await;
            }
        };
        let mut last = String::from("the connection was not answered");
        let attempts = async {
            loop {
                pause.wait(SOON).await;
                // A connection request may be lost on its way: there is time for two.
                match self.attempt(false, limit / 2).await {
                    Ok(opened) => return Ok(opened),
                    Err(Failed::Lost(why)) => return Err(why),
                    Err(Failed::Refused(why)) => return Err(self.outbox.lose(Lost::Refused(why))),
                    Err(Failed::Now(why)) => last = why,
                }
            }
        };
        tokio::select! {
            opened = attempts => opened,
            why = self.outbox.lost() => Err(why),
            () = over => Err(self.outbox.lose(Lost::Unreachable { patience: limit, why: last })),
        }
    }

    async fn attempt(&self, fresh: bool, limit: Duration) -> Result<Opened<S>, Failed> {
        match tokio::time::timeout(limit, self.open(fresh)).await {
            Ok(opened) => opened,
            Err(_) => Err(Failed::Now(format!("no session came about within {limit:?}"))),
        }
    }

    async fn open(&self, fresh: bool) -> Result<Opened<S>, Failed> {
        let Dialed { stream, numerics } = (self.link.dial)().await.map_err(|error| match error {
            DialError::Refused(why) => Failed::Refused(why),
            DialError::Failed(why) => Failed::Now(why),
        })?;
        let mut wire = Wire::new(stream);
        wire.write(&Open { session: self.session, fresh, has: self.outbox.has() }).await?;
        match wire.read::<Answer>("answer to the opening of a session").await? {
            Answer::Opened { has } => {
                let connection = self.outbox.connect(has)?;
                Ok(Opened { wire, numerics, connection })
            }
            Answer::Unknown => Err(Failed::Lost(self.outbox.lose(Lost::Unknown))),
        }
    }
}
