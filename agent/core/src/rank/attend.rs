//! Making attention and head steps, and what follows when they are done.

use super::queues::Entry as Queued;
use super::segments::{Enter, State};
use super::{Rank, Running};
use crate::counters::Counters;
use crate::event::Action;
use crate::ids::{Nanos, SeqHandle};
use crate::net::Net;
use crate::sequence::{Finish, RankEvent};
use crate::step::{AttentionStep, Entry, HeadRow, HeadStep, Sample, SegmentStep, Step, TokenRow};
use std::ops::Range;

/// The classes a step takes from, as bits.
pub(crate) type Classes = u16;

impl Rank {
    /// Takes queued segments of one block, decode waves before prefill, up to the token budget.
    fn take(&mut self, block: u16, classes: Classes, budget: u32) -> Vec<Queued> {
        let (mut taken, mut left) = (std::mem::take(&mut self.taken), budget);
        taken.clear();
        for class in (0..self.clocks.len() as u8).filter(|c| classes >> c & 1 == 1) {
            if left == 0 && !taken.is_empty() {
                break;
            }
            self.queues.take(block, class, &mut left, &mut taken);
        }
        taken
    }

    /// How far a span of these segments may go: none overtakes the segment ahead of it, which writes its keys and
    /// values of a block first. Those ahead that are in the same step are in front.
    fn reach(&self, taken: &[Queued]) -> u16 {
        let segment = |id: u32| self.segments[id as usize].as_ref();
        let ahead = taken.iter().filter_map(|e| segment(e.segment)?.ahead);
        let left_out = ahead.filter(|a| taken.iter().all(|e| e.segment != *a));
        left_out.filter_map(|a| Some(segment(a)?.written)).min().unwrap_or(self.shape.blocks())
    }

    /// An attention step over `blocks` (one, or a span).
    pub fn attention_step(&mut self, blocks: Range<u16>, span: bool, classes: Classes, budget: u32) -> Step {
        let taken = self.take(blocks.start, classes, budget);
        let blocks = blocks.start..blocks.end.min(self.reach(&taken));
        let rows = taken.iter().map(|e| e.rows as usize).sum();
        let mut step = AttentionStep {
            blocks: blocks.clone(),
            span,
            segments: Vec::with_capacity(taken.len()),
            rows: Vec::with_capacity(rows),
            slicing: Vec::with_capacity(rows * self.shape.top_k as usize),
            pages: Vec::with_capacity(self.usual_pages),
        };
        for e in &taken {
            let s = self.segments[e.segment as usize].as_mut().expect("a queued segment");
            let q = self.sequences[s.sequence as usize].as_ref().expect("its sequence");
            s.state = State::Running;
            let pages = q.table.pages();
            let needed = (s.start + e.rows).div_ceil(self.config.page_size) as usize;
            let first = step.pages.len() as u32;
            step.pages.extend_from_slice(&pages[..needed]);
            let segment = SegmentStep {
                seq: SeqHandle(s.sequence),
                start: s.start,
                len: e.rows,
                pages: first..step.pages.len() as u32,
            };
            step.segments.push(segment);
            for (i, &token) in s.tokens.iter().enumerate() {
                let entry = match s.enter {
                    Enter::Embed => Entry::Embed(q.ids[s.start as usize + i]),
                    Enter::Merge => {
                        let group = self.token_group[token as usize];
                        step.slicing.extend_from_slice(self.pool.slicing(group));
                        Entry::Merge(group)
                    }
                    Enter::Carry => Entry::Carry,
                };
                let wanted = s.last && i + 1 == s.tokens.len();
                step.rows.push(TokenRow { token, entry, wanted });
            }
        }
        self.usual_pages = step.pages.len();
        let segments = taken.iter().map(|e| e.segment).collect();
        self.taken = taken;
        self.running = Some(Running::Attention { blocks, span, segments });
        Step::Attention(step)
    }

    /// A head step.
    pub fn head_step(&mut self, classes: Classes, budget: u32) -> Step {
        let taken = self.take(self.shape.blocks(), classes, budget);
        let mut step = HeadStep { rows: Vec::with_capacity(taken.len()), slicing: vec![] };
        for e in &taken {
            let s = self.segments[e.segment as usize].as_mut().expect("a queued segment");
            let q = self.sequences[s.sequence as usize].as_ref().expect("its sequence");
            s.state = State::Running;
            let Some(&token) = s.tokens.last() else { continue };
            let entry = if s.enter == Enter::Merge {
                let group = self.token_group[token as usize];
                step.slicing.extend_from_slice(self.pool.slicing(group));
                Entry::Merge(group)
            } else {
                Entry::Carry
            };
            step.rows.push(HeadRow { token, entry, seq: SeqHandle(s.sequence), index: q.produced });
        }
        self.running = Some(Running::Head { segments: taken.iter().map(|e| e.segment).collect() });
        self.taken = taken;
        Step::Head(step)
    }

