//! Frames of the core, and heartbeats, as bytes.
//!
//! | part | bytes |
//! | --- | --- |
//! | head | kind, epoch, number |
//! | body | a fixed record per kind, then its lists |
//! | payload | the rows that travel (tokens: one per row, returns: one per item), each of the deployment's row size |
//!
//! Where a row lies at its sender is the sender's own affair and does not travel. A heartbeat is a head, and since
//! version 2 of the wire a record of [times](Times).

use std::sync::Arc;

use sluice_core::frame::{
    Body, Channel, Frame, Mark, Redirect, ReturnBatch, ReturnItem, ReturnTo, RowMove, StepEnd, TokenBatch,
    TokenItem,
};
use sluice_core::ids::{Class, Slice, Unit, WorkerId};
use sluice_core::placement::{PlacementSlice, Replica, ReplicaState};
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::beat::{Echo, Times};
use crate::record;
use crate::version::TIMED_BEATS;

/// What arrives on a connection between workers.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// The peer lives. Since version 2 it tells the time.
    Beat(Option<Times>),
    /// For the core. Rows of the sender are 0.
    Frame(Frame),
}

/// Why bytes are no message. The connection they came on is to be closed: what follows cannot be trusted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// It ends too early.
    #[error("the message ends within its {what}: {needed} bytes are missing")]
    Short {
        /// Within what.
        what: &'static str,
        /// How many bytes more there would have to be.
        needed: usize,
    },
    /// A kind that nobody knows.
    #[error("messages of kind {0} are unknown: the peer speaks another version of the wire")]
    Kind(u8),
    /// A kind of another version.
    #[error("messages of kind {kind} are none of version {wire} of the wire, which this connection has")]
    Version {
        /// The kind.
        kind: u8,
        /// The connection's version.
        wire: u16,
    },
    /// A kind that does not belong here.
    #[error("a message of kind {kind} came on the {channel:?} connection")]
    Channel {
        /// The kind.
        kind: u8,
        /// Where it came.
        channel: Channel,
    },
    /// A value that is none.
    #[error("{what} is {value}, which means nothing")]
    Value {
        /// Of what.
        what: &'static str,
        /// The value.
        value: u64,
    },
    /// The payload is not what the body announces.
    #[error("the message announces {rows} rows of {row_bytes} bytes and carries {found} bytes")]
    Payload {
        /// Rows announced.
        rows: usize,
        /// Bytes of each.
        row_bytes: usize,
        /// Bytes that are there.
        found: usize,
    },
}

/// Segments of an expert, at most: they are bits of a byte.
const SEGMENTS: u8 = 8;
/// Landing rows of one peer's ring, at most.
const ROWS: u32 = 1 << 24;

const BEAT: u8 = 0;
const TOKENS: u8 = 1;
const RETURNS: u8 = 2;
const MARK: u8 = 3;
const CREDIT: u8 = 4;
const REDIRECT: u8 = 5;
const STEP_END: u8 = 6;
/// In place of `BEAT` since version 2.
const TIMED_BEAT: u8 = 7;

/// A heartbeat, on a connection of this version of the wire. What the version has no room for is left out.
pub fn encode_beat(times: &Times, wire: u16, out: &mut Vec<u8>) {
    let kind = beat_of(wire);
    put(out, &record::Head { kind, zero: [0; 3], epoch: 0.into(), number: 0.into() });
    if kind == TIMED_BEAT {
        let echo = times.echo.unwrap_or(Echo { sent: 0, held: 0 });
        let (sent, held) = (echo.sent.into(), echo.held.into());
        let has_echo = times.echo.is_some().into();
        put(out, &record::Times { has_echo, zero: [0; 7], sent: times.sent.into(), echo: sent, held });
    }
}

/// The kind of heartbeats.
fn beat_of(wire: u16) -> u8 {
    if wire >= TIMED_BEATS { TIMED_BEAT } else { BEAT }
}

