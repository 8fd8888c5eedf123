//! Taking sequences in, and letting them go: admission, preemption, cancellation, deadlines, drain.
//!
//! The rank decides, since two gateways may race for the same room. It admits optimistically above a watermark; when
//! pages run out the youngest sequence is handed back, so the oldest always proceeds.

use super::segments::{Enter, State};
use super::{Rank, Sequence};
use crate::counters::Counters;
use crate::event::Action;
use crate::ids::{Attempt, Nanos, SeqHandle, SeqKey};
use crate::plant::{self, Plant};
use crate::sequence::{Bind, Finish, RankEvent, Refusal};

/// Whether there is a page for what comes next.
enum Room {
    Yes,
    /// Pages will be free when the running step is over.
    Later,
    /// The sequence was the youngest and was handed back itself.
    Gone,
}

impl Rank {
    pub fn bind(&mut self, now: Nanos, bind: Bind, out: &mut Vec<Action>, n: &mut Counters) {
        if let Some(&h) = self.by_key.get(&bind.seq) {
            if self.sequence(h).attempt >= bind.attempt && !plant::is(Plant::StaleBind) {
                return;
            }
            self.close(now, h, out);
        }
        if self.waiting.values().any(|b| b.seq == bind.seq && b.attempt >= bind.attempt) {
            return;
        }
        self.waiting.retain(|_, b| b.seq != bind.seq);
        let (seq, attempt, gateway) = (bind.seq, bind.attempt, bind.gateway);
        let tell = |event| Action::Tell { gateway, seq, attempt, event };
        if self.draining {
            return out.push(tell(RankEvent::Refused(Refusal::Draining)));
        }
        if bind.ids.is_empty() || bind.produced >= bind.stop.max_tokens {
            out.push(tell(RankEvent::Accepted));
            return out.push(tell(RankEvent::Finished(Finish::Length)));
        }
        // The last token is sampled, never attended to.
        let most = bind.ids.len() as u64 + u64::from(bind.stop.max_tokens - bind.produced) - 1;
        let room = self.kv.capacity_tokens();
        if most > u64::from(room) {
            return out.push(tell(RankEvent::Refused(Refusal::TooLarge { room })));
        }
        if bind.replay {
            out.push(tell(RankEvent::Accepted));
            self.waiting.insert((bind.age, bind.seq), bind);
            return self.admit_waiting(now, out, n);
        }
        if !self.waiting.is_empty() || !self.may_admit() {
            return out.push(tell(RankEvent::Refused(Refusal::Busy)));
        }
        match self.admit(&bind, out) {
            true => out.push(tell(RankEvent::Accepted)),
            false => out.push(tell(RankEvent::Refused(Refusal::Busy))),
        }
    }

    fn may_admit(&self) -> bool {
        self.by_key.len() < self.config.max_sequences as usize
    }

    fn admit(&mut self, bind: &Bind, out: &mut Vec<Action>) -> bool {
        let Ok(table) = self.kv.admit(bind.salt, &bind.ids, self.config.watermark) else { return false };
        let handle = self.free_handles.pop().unwrap_or_else(|| {
            self.sequences.push(None);
            self.sequences.len() as u32 - 1
        });
        self.by_key.insert(bind.seq, handle);
        self.prefilling.insert((bind.age, handle));
        if let Some(d) = bind.deadline {
            self.deadlines.insert((d, handle));
        }
        out.push(Action::Open { handle: SeqHandle(handle), seq: bind.seq, attempt: bind.attempt });
        self.sequences[handle as usize] = Some(Sequence {
            key: bind.seq,
            attempt: bind.attempt,
            gateway: bind.gateway,
            age: bind.age,
            ids: bind.ids.to_vec(),
            produced: bind.produced,
            stop: bind.stop.clone(),
            deadline: bind.deadline,
            next: table.cached_tokens(),
            table,
            segments: vec![],
            closing: false,
        });
        true
    }

    /// Replays and preempted sequences come before new work, oldest first. One that is older than something that
    /// runs takes its place.
    fn admit_waiting(&mut self, now: Nanos, out: &mut Vec<Action>, n: &mut Counters) {
        while let Some((&(age, seq), bind)) = self.waiting.first_key_value() {
            let bind = bind.clone();
            if self.may_admit() && self.admit(&bind, out) {
                self.waiting.remove(&(age, seq));
                continue;
            }
            match self.youngest() {
                Some((a, h)) if a > age => self.preempt(now, h, out, n),
                _ => return,
            }
            if self.is_closing() {
                return;
            }
        }
    }

