//! A pair of connections with one worker, from its hello until it breaks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sluice_core::event::PeerUp;
use sluice_core::frame::{Body, Channel, Frame};
use sluice_core::ids::{Class, WorkerId};
use sluice_wire::{Assembly, Lane, Message, Whole, decode, encode};
use tokio::io::{AsyncRead, AsyncReadExt as _, BufReader, ReadHalf};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use zerocopy::IntoBytes as _;

use super::beat::Beats;
use super::observe::Observer;
use super::outbox::Outbox;
use super::stream::{Connection, Stream};
use crate::runtime::{Buffers, Door, PeerLink, Rows, Slab};

/// A message is a batch of rows: none has more bytes.
pub const LONGEST_MESSAGE: usize = 256 << 20;
/// Bytes that have arrived and wait for the worker, over both lanes: beyond that the socket is left unread.
const WAITING: usize = 64 << 20;
/// They are counted in so many: the smallest message costs about that much while it waits.
const PERMIT: usize = 1 << 10;
/// Heads and small messages are read together with what follows them, so many bytes at a time. What of a fragment is
/// longer is read straight into its place.
const AHEAD: usize = 4 << 10;
/// Returns of more bytes go behind decode batches.
const BULK: usize = 256 << 10;

/// What all pairs of a worker have in common.
#[derive(Clone, Debug)]
pub struct Format {
    /// Numbers in a row.
    pub row_len: usize,
    /// The class of prefill.
    pub prefill: Class,
    /// Who is told of them.
    pub observer: Arc<dyn Observer>,
    rows: Arc<Buffers<f32>>,
    messages: Arc<Buffers<u8>>,
}

impl Format {
    /// Of a worker with rows of so many numbers, and this class of prefill.
    pub fn new(row_len: usize, prefill: Class, observer: Arc<dyn Observer>) -> Self {
        Self { row_len, prefill, observer, rows: Arc::default(), messages: Arc::default() }
    }
}

/// Why a pair ended.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// The connection.
    #[error("the {0:?} connection broke: {1}")]
    Broke(Channel, std::io::Error),
    /// What the peer said.
    #[error("what came on the {0:?} connection cannot be understood: {1}")]
    Garbage(Channel, String),
    /// The peer says nothing.
    #[error("nothing was heard for {} ms", .0.as_millis())]
    Silent(Duration),
    /// This side wants it so.
    #[error("it was closed on this side")]
    Severed,
}

/// The sending end.
struct Link {
    outbox: Arc<Outbox>,
    severed: Arc<Notify>,
    format: Format,
}

impl PeerLink for Link {
    fn send(&self, frame: Frame, slab: &mut dyn Slab, _at: Option<Instant>) {
        let count = match &frame.body {
            Body::Tokens(batch) => batch.rows.len(),
            Body::Returns(batch) => batch.rows.len(),
            _ => 0,
        };
        let home = &self.format.rows;
        let mut rows = home.take(count * self.format.row_len);
        slab.payload(&frame, &mut rows);
        let mut head = vec![];
        encode(&frame, &mut head);
        let bulk = match &frame.body {
            Body::Tokens(batch) => batch.class == self.format.prefill,
            _ => size_of_val(rows.as_slice()) > BULK,
        };
        let lane = if bulk { Lane::Bulk } else { Lane::Urgent };
        let parts = [Bytes::from(head), Bytes::from_owner(Values { rows, home: Arc::clone(home) })];
        if !self.outbox.push(frame.channel, lane, parts) {
            self.sever();
        }
    }

    fn sever(&self) {
        self.severed.notify_one();
    }
}

/// Rows as the bytes that travel: little-endian, as every supported host has them.
struct Values {
    rows: Vec<f32>,
    home: Arc<Buffers<f32>>,
}

impl AsRef<[u8]> for Values {
    fn as_ref(&self) -> &[u8] {
        self.rows.as_bytes()
    }
}

impl Drop for Values {
    fn drop(&mut self) {
        self.home.give(std::mem::take(&mut self.rows));
    }
}

/// Tells the worker that the peer is gone, however the pair ends.
struct Down {
    door: Arc<dyn Door>,
    observer: Arc<dyn Observer>,
    worker: WorkerId,
    /// For how long nothing had been heard by then.
    silence: Duration,
}

impl Drop for Down {
    fn drop(&mut self) {
        self.observer.disconnected(self.worker);
        let now = Instant::now();
        self.door.peer_down(self.worker, now.checked_sub(self.silence).unwrap_or(now));
    }
}