/// Everything of a frame but its payload. Frames are the same in all versions.
pub fn encode(frame: &Frame, out: &mut Vec<u8>) {
    let kind = match &frame.body {
        Body::Tokens(_) => TOKENS,
        Body::Returns(_) => RETURNS,
        Body::Mark(_) => MARK,
        Body::Credit(_) => CREDIT,
        Body::Redirect(_) => REDIRECT,
        Body::StepEnd(_) => STEP_END,
    };
    put(out, &record::Head { kind, zero: [0; 3], epoch: frame.epoch.into(), number: frame.number.into() });
    match &frame.body {
        Body::Tokens(b) => tokens(b, out),
        Body::Returns(b) => {
            put(out, &record::Returns { items: length(&b.items), freed: length(&b.freed) });
            b.items.iter().for_each(|i| put(out, &back(i.back, i.slice)));
            numbers(&b.freed, out);
        }
        Body::Mark(m) => put(out, &mark(m)),
        Body::Credit(rows) => numbers(rows, out),
        Body::Redirect(r) => redirect(r, out),
        Body::StepEnd(e) => {
            let (step, frames, busy) = (e.step.into(), e.frames.into(), e.busy.into());
            put(out, &record::StepEnd { step, frames, busy, zero: [0; 7] });
        }
    }
}

fn put(out: &mut Vec<u8>, record: &(impl IntoBytes + Immutable)) {
    out.extend_from_slice(record.as_bytes());
}

/// Lists are bounded by slabs and tables, whose rows have numbers of 32 bits.
fn length<T>(list: &[T]) -> U32 {
    (list.len() as u32).into()
}

fn numbers(all: &[u32], out: &mut Vec<u8>) {
    all.iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes()));
}

fn back(back: ReturnTo, slice: Slice) -> record::Back {
    let (group, tag) = (back.group.into(), back.tag.into());
    record::Back { group, tag, k: back.k, lo: slice.lo, hi: slice.hi, zero: 0 }
}

fn mark(m: &Mark) -> record::Mark {
    record::Mark {
        class: m.class.0,
        blocked: m.blocked.into(),
        zero: 0.into(),
        tokens: m.tokens.into(),
        order: m.order.into(),
        progress: m.progress.into(),
        frames: m.frames.into(),
        cycle: m.cycle.into(),
    }
}

fn tokens(b: &TokenBatch, out: &mut Vec<u8>) {
    let head = record::Tokens {
        class: b.class.0,
        has_mark: b.mark.is_some().into(),
        block: b.block.into(),
        rows: length(&b.rows),
        items: length(&b.items),
        step_rows: b.step_rows.into(),
        generation: b.generation.into(),
        frames: b.frames.into(),
        progress: b.progress.into(),
    };
    put(out, &head);
    if let Some(m) = &b.mark {
        put(out, &mark(m));
    }
    b.rows.iter().for_each(|r| out.extend_from_slice(&r.dst.to_le_bytes()));
    for i in &b.items {
        let (row, expert) = (i.row.into(), i.expert.into());
        put(out, &record::Item { row, expert, zero: 0.into(), back: back(i.back, i.slice) });
    }
}

fn redirect(r: &Redirect, out: &mut Vec<u8>) {
    let (items, freed) = (length(&r.items), length(&r.freed));
    put(out, &record::Redirect { items, freed, has_slice: r.slice.is_some().into(), zero: [0; 7] });
    r.items.iter().for_each(|i| put(out, &back(i.back, i.slice)));
    numbers(&r.freed, out);
    let Some(s) = &r.slice else { return };
    let (first, end, replicas) = (s.blocks.start.into(), s.blocks.end.into(), length(&s.replicas));
    put(out, &record::Slice { first, end, replicas, generation: s.generation.into() });
    for r in &s.replicas {
        let state = match r.state {
            ReplicaState::Joining => 0,
            ReplicaState::Active => 1,
            ReplicaState::Draining => 2,
        };
        let replica = record::Replica {
            worker: r.worker.0.into(),
            block: r.unit.block.into(),
            expert: r.unit.expert.into(),
            lo: r.unit.slice.lo,
            hi: r.unit.slice.hi,
            state,
            zero: 0,
            fraction: r.fraction.into(),
        };
        put(out, &replica);
    }
}

