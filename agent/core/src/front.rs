//! The gateway's half of the core: the journal of every sequence, and which attention rank it is bound to.
//!
//! The journal (prompt and produced token ids) is what makes a rank's loss harmless: the sequence is bound again
//! elsewhere as a longer prompt. A rank's word counts only for the current attempt and the next index, so whatever a
//! slow, partitioned or resurrected rank still says is dropped.
//!
//! What a rank says about one sequence must arrive in the order it was said (one connection). A missing token is
//! noticed and answered with a replay.
//!
//! ```text
//! submit -> [waiting] -> bound -> accepted -> token* -> ended
//!              ^            | Busy, Draining     |
//!              |<-----------+                    |
//!              |<--- handed back, rank down -----+    (queues ahead of new work)
//! ```

mod affinity;
mod ranks;
#[cfg(test)]
mod tests;
mod types;

use crate::ids::{Attempt, Nanos, SECOND, SeqKey, WorkerId};
use crate::plant::{self, Plant};
use crate::sequence::{Bind, Finish, RankEvent, Refusal, StopRule};
use affinity::Affinity;
use ranks::Ranks;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

pub use ranks::RankLoad;
pub use types::{Action, CancelCause, Complete, Ending, FrontConfig, FrontCounts, Refused, Submit, Waiting};

/// Where a sequence is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Waiting,
    Bound { rank: WorkerId, accepted: bool },
}

#[derive(Debug)]
struct Seq<H> {
    handle: H,
    prompt: Arc<[u32]>,
    produced: Vec<u32>,
    stop: StopRule,
    deadline: Option<Nanos>,
    salt: u64,
    /// Hashes of the prompt's prefixes, for affinity.
    prefixes: Arc<[u64]>,
    age: u64,
    attempt: Attempt,
    place: Place,
    /// Some rank has had it: it queues ahead of new work and is never refused.
    replay: bool,
    /// Ranks that said it does not fit their pool, and what that holds.
    too_large: BTreeMap<WorkerId, u32>,
}

impl<H> Seq<H> {
    /// What the journal alone says: the last word of a lost rank may have been lost with it.
    fn complete(&self) -> Option<Complete> {
        if self.produced.last().is_some_and(|id| self.stop.ids.binary_search(id).is_ok()) {
            Some(Complete::Stop)
        } else if self.produced.len() >= self.stop.max_tokens as usize {
            Some(Complete::Length)
        } else {
            None
        }
    }

    /// KV positions it may need: the last token's keys are never written.
    fn need(&self) -> u32 {
        need(&self.prompt, &self.stop)
    }
}

fn need(prompt: &[u32], stop: &StopRule) -> u32 {
    u32::try_from(prompt.len()).unwrap_or(u32::MAX).saturating_add(stop.max_tokens.saturating_sub(1))
}

/// What the choices of a request share.
#[derive(Debug, Default)]
struct Request {
    live: u16,
    bound: u16,
    /// The numerics id all choices stay with, once one is bound.
    cohort: Option<u64>,
    /// A rank took one of them: the cohort is final.
    committed: bool,
}

/// The journal and the binding of one gateway. `H` is the driver's own handle of a sequence.
#[derive(Debug)]
pub struct Front<H> {
    config: FrontConfig,
    ranks: Ranks,
    seqs: HashMap<SeqKey, Seq<H>>,
    requests: HashMap<u64, Request>,
    replays: BTreeMap<u64, SeqKey>,
    fresh: BTreeMap<u64, SeqKey>,
    /// New sequences no rank has taken: those in `fresh`, and binds without an answer.
    untaken: usize,
    deadlines: BTreeSet<(Nanos, SeqKey)>,
    affinity: Affinity,
    last_age: u64,
    last_taken: Option<Nanos>,
    /// Moving mean of the time between two sequences taken.
    pace: Nanos,
    draining: bool,
    counts: FrontCounts,
}

impl<H: Clone> Front<H> {
    /// A front without ranks.
    pub fn new(config: FrontConfig) -> Self {
        Self {
            ranks: Ranks::new(config.busy_hold),
            seqs: HashMap::new(),
            requests: HashMap::new(),
            replays: BTreeMap::new(),
            fresh: BTreeMap::new(),
            untaken: 0,
            deadlines: BTreeSet::new(),
            affinity: Affinity::new(config.prefixes),
            last_age: 0,
            last_taken: None,
            pace: 0,
            draining: false,
            counts: FrontCounts::default(),
            config,
        }
    }