    fn youngest(&self) -> Option<(u64, u32)> {
        let live = self.sequences.iter().enumerate().filter_map(|(h, s)| Some((h as u32, s.as_ref()?)));
        live.filter(|(_, s)| !s.closing).map(|(h, s)| (s.age, h)).max()
    }

    /// Pages will be free when a step is over, or when its end has been dealt with whole.
    fn is_closing(&self) -> bool {
        self.sequences.iter().flatten().any(|s| s.closing)
    }

    /// Makes the sequence's pages cover `tokens`, at the cost of younger ones.
    fn make_room(
        &mut self,
        now: Nanos,
        handle: u32,
        tokens: u32,
        out: &mut Vec<Action>,
        n: &mut Counters,
    ) -> Room {
        loop {
            let s = self.sequences[handle as usize].as_mut().expect("a live handle");
            if self.kv.grow(&mut s.table, tokens).is_ok() {
                return Room::Yes;
            }
            if self.is_closing() {
                return Room::Later;
            }
            let Some((_, victim)) = self.youngest() else { return Room::Later };
            self.preempt(now, victim, out, n);
            if victim == handle {
                return Room::Gone;
            }
        }
    }

    /// Hands a sequence back for want of pages, or because an older one waits.
    fn preempt(&mut self, now: Nanos, handle: u32, out: &mut Vec<Action>, n: &mut Counters) {
        n.preemptions += 1;
        self.hand_back(now, handle, out);
    }

    fn hand_back(&mut self, now: Nanos, handle: u32, out: &mut Vec<Action>) {
        self.tell(handle, RankEvent::HandedBack, out);
        self.close(now, handle, out);
    }

    pub(super) fn tell(&mut self, handle: u32, event: RankEvent, out: &mut Vec<Action>) {
        let s = self.sequence(handle);
        out.push(Action::Tell { gateway: s.gateway, seq: s.key, attempt: s.attempt, event });
    }

    pub(super) fn finish(&mut self, now: Nanos, handle: u32, why: Finish, out: &mut Vec<Action>) {
        self.tell(handle, RankEvent::Finished(why), out);
        self.close(now, handle, out);
    }

    /// Gives up a sequence. What the running step uses is freed when the step is over.
    fn close(&mut self, now: Nanos, handle: u32, out: &mut Vec<Action>) {
        let s = self.sequence(handle);
        s.closing = true;
        let (key, age, deadline, segments) = (s.key, s.age, s.deadline, s.segments.clone());
        self.by_key.remove(&key);
        self.prefilling.remove(&(age, handle));
        self.starved.remove(&(age, handle));
        if let Some(d) = deadline {
            self.deadlines.remove(&(d, handle));
        }
        for id in segments {
            if self.segment(id).state == State::Running {
                self.segment(id).dropped = true;
            } else {
                self.forgo_unsent(id);
                self.end_segment(now, id);
            }
        }
        self.release_closed(handle, out);
    }

    /// Lets go of a closed sequence once no segment of it runs.
    pub(super) fn release_closed(&mut self, handle: u32, out: &mut Vec<Action>) {
        let done = self.sequences[handle as usize].take_if(|s| s.closing && s.segments.is_empty());
        let Some(s) = done else { return };
        self.kv.release(s.table);
        self.free_handles.push(handle);
        out.push(Action::Close { handle: SeqHandle(handle) });
    }

    pub fn cancel(&mut self, now: Nanos, seq: SeqKey, attempt: Attempt, out: &mut Vec<Action>) {
        if let Some(&h) = self.by_key.get(&seq)
            && self.sequence(h).attempt <= attempt
        {
            self.finish(now, h, Finish::Cancelled, out);
        }
        self.refuse_waiting(
            |b| b.seq == seq && b.attempt <= attempt,
            RankEvent::Finished(Finish::Cancelled),
            out,
        );
    }

    fn refuse_waiting(&mut self, which: impl Fn(&Bind) -> bool, event: RankEvent, out: &mut Vec<Action>) {
        self.waiting.retain(|_, b| {
            let go = which(b);
            if go {
                out.push(Action::Tell { gateway: b.gateway, seq: b.seq, attempt: b.attempt, event });
            }
            !go
        });
    }