/// Takes a message apart that came on a connection of this version of the wire. `row_bytes` is the size of a row of the
/// payload, which is given back.
///
/// # Errors
/// What makes no sense in it. Whether numbers name something that exists is for the core to say.
pub fn decode(
    bytes: &[u8],
    channel: Channel,
    wire: u16,
    row_bytes: usize,
) -> Result<(Message, &[u8]), DecodeError> {
    let mut rest = Rest(bytes);
    let head = *rest.one::<record::Head>("head")?;
    let kind = head.kind;
    let due = match kind {
        TOKENS | RETURNS => Channel::Data,
        BEAT | TIMED_BEAT if kind != beat_of(wire) => return Err(DecodeError::Version { kind, wire }),
        BEAT | TIMED_BEAT | MARK | CREDIT | REDIRECT | STEP_END => Channel::Control,
        _ => return Err(DecodeError::Kind(kind)),
    };
    if channel != due {
        return Err(DecodeError::Channel { kind, channel });
    }
    let (body, rows) = match kind {
        TOKENS => {
            let batch = rest.tokens()?;
            let rows = batch.rows.len();
            (Body::Tokens(batch), rows)
        }
        RETURNS => {
            let head = *rest.one::<record::Returns>("batch of returns")?;
            let items = rest.items(head.items)?;
            let batch = ReturnBatch { rows: vec![], items, freed: rest.rows(head.freed)? };
            let rows = batch.items.len();
            (Body::Returns(batch), rows)
        }
        MARK => (Body::Mark(rest.mark()?), 0),
        CREDIT => {
            let count = (rest.0.len() / size_of::<u32>()) as u32;
            (Body::Credit(rest.rows(count.into())?), 0)
        }
        REDIRECT => (Body::Redirect(rest.redirect()?), 0),
        STEP_END => {
            let e = *rest.one::<record::StepEnd>("end of a step")?;
            let busy = flag(e.busy, "whether a worker is busy")?;
            (Body::StepEnd(StepEnd { step: e.step.get(), frames: e.frames.get(), busy }), 0)
        }
        _ => {
            let times = if kind == TIMED_BEAT { Some(rest.times()?) } else { None };
            rest.payload(0, row_bytes)?;
            return Ok((Message::Beat(times), &[]));
        }
    };
    let payload = rest.payload(rows, row_bytes)?;
    let frame = Frame { epoch: head.epoch.get(), channel, number: head.number.get(), body };
    Ok((Message::Frame(frame), payload))
}

fn flag(value: u8, what: &'static str) -> Result<bool, DecodeError> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(DecodeError::Value { what, value: value.into() }),
    }
}