    /// Takes a request, or refuses it at the door: all choices or none. After the door no sequence is refused for
    /// lack of room.
    ///
    /// # Errors
    /// The queue is full, the gateway drains, or no pool would ever hold the request.
    pub fn submit(&mut self, now: Nanos, submit: Submit<H>, out: &mut Vec<Action<H>>) -> Result<(), Refused> {
        let n = submit.choices.len();
        self.door(&submit).inspect_err(|_| self.counts.refused += n as u64)?;
        self.counts.admitted += n as u64;
        self.requests.insert(submit.request, Request { live: n as u16, ..Request::default() });
        let prefixes: Arc<[u64]> = affinity::prefixes(submit.salt, &submit.prompt).into();
        for (choice, handle) in submit.choices.into_iter().enumerate() {
            let key = SeqKey { request: submit.request, choice: choice as u16 };
            // Ages are times, so that those of two gateways compare, and unique within one.
            let age = now.max(self.last_age + 1);
            self.last_age = age;
            let seq = Seq {
                handle,
                prompt: submit.prompt.clone(),
                produced: Vec::new(),
                stop: submit.stop.clone(),
                deadline: submit.deadline,
                salt: submit.salt,
                prefixes: prefixes.clone(),
                age,
                attempt: 0,
                place: Place::Waiting,
                replay: false,
                too_large: BTreeMap::new(),
            };
            let complete = seq.complete();
            self.deadlines.extend(seq.deadline.map(|at| (at, key)));
            self.seqs.insert(key, seq);
            self.fresh.insert(age, key);
            self.untaken += 1;
            if let Some(complete) = complete {
                self.end(key, Ending::Complete(complete), out);
            }
        }
        self.pump(now, out);
        Ok(())
    }

    fn door(&self, submit: &Submit<H>) -> Result<(), Refused> {
        let n = submit.choices.len();
        if submit.prompt.is_empty() || n == 0 || n > usize::from(u16::MAX) {
            return Err(Refused::Empty);
        }
        if self.draining {
            return Err(Refused::Draining { retry_after: SECOND });
        }
        if self.requests.contains_key(&submit.request) {
            return Err(Refused::Duplicate);
        }
        let need = need(&submit.prompt, &submit.stop);
        if let Some(room) = self.ranks.largest_room()
            && room < need
        {
            return Err(Refused::TooLarge { need, room });
        }
        if self.untaken + n > self.config.queue.max(1) {
            return Err(Refused::Busy { retry_after: self.retry_after() });
        }
        Ok(())
    }

    /// How long until the queue has gone through, at the pace of late.
    fn retry_after(&self) -> Nanos {
        self.pace.saturating_mul(self.untaken as u64).clamp(SECOND, 60 * SECOND)
    }

    /// Ends a sequence from this side. Nothing happens if it is over.
    pub fn cancel(&mut self, now: Nanos, seq: SeqKey, cause: CancelCause, out: &mut Vec<Action<H>>) {
        let ending = match cause {
            CancelCause::Client => Ending::Cancelled,
            CancelCause::StopString => Ending::Complete(Complete::Stop),
        };
        if self.seqs.contains_key(&seq) {
            self.end(seq, ending, out);
            self.pump(now, out);
        }
    }

    /// A rank is there, new or again. `cohort` is its numerics id: a request never crosses from one to another.
    pub fn rank_up(
        &mut self,
        now: Nanos,
        rank: WorkerId,
        cohort: u64,
        load: RankLoad,
        out: &mut Vec<Action<H>>,
    ) {
        if self.ranks.contains(rank) {
            self.lose(now, rank, out);
        }
        // While it was away its sequences went elsewhere; it may still run them.
        for (seq, attempt) in self.ranks.up(rank, cohort, load) {
            out.push(Action::CancelAt { rank, seq, attempt });
        }
        for seq in self.seqs.values_mut() {
            seq.too_large.remove(&rank);
        }
        self.ranks_changed(now, out);
    }

    /// A rank is lost: its sequences are replayed elsewhere. A broken connection is resumed by its
    /// [session](crate::session) first, of which nothing is seen here; this is what follows if that fails.
    pub fn rank_down(&mut self, now: Nanos, rank: WorkerId, out: &mut Vec<Action<H>>) {
        self.lose(now, rank, out);
        self.ranks_changed(now, out);
    }