    /// Drops a segment that was given up while it ran. True if it was.
    fn reap(&mut self, now: Nanos, id: u32, out: &mut Vec<Action>) -> bool {
        let s = self.segment(id);
        if !s.dropped {
            return false;
        }
        let handle = s.sequence;
        self.end_segment(now, id);
        self.release_closed(handle, out);
        true
    }

    /// Attention is done. `routed` holds K experts for each row of the step, unless the block is dense or a span.
    pub fn attended(&mut self, now: Nanos, routed: &[u16], net: &mut Net, n: &mut Counters) {
        let Some(Running::Attention { blocks, span, segments }) = self.running.take() else { return };
        let (total, k) = (self.shape.blocks(), self.shape.top_k as usize);
        let to_experts = !span && self.shape.moe[blocks.start as usize];
        let mut at = 0;
        // (class, progress) of what goes to experts, so that each batch has one clock value.
        let mut groups: Vec<(u8, u64)> = vec![];
        let mut away: Vec<(u32, usize)> = Vec::with_capacity(segments.len());
        for id in segments {
            let first = at;
            at += self.segment(id).tokens.len();
            if self.reap(now, id, &mut net.out) {
                continue;
            }
            let mut first = first;
            self.segment(id).written = blocks.end;
            if blocks.end == total {
                let s = self.segment(id);
                let (handle, end) = (s.sequence, s.start + s.tokens.len() as u32);
                let unwanted = s.tokens.len() - usize::from(s.last);
                let q = self.sequences[handle as usize].as_mut().expect("its sequence");
                self.kv.commit(&mut q.table, &q.ids, end);
                self.drop_rows(id, unwanted);
                first += unwanted;
                if self.segment(id).tokens.is_empty() {
                    self.end_segment(now, id);
                    continue;
                }
            }
            let s = self.segments[id as usize].as_mut().expect("a live segment");
            let (from, to) = (s.progress, s.progress + u64::from(blocks.end - blocks.start));
            let rows = s.tokens.len() as u32;
            (s.progress, s.block) = (to, blocks.end);
            self.clocks[s.class as usize].advance(from, to, rows);
            if to_experts {
                s.state = State::Away(rows);
                s.enter = Enter::Merge;
                if !groups.contains(&(s.class, from)) {
                    groups.push((s.class, from));
                }
                away.push((id, first));
            } else {
                s.state = State::Held;
                s.enter = Enter::Carry;
                self.enqueue(now, id);
            }
            self.wake_behind(now, id);
        }
        if !away.is_empty() {
            self.dispatch(blocks.start, &away, &groups, &routed[..at * k], net, n);
        }
    }

    /// Sampling is done.
    pub fn sampled(&mut self, now: Nanos, samples: &[Sample], net: &mut Net, n: &mut Counters) {
        let Some(Running::Head { segments }) = self.running.take() else { return };
        for (id, sample) in segments.into_iter().zip(samples) {
            if self.reap(now, id, &mut net.out) {
                continue;
            }
            // The segment is at home; closing must not wait for a step that is over.
            self.segment(id).state = State::Held;
            let handle = self.segment(id).sequence;
            let token = match sample {
                Sample::Token(t) => *t,
                Sample::Done => {
                    self.finish(now, handle, Finish::Stop, &mut net.out);
                    continue;
                }
                Sample::Abort(why) => {
                    self.finish(now, handle, Finish::Aborted(*why), &mut net.out);
                    continue;
                }
            };
            n.sampled += 1;
            let q = self.sequence(handle);
            let index = q.produced;
            q.produced += 1;
            q.ids.push(token);
            let stop = q.produced >= q.stop.min_tokens && q.stop.ids.binary_search(&token).is_ok();
            let full = q.produced >= q.stop.max_tokens;
            self.tell(handle, RankEvent::Token { index, id: token }, &mut net.out);
            if stop {
                self.finish(now, handle, Finish::Stop, &mut net.out);
            } else if full {
                self.finish(now, handle, Finish::Length, &mut net.out);
            } else {
                self.decode_on(now, id, &mut net.out, n);
            }
        }
    }
}