/// What of a message has not been read.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn one<T>(&mut self, what: &'static str) -> Result<&'a T, DecodeError>
    where
        T: FromBytes + KnownLayout + Immutable + Unaligned,
    {
        Ok(&self.many::<T>(1.into(), what)?[0])
    }

    /// A list. Nothing is allocated for it before its bytes are known to be there.
    fn many<T>(&mut self, count: U32, what: &'static str) -> Result<&'a [T], DecodeError>
    where
        T: FromBytes + KnownLayout + Immutable + Unaligned,
    {
        let count = count.get() as usize;
        let size = count.saturating_mul(size_of::<T>());
        match <[T]>::ref_from_prefix_with_elems(self.0, count) {
            Ok((list, rest)) => {
                self.0 = rest;
                Ok(list)
            }
            Err(_) => Err(DecodeError::Short { what, needed: size.saturating_sub(self.0.len()) }),
        }
    }

    /// Landing rows that are free.
    fn rows(&mut self, count: U32) -> Result<Vec<u32>, DecodeError> {
        let rows = self.numbers(count, "free rows")?;
        match rows.iter().find(|row| **row >= ROWS) {
            Some(row) => Err(DecodeError::Value { what: "a free row", value: u64::from(*row) }),
            None => Ok(rows),
        }
    }

    fn numbers(&mut self, count: U32, what: &'static str) -> Result<Vec<u32>, DecodeError> {
        Ok(self.many::<U32>(count, what)?.iter().map(|n| n.get()).collect())
    }

    fn items(&mut self, count: U32) -> Result<Vec<ReturnItem>, DecodeError> {
        let items = self.many::<record::Back>(count, "items")?;
        items.iter().map(returned).collect()
    }

    fn times(&mut self) -> Result<Times, DecodeError> {
        let t = self.one::<record::Times>("times")?;
        let echo = Echo { sent: t.echo.get(), held: t.held.get() };
        let has_echo = flag(t.has_echo, "whether a heartbeat has an echo")?;
        Ok(Times { sent: t.sent.get(), echo: has_echo.then_some(echo) })
    }

    fn mark(&mut self) -> Result<Mark, DecodeError> {
        let m = self.one::<record::Mark>("mark")?;
        Ok(Mark {
            class: Class(m.class),
            order: m.order.get(),
            progress: m.progress.get(),
            frames: m.frames.get(),
            tokens: m.tokens.get(),
            blocked: flag(m.blocked, "whether a rank is blocked")?,
            cycle: m.cycle.get(),
        })
    }

    fn tokens(&mut self) -> Result<TokenBatch, DecodeError> {
        let b = *self.one::<record::Tokens>("batch of tokens")?;
        let mark = match flag(b.has_mark, "whether a batch has a mark")? {
            true => Some(self.mark()?),
            false => None,
        };
        let rows = self.many::<U32>(b.rows, "rows")?;
        let items = self.many::<record::Item>(b.items, "items")?;
        let item = |i: &record::Item| {
            let ReturnItem { back, slice } = returned(&i.back)?;
            Ok(TokenItem { row: i.row.get(), expert: i.expert.get(), slice, back })
        };
        Ok(TokenBatch {
            class: Class(b.class),
            frames: b.frames.get(),
            block: b.block.get(),
            generation: b.generation.get(),
            step_rows: b.step_rows.get(),
            progress: b.progress.get(),
            rows: rows.iter().map(|dst| RowMove { src: 0, dst: dst.get() }).collect(),
            items: items.iter().map(item).collect::<Result<_, _>>()?,
            mark,
        })
    }

    fn redirect(&mut self) -> Result<Redirect, DecodeError> {
        let r = *self.one::<record::Redirect>("redirect")?;
        let items = self.items(r.items)?;
        let freed = self.rows(r.freed)?;
        let slice = match flag(r.has_slice, "whether a redirect has a placement")? {
            true => Some(Arc::new(self.slice()?)),
            false => None,
        };
        Ok(Redirect { items, freed, slice })
    }

    fn slice(&mut self) -> Result<PlacementSlice, DecodeError> {
        let s = *self.one::<record::Slice>("placement")?;
        let replicas = self.many::<record::Replica>(s.replicas, "replicas")?;
        let replica = |r: &record::Replica| {
            let state = match r.state {
                0 => ReplicaState::Joining,
                1 => ReplicaState::Active,
                2 => ReplicaState::Draining,
                other => return Err(DecodeError::Value { what: "a replica's state", value: other.into() }),
            };
            let slice = slice(r.lo, r.hi)?;
            let unit = Unit { block: r.block.get(), expert: r.expert.get(), slice };
            Ok(Replica { worker: WorkerId(r.worker.get()), unit, state, fraction: r.fraction.get() })
        };
        let replicas = replicas.iter().map(replica).collect::<Result<_, _>>()?;
        Ok(PlacementSlice { blocks: s.first.get()..s.end.get(), generation: s.generation.get(), replicas })
    }

    /// All that is left, which must be so many rows.
    fn payload(self, rows: usize, row_bytes: usize) -> Result<&'a [u8], DecodeError> {
        let found = self.0.len();
        if rows.checked_mul(row_bytes) != Some(found) {
            return Err(DecodeError::Payload { rows, row_bytes, found });
        }
        Ok(self.0)
    }
}

fn returned(b: &record::Back) -> Result<ReturnItem, DecodeError> {
    let back = ReturnTo { group: b.group.get(), tag: b.tag.get(), k: b.k };
    Ok(ReturnItem { back, slice: slice(b.lo, b.hi)? })
}

/// Segments of an expert: at least one, and of eight at most.
fn slice(lo: u8, hi: u8) -> Result<Slice, DecodeError> {
    if lo < hi && hi <= SEGMENTS {
        return Ok(Slice { lo, hi });
    }
    Err(DecodeError::Value { what: "a slice's segments", value: u16::from_be_bytes([lo, hi]).into() })
}