    /// What a rank says of its load.
    pub fn rank_load(&mut self, now: Nanos, rank: WorkerId, load: RankLoad, out: &mut Vec<Action<H>>) {
        match self.ranks.report(rank, load) {
            Some(old) if old.room() == load.room() => self.pump(now, out),
            Some(_) => self.ranks_changed(now, out),
            None => {}
        }
    }

    /// What a rank says of one attempt of a sequence.
    pub fn rank_event(
        &mut self,
        now: Nanos,
        rank: WorkerId,
        seq: SeqKey,
        attempt: Attempt,
        event: RankEvent,
        out: &mut Vec<Action<H>>,
    ) {
        let Some(state) = self.seqs.get_mut(&seq) else {
            self.counts.duplicates += 1;
            return;
        };
        let Place::Bound { rank: bound, accepted } = state.place else {
            self.counts.duplicates += 1;
            return;
        };
        if bound != rank || (state.attempt != attempt && !plant::is(Plant::StaleAttempt)) {
            self.counts.duplicates += 1;
            return;
        }
        match event {
            RankEvent::Accepted if accepted => self.counts.duplicates += 1,
            RankEvent::Refused(_) if accepted => self.counts.duplicates += 1,
            RankEvent::Accepted => self.taken(now, seq, out),
            RankEvent::Refused(refusal) => self.turned_down(now, seq, rank, refusal, out),
            RankEvent::Token { index, id } => {
                let next = state.produced.len() as u32;
                if index < next {
                    self.counts.duplicates += 1;
                } else if index > next {
                    self.counts.gaps += 1;
                    out.push(Action::CancelAt { rank, seq, attempt });
                    self.counts.replays += 1;
                    self.unbind(seq, true);
                    self.pump(now, out);
                } else {
                    state.produced.push(id);
                    out.push(Action::Deliver { seq, index, id, handle: state.handle.clone() });
                    self.counts.tokens += 1;
                    if !accepted {
                        self.taken(now, seq, out);
                    }
                }
            }
            RankEvent::Finished(finish) => {
                self.ranks.opened(rank);
                self.unbind(seq, true);
                self.finish(seq, finish, out);
                self.pump(now, out);
            }
            RankEvent::HandedBack => {
                self.counts.preempted += 1;
                self.ranks.opened(rank);
                self.unbind(seq, true);
                self.requeue(seq, out);
                self.pump(now, out);
            }
        }
    }

    /// Time passes: deadlines, and ranks that were busy.
    pub fn tick(&mut self, now: Nanos, out: &mut Vec<Action<H>>) {
        while let Some(&(at, seq)) = self.deadlines.first()
            && at <= now
        {
            self.end(seq, Ending::Deadline, out);
        }
        self.pump(now, out);
    }

    /// When [`Self::tick`] has something to do next.
    pub fn next_tick(&self) -> Option<Nanos> {
        let waiting = !self.fresh.is_empty() || !self.replays.is_empty();
        let busy = if waiting { self.ranks.next_open() } else { None };
        self.deadlines.first().map(|(at, _)| *at).into_iter().chain(busy).min()
    }

    /// Takes no more requests; those there are go on.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// The gateway goes down now: whatever is left is cut.
    pub fn halt(&mut self, out: &mut Vec<Action<H>>) {
        self.draining = true;
        let mut left: Vec<_> = self.seqs.iter().map(|(key, seq)| (seq.age, *key)).collect();
        left.sort_unstable();
        for (_, seq) in left {
            self.end(seq, Ending::Cut, out);
        }
    }

    /// No sequence is left.
    pub fn is_idle(&self) -> bool {
        self.seqs.is_empty()
    }

    /// Sequences that are not over.
    pub fn live(&self) -> usize {
        self.seqs.len()
    }

    /// Sequences that wait for a rank.
    pub fn waiting(&self) -> Waiting {
        Waiting { fresh: self.fresh.len(), replays: self.replays.len() }
    }

    /// What happened so far.
    pub fn counts(&self) -> FrontCounts {
        self.counts
    }

    /// The numerics id that serves a request, once a rank has taken it: for tests.
    #[cfg(test)]
    pub fn cohort(&self, request: u64) -> Option<u64> {
        self.requests.get(&request).filter(|request| request.committed).and_then(|request| request.cohort)
    }

