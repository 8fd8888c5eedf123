//! What waits to be sent to one peer, and the tasks that send it.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::{Buf, Bytes};
use sluice_core::frame::Channel;
use sluice_wire::{Lane, Outgoing};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Notify;

/// So much is handed to the socket at a time: what is urgent waits for no more than this.
const BURST: usize = 128 << 10;
/// More than this in line is a peer that takes nothing, or a defect: by the core's credits there is never as much.
const MOST: usize = 1 << 30;

/// One connection's line.
#[derive(Debug, Default)]
struct Line {
    waiting: Mutex<Outgoing>,
    ready: Notify,
}

/// The lines of both connections of a pair.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    lines: [Line; 2],
}

impl Outbox {
    fn line(&self, channel: Channel) -> (&Line, MutexGuard<'_, Outgoing>) {
        let line = &self.lines[channel as usize];
        (line, line.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts a message in line; false if there is more in line than can be.
    pub(super) fn push(&self, channel: Channel, lane: Lane, parts: impl IntoIterator<Item = Bytes>) -> bool {
        let (line, mut waiting) = self.line(channel);
        waiting.push(lane, parts);
        let sound = waiting.len() <= MOST;
        drop(waiting);
        line.ready.notify_one();
        sound
    }

    /// Whether nothing is in line.
    pub(super) fn is_empty(&self, channel: Channel) -> bool {
        self.line(channel).1.is_empty()
    }

    /// Sends what comes, until the connection breaks.
    pub(super) async fn send(&self, channel: Channel, mut to: impl AsyncWrite + Unpin) -> std::io::Error {
        loop {
            let mut burst = self.burst(channel);
            if burst.0.is_empty() {
                self.lines[channel as usize].ready.notified().await;
                continue;
            }
            let sent = async {
                to.write_all_buf(&mut burst).await?;
                to.flush().await
            };
            if let Err(e) = sent.await {
                return e;
            }
        }
    }

    fn burst(&self, channel: Channel) -> Burst {
        let (_, mut waiting) = self.line(channel);
        let (mut parts, mut fragment, mut length) = (VecDeque::new(), vec![], 0);
        while length < BURST
            && let Some(head) = waiting.next(&mut fragment)
        {
            parts.push_back(Bytes::copy_from_slice(&head));
            length += fragment.iter().map(Bytes::len).sum::<usize>();
            parts.extend(fragment.drain(..));
        }
        Burst(parts)
    }
}

/// Fragments on their way out, none of them copied together.
struct Burst(VecDeque<Bytes>);

impl Buf for Burst {
    fn remaining(&self) -> usize {
        self.0.iter().map(Bytes::len).sum()
    }

    fn chunk(&self) -> &[u8] {
        self.0.front().map_or(&[], |part| part)
    }

    fn advance(&mut self, mut count: usize) {
        while let Some(part) = self.0.front_mut() {
            if count < part.len() {
                part.advance(count);
                return;
            }
            count -= part.len();
            self.0.pop_front();
        }
    }

    fn chunks_vectored<'a>(&'a self, out: &mut [IoSlice<'a>]) -> usize {
        for (slice, part) in out.iter_mut().zip(&self.0) {
            *slice = IoSlice::new(part);
        }
        out.len().min(self.0.len())
    }
}
