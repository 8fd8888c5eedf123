//! Messages in fragments, so that a small one does not wait until a large one is through.
//!
//! Each connection has two lanes. A fragment is a head of four bytes and up to 65,535 bytes of one message; the first of
//! a message begins with the message's length. Fragments of the urgent lane go first; those of one lane keep their
//! order, so a lane has at most one message half sent.

use std::collections::VecDeque;
use std::ops::Deref;

use bytes::Bytes;

/// Which of two messages goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Decode batches, returns, marks.
    Urgent,
    /// Prefill batches.
    Bulk,
}

/// Bytes of a fragment's head: its length, its lane, and whether it is the last of its message.
pub const HEAD: usize = 4;
/// Bytes of a message in one fragment, at most.
pub const MOST: usize = u16::MAX as usize;
/// The length that a message begins with.
const LENGTH: usize = 4;

/// What is to be sent on one connection, in the order it goes.
#[derive(Debug, Default)]
pub struct Outgoing {
    lanes: [VecDeque<Bytes>; 2],
    bytes: usize,
}

impl Outgoing {
    /// Puts a message in line: its parts, one behind the other.
    pub fn push(&mut self, lane: Lane, parts: impl IntoIterator<Item = Bytes>) {
        let parts: Vec<Bytes> = parts.into_iter().filter(|p| !p.is_empty()).collect();
        let length: usize = parts.iter().map(Bytes::len).sum();
        self.bytes += LENGTH + length;
        let line = &mut self.lanes[lane as usize];
        line.push_back(Bytes::copy_from_slice(&(length as u32).to_le_bytes()));
        line.extend(parts);
        // An empty part ends a message.
        line.push_back(Bytes::new());
    }

    /// Bytes in line.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether nothing is in line.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The next fragment: its head, and its parts in `out`. None if nothing is in line.
    pub fn next(&mut self, out: &mut Vec<Bytes>) -> Option<[u8; HEAD]> {
        let lane = self.lanes.iter().position(|l| !l.is_empty())?;
        let line = &mut self.lanes[lane];
        let (mut room, mut last) = (MOST, false);
        while let Some(part) = line.front_mut() {
            if part.is_empty() {
                line.pop_front();
                last = true;
                break;
            }
            if room == 0 {
                break;
            }
            let taken = part.split_to(part.len().min(room));
            room -= taken.len();
            out.push(taken);
            if part.is_empty() {
                line.pop_front();
            }
        }
        let length = MOST - room;
        self.bytes -= length;
        let [a, b] = (length as u16).to_le_bytes();
        Some([a, b, lane as u8, u8::from(last)])
    }
}

/// Why fragments are no messages. The connection is to be closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FragmentError {
    /// A head that means nothing.
    #[error("a fragment's head is {0:?}, which means nothing: the peer speaks something else")]
    Head([u8; HEAD]),
    /// A message is longer than any can be.
    #[error("a message of {length} bytes is announced, and none has more than {most}")]
    Long {
        /// Its length.
        length: usize,
        /// The longest.
        most: usize,
    },
    /// A message is not as long as it said.
    #[error("a message of {length} bytes ends after {found}")]
    Length {
        /// What it said.
        length: usize,
        /// What came.
        found: usize,
    },
}

/// A message that is whole, in the buffer that it was put together in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whole(Vec<u8>);

impl Deref for Whole {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0[LENGTH..]
    }
}

impl Whole {
    /// The buffer, in which the message goes to the end.
    pub fn into_buffer(self) -> Vec<u8> {
        self.0
    }
}

/// Puts fragments of one connection together again.
#[derive(Debug)]
pub struct Assembly {
    most: usize,
    lanes: [Vec<u8>; 2],
}

impl Assembly {
    /// For messages of at most `most` bytes.
    pub fn new(most: usize) -> Self {
        Self { most, lanes: Default::default() }
    }

    /// The lane and the length of the fragment that a head announces.
    ///
    /// # Errors
    /// If it is none.
    pub fn head(head: [u8; HEAD]) -> Result<(Lane, usize, bool), FragmentError> {
        let length = usize::from(u16::from_le_bytes([head[0], head[1]]));
        match (head[2], head[3]) {
            (0, last @ 0..=1) => Ok((Lane::Urgent, length, last == 1)),
            (1, last @ 0..=1) => Ok((Lane::Bulk, length, last == 1)),
            _ => Err(FragmentError::Head(head)),
        }
    }

    /// Where the next bytes of a lane go. While it is empty, another empty one may be put in its place.
    pub fn buffer(&mut self, lane: Lane) -> &mut Vec<u8> {
        &mut self.lanes[lane as usize]
    }

    /// A fragment of a lane is in its buffer. Gives the message, if it is whole.
    ///
    /// # Errors
    /// If it is longer than any can be, or not as long as it said.
    pub fn ends(&mut self, lane: Lane, last: bool) -> Result<Option<Whole>, FragmentError> {
        let buffer = &mut self.lanes[lane as usize];
        let said = buffer.first_chunk::<LENGTH>().map(|l| u32::from_le_bytes(*l) as usize);
        let found = buffer.len().saturating_sub(LENGTH);
        if let Some(length) = said.filter(|l| *l > self.most) {
            return Err(FragmentError::Long { length, most: self.most });
        }
        let length = said.unwrap_or(0);
        let too_long = said.is_some() && found > length;
        if too_long || (last && (said.is_none() || found != length)) {
            return Err(FragmentError::Length { length, found });
        }
        Ok(last.then(|| Whole(std::mem::take(buffer))))
    }
}