    /// A rank has it now.
    fn taken(&mut self, now: Nanos, key: SeqKey, out: &mut Vec<Action<H>>) {
        let Some(seq) = self.seqs.get_mut(&key) else { return };
        let Place::Bound { rank, .. } = seq.place else { return };
        let age = seq.age;
        seq.place = Place::Bound { rank, accepted: true };
        if !seq.replay {
            seq.replay = true;
            self.untaken -= 1;
        }
        self.ranks.answered(rank, age);
        if let Some(request) = self.requests.get_mut(&key.request) {
            request.committed = true;
        }
        let gap = now.saturating_sub(self.last_taken.unwrap_or(now));
        self.last_taken = Some(now);
        self.pace = self.pace - self.pace / 8 + gap / 8;
        self.pump(now, out);
    }

    fn turned_down(
        &mut self,
        now: Nanos,
        key: SeqKey,
        rank: WorkerId,
        refusal: Refusal,
        out: &mut Vec<Action<H>>,
    ) {
        self.unbind(key, false);
        match refusal {
            Refusal::Busy => {
                self.counts.busy += 1;
                let replay = self.seqs.get(&key).is_some_and(|seq| seq.replay);
                self.ranks.busy(rank, now, replay);
            }
            Refusal::Draining => self.ranks.draining(rank),
            Refusal::TooLarge { room } => {
                if let Some(seq) = self.seqs.get_mut(&key) {
                    seq.too_large.insert(rank, room);
                }
            }
        }
        self.requeue(key, out);
        self.refuse_hopeless(key, out);
        self.pump(now, out);
    }

    /// Refuses new work that every living rank of its cohort is too small for. A replay waits for one that is not.
    fn refuse_hopeless(&mut self, key: SeqKey, out: &mut Vec<Action<H>>) {
        let Some(seq) = self.seqs.get(&key) else { return };
        let need = seq.need();
        let cohort = self.requests.get(&key.request).and_then(|request| request.cohort);
        if !seq.replay
            && let Some(room) = self.ranks.too_small(cohort, need, &seq.too_large)
        {
            self.end(key, Ending::Refused(Refused::TooLarge { need, room }), out);
        }
    }

    /// The ranks there are, or their pools, changed.
    fn ranks_changed(&mut self, now: Nanos, out: &mut Vec<Action<H>>) {
        let fresh: Vec<SeqKey> = self.fresh.values().copied().collect();
        for key in fresh {
            self.refuse_hopeless(key, out);
        }
        self.pump(now, out);
    }

    /// Takes a sequence from its rank's books. `left` says that the rank had it.
    fn unbind(&mut self, key: SeqKey, left: bool) {
        let Some(seq) = self.seqs.get_mut(&key) else { return };
        let Place::Bound { rank, accepted } = seq.place else { return };
        seq.place = Place::Waiting;
        self.ranks.unbind(rank, seq.age, !accepted);
        if left && !seq.replay {
            seq.replay = true;
            self.untaken -= 1;
        }
        // Here and not by the caller, so that a sequence that waits is always in a queue.
        if seq.replay {
            self.replays.insert(seq.age, key);
        } else {
            self.fresh.insert(seq.age, key);
        }
        if let Some(request) = self.requests.get_mut(&key.request) {
            request.bound -= 1;
            request.committed |= left;
            if request.bound == 0 && !request.committed {
                request.cohort = None;
            }
        }
    }

    /// After [`Self::unbind`]: a journal that is complete needs no rank.
    fn requeue(&mut self, key: SeqKey, out: &mut Vec<Action<H>>) {
        if let Some(complete) = self.seqs.get(&key).and_then(Seq::complete) {
            self.end(key, Ending::Complete(complete), out);
        }
    }

    fn lose(&mut self, now: Nanos, rank: WorkerId, out: &mut Vec<Action<H>>) {
        let lost: Vec<SeqKey> = self.ranks.bound(rank).collect();
        let orphans = lost.iter().filter_map(|key| Some((*key, self.seqs.get(key)?.attempt))).collect();
        for &key in &lost {
            let accepted =
                matches!(self.seqs.get(&key), Some(Seq { place: Place::Bound { accepted: true, .. }, .. }));
            self.counts.replays += u64::from(accepted);
            self.unbind(key, accepted);
        }
        // Past twice the lease the rank has dropped them by itself.
        self.ranks.down(rank, orphans, now, now.saturating_add(2 * self.config.lease));
        for key in lost {
            self.requeue(key, out);
        }
    }

