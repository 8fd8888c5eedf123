//! Segments: consecutive positions of one sequence that travel together.
//!
//! A segment enters attention of block b only when all of its tokens are merged, and not before the segment ahead of
//! it (which must have written its keys and values of that block, or run in the same step).

use super::queues::Entry as Queued;
use super::{NONE, Rank};
use crate::ids::{Nanos, Progress};

/// How a segment's rows enter their next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Enter {
    Embed,
    Merge,
    Carry,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Whole, but the segment ahead has not come by yet; or waiting for a KV page.
    Held,
    Queued,
    Running,
    /// At experts: so many tokens are not whole.
    Away(u32),
}

#[derive(Debug)]
pub(crate) struct Segment {
    pub sequence: u32,
    /// Position of its first token.
    pub start: u32,
    pub tokens: Vec<u32>,
    /// The block it enters next; L for the head.
    pub block: u16,
    pub progress: Progress,
    pub class: u8,
    pub state: State,
    pub enter: Enter,
    /// Blocks whose keys and values it has written.
    pub written: u16,
    /// The segment before it, if still under way, and the one after.
    pub ahead: Option<u32>,
    pub behind: Option<u32>,
    /// It is the end of the prompt or a decode token: its last row is sampled.
    pub last: bool,
    /// Given up while it runs.
    pub dropped: bool,
    /// Its rows are in the class's clock; not while one of them waits for an expert that nobody holds.
    pub counted: bool,
}

impl Rank {
    /// Room for a segment of `rows`?
    pub(super) fn has_rows(&self, rows: u32) -> bool {
        self.free_tokens.len() >= rows as usize
    }

    /// Makes a prefill segment and queues it. Rows and KV pages are there.
    pub(super) fn new_segment(&mut self, now: Nanos, handle: u32, start: u32, rows: u32, last: bool) {
        let class = self.prefill_class();
        let progress = self.clocks[class as usize].admit(rows);
        let ahead = self.sequence(handle).segments.last().copied();
        let tokens = self.free_tokens.split_off(self.free_tokens.len() - rows as usize);
        let id = self.free_segments.pop().unwrap_or_else(|| {
            self.segments.push(None);
            self.segments.len() as u32 - 1
        });
        for &t in &tokens {
            self.token_segment[t as usize] = id;
            self.token_group[t as usize] = self.pool.open(t).unwrap_or(NONE);
        }
        if let Some(a) = ahead {
            self.segment(a).behind = Some(id);
        }
        self.segments[id as usize] = Some(Segment {
            sequence: handle,
            start,
            tokens,
            block: 0,
            progress,
            class,
            state: State::Held,
            enter: Enter::Embed,
            written: 0,
            ahead,
            behind: None,
            last,
            dropped: false,
            counted: true,
        });
        self.sequence(handle).segments.push(id);
        self.prefill_rows += rows;
        self.enqueue(now, id);
    }

    /// Puts a whole segment into its queue, if the one ahead allows, and those behind it that waited for that.
    pub(super) fn enqueue(&mut self, now: Nanos, id: u32) {
        let mut next = Some(id);
        while let Some(id) = next {
            let s = self.segment(id);
            if s.state != State::Held {
                return;
            }
            let (block, class) = (s.block, s.class);
            if let Some(a) = s.ahead {
                let a = self.segment(a);
                let beside = a.state == State::Queued && a.block == block && a.class == class;
                if a.written <= block && !beside {
                    return;
                }
            }
            let s = self.segment(id);
            s.state = State::Queued;
            next = s.behind;
            let entry = Queued { segment: id, rows: s.tokens.len() as u32, progress: s.progress, since: now };
            self.queues.push(block, class, entry);
        }
    }

    /// The segment behind may have waited for this one's keys and values.
    pub(super) fn wake_behind(&mut self, now: Nanos, id: u32) {
        if let Some(b) = self.segment(id).behind {
            self.enqueue(now, b);
        }
    }

    /// Frees a token that is at home: nobody else will write to its rows.
    fn free_token(&mut self, token: u32) {
        let group = std::mem::replace(&mut self.token_group[token as usize], NONE);
        self.pool.close(group);
        self.token_segment[token as usize] = NONE;
        self.free_tokens.push(token);
    }

    /// The last return of an abandoned token came.
    pub(super) fn free_abandoned(&mut self, token: u32) {
        self.token_group[token as usize] = NONE;
        self.token_segment[token as usize] = NONE;
        self.free_tokens.push(token);
    }

    /// Drops leading rows of a segment that nobody wants any more. They are at home.
    pub(super) fn drop_rows(&mut self, id: u32, rows: usize) {
        let s = self.segment(id);
        let (class, progress) = (s.class, s.progress);
        let gone: Vec<u32> = s.tokens.drain(..rows).collect();
        self.clocks[class as usize].remove(progress, rows as u32);
        if class == self.prefill_class() {
            self.prefill_rows -= rows as u32;
        }
        for t in gone {
            self.free_token(t);
        }
    }

    /// Takes a segment out of its sequence. Tokens at experts keep their rows until the last return.
    pub(super) fn end_segment(&mut self, now: Nanos, id: u32) {
        let Some(s) = self.segments[id as usize].take() else { return };
        self.free_segments.push(id);
        if s.state == State::Queued {
            self.queues.remove(s.block, s.class, id);
        }
        if s.counted {
            self.clocks[s.class as usize].remove(s.progress, s.tokens.len() as u32);
        }
        if s.class == self.prefill_class() {
            self.prefill_rows -= s.tokens.len() as u32;
        }
        for &t in &s.tokens {
            self.token_segment[t as usize] = NONE;
            if self.pool.abandon(self.token_group[t as usize]) {
                self.token_group[t as usize] = NONE;
                self.free_tokens.push(t);
            }
        }
        if let Some(a) = s.ahead
            && let Some(a) = self.segments[a as usize].as_mut()
        {
            a.behind = s.behind;
        }
        if let Some(q) = self.sequences[s.sequence as usize].as_mut() {
            q.segments.retain(|x| *x != id);
        }
        if let Some(b) = s.behind {
            self.segment(b).ahead = s.ahead;
            self.enqueue(now, b);
        }
    }
}