/// Runs a pair until it ends. `severed` ends it from outside.
pub async fn run(
    control: Connection,
    data: Connection,
    up: PeerUp,
    format: Format,
    door: Arc<dyn Door>,
    severed: Arc<Notify>,
) -> Ended {
    let (worker, observer) = (up.worker, Arc::clone(&format.observer));
    let outbox = Arc::new(Outbox::default());
    let beats = Arc::new(Beats::new(worker, control.wire, Arc::clone(&observer)));
    let link = Link { outbox: Arc::clone(&outbox), severed: Arc::clone(&severed), format: format.clone() };
    observer.connected(worker, control.wire);
    let mut down = Down { door: Arc::clone(&door), observer, worker, silence: Duration::ZERO };
    door.peer_up(up, Arc::new(link));

    let mut tasks = JoinSet::new();
    for (channel, Connection { stream, wire }) in [(Channel::Control, control), (Channel::Data, data)] {
        let (from, to) = tokio::io::split(stream);
        let lines = Arc::clone(&outbox);
        tasks.spawn(async move { Ended::Broke(channel, lines.send(channel, to).await) });
        let receiver = Receiver {
            channel,
            wire,
            worker,
            format: format.clone(),
            door: Arc::clone(&door),
            beats: Arc::clone(&beats),
            waiting: Arc::new(Semaphore::new(WAITING / PERMIT)),
        };
        tasks.spawn(receiver.run(from));
    }
    tasks.spawn(async move { Ended::Silent(beats.run(&outbox).await) });
    let ended = tokio::select! {
        ended = tasks.join_next() => match ended {
            Some(Ok(ended)) => ended,
            Some(Err(e)) => Ended::Broke(Channel::Control, std::io::Error::other(e)),
            None => Ended::Severed,
        },
        () = severed.notified() => Ended::Severed,
    };
    if let Ended::Silent(silence) = ended {
        down.silence = silence;
    }
    ended
}

/// The receiving end of one connection.
struct Receiver {
    channel: Channel,
    wire: u16,
    worker: WorkerId,
    format: Format,
    door: Arc<dyn Door>,
    beats: Arc<Beats>,
    waiting: Arc<Semaphore>,
}

impl Receiver {
    async fn run(self, from: ReadHalf<Stream>) -> Ended {
        match self.receive(BufReader::with_capacity(AHEAD, from)).await {
            Ok(never) => match never {},
            Err(ended) => ended,
        }
    }

    async fn receive(&self, mut from: impl AsyncRead + Unpin) -> Result<std::convert::Infallible, Ended> {
        let broke = |e| Ended::Broke(self.channel, e);
        let garbage = |e: &dyn std::fmt::Display| Ended::Garbage(self.channel, e.to_string());
        let mut assembly = Assembly::new(LONGEST_MESSAGE);
        loop {
            let mut head = [0; sluice_wire::fragment::HEAD];
            from.read_exact(&mut head).await.map_err(broke)?;
            let (lane, length, last) = Assembly::head(head).map_err(|e| garbage(&e))?;
            let buffer = assembly.buffer(lane);
            if buffer.is_empty() && !last {
                *buffer = self.format.messages.take(sluice_wire::fragment::MOST + 1);
            }
            fill(&mut from, buffer, length).await.map_err(broke)?;
            self.beats.sign();
            let Some(message) = assembly.ends(lane, last).map_err(|e| garbage(&e))? else { continue };
            self.deliver(message).await.map_err(|e| garbage(&e))?;
        }
    }

    async fn deliver(&self, message: Whole) -> Result<(), sluice_wire::message::DecodeError> {
        let row_bytes = self.format.row_len * size_of::<f32>();
        let (decoded, payload) = decode(&message, self.channel, self.wire, row_bytes)?;
        let frame = match decoded {
            Message::Frame(frame) => frame,
            Message::Beat(times) => {
                self.beats.came(times);
                return Ok(());
            }
        };
        let bytes = payload.len();
        let room = message.len().div_ceil(PERMIT).clamp(1, WAITING / PERMIT) as u32;
        let held = Arc::clone(&self.waiting).acquire_many_owned(room).await.ok();
        let rows = Rows::of_message(message.into_buffer(), bytes, &self.format.messages);
        self.door.frame(self.worker, frame, rows, held);
        Ok(())
    }
}

/// What comes on one connection of a pair, until it ends.
#[cfg(any(test, fuzzing))]
pub(super) async fn receive(
    channel: Channel,
    wire: u16,
    row_len: usize,
    door: Arc<dyn Door>,
    from: impl AsyncRead + Unpin,
) -> Ended {
    let (worker, observer) = (WorkerId(1), Arc::new(()));
    let receiver = Receiver {
        channel,
        wire,
        worker,
        beats: Arc::new(Beats::new(worker, wire, observer.clone())),
        format: Format::new(row_len, Class(1), observer),
        door,
        waiting: Arc::new(Semaphore::new(WAITING / PERMIT)),
    };
    match receiver.receive(from).await {
        Ok(never) => match never {},
        Err(ended) => ended,
    }
}

/// Appends exactly so many bytes.
async fn fill(from: &mut (impl AsyncRead + Unpin), into: &mut Vec<u8>, length: usize) -> std::io::Result<()> {
    into.reserve(length);
    let mut from = from.take(length as u64);
    while from.limit() > 0 {
        if from.read_buf(into).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}
