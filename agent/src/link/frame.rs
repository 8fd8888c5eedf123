//! Messages on a stream of bytes.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};

use super::end::{Broken, End, Garbage};
use super::message;

/// Bytes of a frame behind its length, at most. The longest messages are binds: five bytes a token id, so this is a
/// prompt of three million tokens, or the longest grammar and one of many hundred thousand. A peer that announces more
/// speaks something else, and no message is worth more memory.
pub(super) const MOST: usize = 16 << 20;
/// The acknowledgement and the number.
pub(super) const HEAD: usize = 16;
/// Bytes of a message, at most.
pub(super) const MOST_MESSAGE: usize = MOST - HEAD;

const LENGTH: usize = 4;
/// What is read at once.
const CHUNK: usize = 16 << 10;

/// What travels in a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Envelope {
    /// The number of the newest message that the sender has.
    pub has: u64,
    /// The message and its number; a heartbeat has none.
    pub message: Option<(u64, Bytes)>,
}

/// Appends a frame with a message, or a heartbeat.
pub(super) fn put(out: &mut BytesMut, has: u64, message: Option<(u64, &[u8])>) {
    let (number, message) = message.unwrap_or((0, &[]));
    out.reserve(LENGTH + HEAD + message.len());
    // What is kept in a session was found short enough.
    out.put_u32_le((HEAD + message.len()) as u32);
    out.put_u64_le(has);
    out.put_u64_le(number);
    out.put_slice(message);
}

/// A stream on which a session is being opened.
#[derive(Debug)]
pub(super) struct Wire<S> {
    stream: S,
    buffer: BytesMut,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, buffer: BytesMut::new() }
    }

    /// Writes a message of the opening.
    pub(super) async fn write<T: Serialize>(&mut self, message: &T) -> Result<(), End> {
        let message = message::encode(message);
        let mut out = BytesMut::with_capacity(LENGTH + message.len());
        out.put_u32_le(message.len() as u32);
        out.put_slice(&message);
        self.stream.write_all(&out).await?;
        Ok(self.stream.flush().await?)
    }

    /// Reads a message of the opening.
    pub(super) async fn read<T: DeserializeOwned>(&mut self, what: &'static str) -> Result<T, End> {
        let frame = next(&mut self.stream, &mut self.buffer, || ()).await?;
        Ok(message::decode(what, &frame)?)
    }

    pub(super) fn split(self) -> (Reader<S>, WriteHalf<S>) {
        let (stream, writer) = tokio::io::split(self.stream);
        (Reader { stream, buffer: self.buffer }, writer)
    }
}

/// The half of a stream that a session's messages are read from.
#[derive(Debug)]
pub(super) struct Reader<S> {
    stream: ReadHalf<S>,
    buffer: BytesMut,
}

impl<S: AsyncRead> Reader<S> {
    /// The next envelope. Calls `heard` whenever something arrives, be it a part of a message.
    pub(super) async fn envelope(&mut self, heard: impl Fn()) -> Result<Envelope, End> {
        Ok(open(next(&mut self.stream, &mut self.buffer, heard).await?)?)
    }
}

fn open(mut frame: Bytes) -> Result<Envelope, Garbage> {
    let length = frame.len();
    if length < HEAD {
        return Err(Garbage::Short { length, least: HEAD });
    }
    let (has, number) = (frame.get_u64_le(), frame.get_u64_le());
    match number {
        0 if frame.is_empty() => Ok(Envelope { has, message: None }),
        0 => Err(Garbage::Beat { length: frame.len() }),
        _ => Ok(Envelope { has, message: Some((number, frame)) }),
    }
}

/// The next frame without its length. Memory grows with what has come, not with what was announced.
async fn next<R>(stream: &mut R, buffer: &mut BytesMut, heard: impl Fn()) -> Result<Bytes, End>
where
    R: AsyncRead + Unpin,
{
    loop {
        if let Some(frame) = cut(buffer)? {
            return Ok(frame);
        }
        buffer.reserve(CHUNK);
        if stream.read_buf(buffer).await? == 0 {
            return Err(Broken::Closed.into());
        }
        heard();
    }
}

fn cut(buffer: &mut BytesMut) -> Result<Option<Bytes>, Garbage> {
    let Some(length) = buffer.first_chunk::<LENGTH>() else { return Ok(None) };
    let length = u32::from_le_bytes(*length) as usize;
    if length > MOST {
        return Err(Garbage::Long { length, most: MOST });
    }
    if buffer.len() < LENGTH + length {
        return Ok(None);
    }
    buffer.advance(LENGTH);
    Ok(Some(buffer.split_to(length).freeze()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All frames of some bytes that come in chunks, and what is wrong with the rest.
    fn frames(chunks: &[&[u8]]) -> (Vec<Envelope>, Option<Garbage>) {
        let (mut buffer, mut all) = (BytesMut::new(), vec![]);
        for chunk in chunks {
            buffer.put_slice(chunk);
            loop {
                match cut(&mut buffer).and_then(|frame| frame.map(open).transpose()) {
                    Ok(Some(envelope)) => all.push(envelope),
                    Ok(None) => break,
                    Err(garbage) => return (all, Some(garbage)),
                }
            }
        }
        (all, None)
    }

    proptest! {
        #[test]
        fn envelopes_come_out_however_the_bytes_arrive(
            sent in prop::collection::vec((any::<u64>(), prop::option::of((1..u64::MAX, prop::collection::vec(any::<u8>(), 0..50)))), 0..10),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
        ) {
            let mut bytes = BytesMut::new();
            for (has, message) in &sent {
                put(&mut bytes, *has, message.as_ref().map(|(number, m)| (*number, m.as_slice())));
            }
            let mut ends: Vec<usize> = cuts.iter().map(|c| c.index(bytes.len() + 1)).collect();
            ends.extend([0, bytes.len()]);
            ends.sort_unstable();
            let chunks: Vec<&[u8]> = ends.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
            let (got, garbage) = frames(&chunks);
            let due: Vec<Envelope> = sent
                .into_iter()
                .map(|(has, message)| Envelope { has, message: message.map(|(n, m)| (n, m.into())) })
                .collect();
            prop_assert_eq!((got, garbage), (due, None));
        }

        #[test]
        fn nothing_in_bytes_harms(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            frames(&[&bytes]);
        }
    }

    #[test]
    fn what_is_no_frame_is_named() {
        let said = |bytes: &[u8]| frames(&[bytes]).1.map(|garbage| garbage.to_string());
        let http = said(b"GET / HTTP/1.1");
        assert_eq!(
            http.as_deref(),
            Some("the peer announced a message of 542393671 bytes, and none has more than 16777216")
        );
        let short = said(&[2, 0, 0, 0, 1, 1]);
        assert_eq!(short.as_deref(), Some("the peer sent a message of 2 bytes, and none has fewer than 16"));
        let mut beat = vec![17, 0, 0, 0];
        beat.extend([0; 17]);
        assert_eq!(said(&beat).as_deref(), Some("the peer sent a heartbeat with 1 bytes behind it"));
        assert_eq!(said(&[0, 0, 0]), None, "more may come");
    }
}