    fn finish(&mut self, key: SeqKey, finish: Finish, out: &mut Vec<Action<H>>) {
        let ending = match finish {
            Finish::Stop => Ending::Complete(Complete::Stop),
            Finish::Length => Ending::Complete(Complete::Length),
            Finish::Cancelled => Ending::Cancelled,
            Finish::Deadline => Ending::Deadline,
            Finish::Aborted(why) => Ending::Refused(Refused::Aborted(why)),
        };
        self.end(key, ending, out);
    }

    /// The one way out.
    fn end(&mut self, key: SeqKey, ending: Ending, out: &mut Vec<Action<H>>) {
        let Some(seq) = self.seqs.get(&key) else { return };
        if let Place::Bound { rank, .. } = seq.place {
            out.push(Action::CancelAt { rank, seq: key, attempt: seq.attempt });
            self.unbind(key, false);
        }
        let Some(seq) = self.seqs.remove(&key) else { return };
        self.replays.remove(&seq.age);
        self.fresh.remove(&seq.age);
        self.untaken -= usize::from(!seq.replay);
        if let Some(at) = seq.deadline {
            self.deadlines.remove(&(at, key));
        }
        if let Some(request) = self.requests.get_mut(&key.request) {
            request.live -= 1;
            if request.live == 0 {
                self.requests.remove(&key.request);
            }
        }
        *match ending {
            Ending::Complete(_) => &mut self.counts.complete,
            Ending::Cancelled => &mut self.counts.cancelled,
            Ending::Refused(_) => &mut self.counts.failed,
            Ending::Deadline => &mut self.counts.deadline,
            Ending::Cut => &mut self.counts.cut,
        } += 1;
        out.push(Action::End { seq: key, ending, handle: seq.handle });
    }

    /// Binds what waits: replays and preempted sequences first, then new work, each by age. A sequence never takes a
    /// rank that an earlier one in this order waits for.
    fn pump(&mut self, now: Nanos, out: &mut Vec<Action<H>>) {
        if self.replays.is_empty() && self.fresh.is_empty() {
            return;
        }
        self.ranks.reopen(now);
        let mut awaited = BTreeSet::new();
        let mut chosen = Vec::new();
        for &key in self.replays.values().chain(self.fresh.values()) {
            if self.ranks.all_within(&awaited) {
                break;
            }
            let Some(seq) = self.seqs.get(&key) else { continue };
            let request = self.requests.entry(key.request).or_default();
            let hint = if seq.replay { None } else { self.affinity.find(&seq.prefixes) };
            let tokens = seq.prompt.len() + seq.produced.len() + 1;
            let choice = self.ranks.choose(&ranks::Ask {
                cohort: request.cohort,
                need: seq.need(),
                tokens,
                replay: seq.replay,
                excluded: &seq.too_large,
                awaited: &awaited,
                hint,
            });
            if let Some(rank) = choice {
                self.ranks.bind(rank, seq.age, key, tokens);
                request.bound += 1;
                request.cohort = self.ranks.cohort(rank);
                self.affinity.note(&seq.prefixes, rank);
                chosen.push((key, rank));
            } else {
                awaited.extend(self.ranks.candidates(request.cohort, seq.need(), &seq.too_large));
            }
        }
        for (key, rank) in chosen {
            out.extend(self.bind(key, rank));
        }
    }

    fn bind(&mut self, key: SeqKey, rank: WorkerId) -> Option<Action<H>> {
        let seq = self.seqs.get_mut(&key)?;
        self.replays.remove(&seq.age);
        self.fresh.remove(&seq.age);
        seq.place = Place::Bound { rank, accepted: false };
        seq.attempt += 1;
        let ids: Arc<[u32]> = if seq.produced.is_empty() {
            seq.prompt.clone()
        } else {
            seq.prompt.iter().chain(&seq.produced).copied().collect()
        };
        let bind = Bind {
            seq: key,
            attempt: seq.attempt,
            gateway: self.config.gateway,
            ids,
            produced: seq.produced.len() as u32,
            stop: seq.stop.clone(),
            deadline: seq.deadline,
            salt: seq.salt,
            age: seq.age,
            replay: seq.replay,
        };
        Some(Action::Bind { rank, bind, handle: seq.handle.clone() })
    }
}