    pub fn drain(&mut self, now: Nanos, hand_back: bool, out: &mut Vec<Action>) {
        self.draining = true;
        if hand_back {
            while let Some((_, h)) = self.youngest() {
                self.hand_back(now, h, out);
            }
            self.refuse_waiting(|_| true, RankEvent::HandedBack, out);
        }
    }

    /// What may go on now: sequences past their deadline end, starved ones get their page, waiting ones come in,
    /// prompts are cut into segments.
    pub fn pump(&mut self, now: Nanos, out: &mut Vec<Action>, n: &mut Counters) {
        while let Some(&(d, h)) = self.deadlines.first() {
            if d > now {
                break;
            }
            self.finish(now, h, Finish::Deadline, out);
        }
        let late = |b: &Bind| b.deadline.is_some_and(|d| d <= now);
        self.refuse_waiting(late, RankEvent::Finished(Finish::Deadline), out);
        self.feed_starved(now, out, n);
        self.admit_waiting(now, out, n);
        self.cut_prompts(now, out, n);
    }

    fn feed_starved(&mut self, now: Nanos, out: &mut Vec<Action>, n: &mut Counters) {
        while let Some((&(age, handle), &segment)) = self.starved.first_key_value() {
            let tokens = self.sequence(handle).ids.len() as u32;
            match self.make_room(now, handle, tokens, out, n) {
                Room::Yes => {
                    self.starved.remove(&(age, handle));
                    self.enqueue(now, segment);
                }
                Room::Later => return,
                Room::Gone => {}
            }
        }
    }

    /// Cuts prompts into segments, oldest first, as far as rows, pages and the prefill budget go. Nobody overtakes.
    fn cut_prompts(&mut self, now: Nanos, out: &mut Vec<Action>, n: &mut Counters) {
        let mut after = None;
        loop {
            let next = match after {
                None => self.prefilling.first(),
                Some(a) => {
                    self.prefilling.range((std::ops::Bound::Excluded(a), std::ops::Bound::Unbounded)).next()
                }
            };
            let Some(&(age, handle)) = next else { return };
            loop {
                let (chunk, budget) = (self.config.prefill_chunk, self.config.prefill_tokens);
                let s = self.sequence(handle);
                let (start, end) = (s.next, s.ids.len() as u32);
                let ahead = s.segments.last().copied();
                // The next segment comes when the one ahead is past its first block: until then it could only wait.
                if ahead.is_some_and(|a| self.segment(a).written == 0) {
                    break;
                }
                let rows = chunk.min(end - start);
                let full = self.prefill_rows > 0 && self.prefill_rows + rows > budget;
                if full || !self.has_rows(rows) {
                    return;
                }
                match self.make_room(now, handle, start + rows, out, n) {
                    Room::Yes => {}
                    Room::Later => return,
                    Room::Gone => break,
                }
                self.sequence(handle).next = start + rows;
                let last = start + rows == end;
                n.prefilled += u64::from(rows);
                self.new_segment(now, handle, start, rows, last);
                if last {
                    self.prefilling.remove(&(age, handle));
                    break;
                }
            }
            after = Some((age, handle));
        }
    }

    /// The sequence's next token: its segment starts again at block 0.
    pub(super) fn decode_on(&mut self, now: Nanos, id: u32, out: &mut Vec<Action>, n: &mut Counters) {
        let prefill = self.prefill_class();
        let s = self.segment(id);
        let (handle, class, progress) = (s.sequence, s.class, s.progress);
        if class == prefill {
            self.clocks[class as usize].remove(progress, 1);
            self.prefill_rows -= 1;
            let wave = (0..prefill).min_by_key(|w| self.clocks[*w as usize].total()).unwrap_or(prefill);
            let admitted = self.clocks[wave as usize].admit(1);
            let s = self.segment(id);
            (s.class, s.progress) = (wave, admitted);
        } else {
            self.segment(id).progress = self.clocks[class as usize].begin(progress, 1);
        }
        let q = self.sequence(handle);
        let (age, tokens) = (q.age, q.ids.len() as u32);
        let s = self.segment(id);
        (s.start, s.block, s.written) = (tokens - 1, 0, 0);
        (s.enter, s.state) = (Enter::Embed, State::Held);
        match self.make_room(now, handle, tokens, out, n) {
            Room::Yes => self.enqueue(now, id),
            Room::Later => {
                self.starved.insert((age, handle), id);
            }
            Room::Gone => {}
        }
    }
}
