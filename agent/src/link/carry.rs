//! A session over one connection.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use sluice_core::ids::Nanos;
use sluice_core::silence::{Silence, SilenceConfig};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, WriteHalf};

use super::end::{Broken, End};
use super::frame::{Envelope, Wire};
use super::outbox::Outbox;
use super::ticks::Ticks;

/// What carries a session, and what it does with what comes.
pub(super) struct Carry<'a, H, T> {
    pub outbox: &'a Outbox,
    /// Its number in the outbox.
    pub connection: u64,
    pub silence: SilenceConfig,
    /// Something came, be it a part of a message.
    pub heard: H,
    /// An envelope came.
    pub take: T,
}

/// How it ended.
pub(super) struct Carried {
    pub end: End,
    /// How long the peer might have been silent at last.
    pub patience: Nanos,
}

impl<H, T> Carry<'_, H, T>
where
    H: Fn(),
    T: FnMut(Envelope) -> Result<(), End>,
{
    /// Until the connection, or the session, ends.
    pub(super) async fn run<S: AsyncRead + AsyncWrite + Unpin>(self, wire: Wire<S>) -> Carried {
        let Self { outbox, connection, silence: config, heard, mut take } = self;
        let ticks = Ticks::start();
        let silence = Mutex::new(Silence::new(config, ticks.now()));
        let silence = || silence.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut reader, writer) = wire.split();
        let sign = || {
            silence().heard(ticks.now());
            heard();
        };
        let read = async {
            loop {
                if let Err(end) = reader.envelope(sign).await.and_then(&mut take) {
                    return end;
                }
            }
        };
        let watch = async {
            loop {
                let next = silence().next();
                ticks.reach(next).await;
                let mut silence = silence();
                if silence.is_lost(ticks.now()) {
                    return Broken::Silent(Duration::from_nanos(silence.patience())).into();
                }
            }
        };
        let end = tokio::select! {
            end = outbox.left(connection) => end,
            end = read => end,
            end = write(outbox, connection, Duration::from_nanos(config.beat), writer) => end,
            end = watch => end,
        };
        let patience = silence().patience();
        Carried { end, patience }
    }
}

/// Writes what there is to say, and heartbeats where there is nothing.
async fn write<S>(outbox: &Outbox, connection: u64, beat: Duration, mut stream: WriteHalf<S>) -> End
where
    S: AsyncWrite,
{
    let mut ready = outbox.ready();
    let mut buffer = BytesMut::new();
    loop {
        buffer.clear();
        if let Err(end) = outbox.fill(connection, &mut buffer) {
            return end;
        }
        if buffer.is_empty() {
            match tokio::time::timeout(beat, ready.changed()).await {
                Ok(Ok(())) => continue,
                // Nobody can have anything to say: the sender lives in the outbox.
                Ok(Err(_)) => std::future::pending().await,
                Err(_) => outbox.beat(&mut buffer),
            }
        }
        if let Err(error) = put(&mut stream, &buffer).await {
            return error.into();
        }
    }
}

async fn put<S: AsyncWrite>(stream: &mut WriteHalf<S>, bytes: &[u8]) -> std::io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}
