//! The dispatcher: labels routed tokens with replicas and sends them, one batch per (worker, class, progress).
//!
//! A row needs a landing row at its receiver, the sender's credit. Items without one wait in order; meanwhile the
//! rank says so, and nobody waits for it. The frontier's marks ride on the batches they describe.

use super::pace::Pace;
use super::{NONE, Rank};
use crate::config::MOST_RING;
use crate::counters::Counters;
use crate::frame::{Body, Mark, ReturnTo, RowMove, TokenBatch, TokenItem};
use crate::host::Host;
use crate::ids::{Class, IDLE, Nanos, Progress, Slice, Unit, WorkerId};
use crate::net::{Net, SELF};
use crate::plant::{self, Plant};
use crate::pool::Arrival;
use crate::routing::Next;
use std::collections::VecDeque;

/// One slice of one expert, asked for one token.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask {
    pub token: u32,
    pub back: ReturnTo,
    pub slice: Slice,
    pub block: u16,
    pub expert: u16,
    pub class: u8,
    pub progress: Progress,
}

impl Ask {
    pub fn unit(&self) -> Unit {
        Unit { block: self.block, expert: self.expert, slice: self.slice }
    }
}

/// What all items of a batch have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Common {
    class: u8,
    block: u16,
    generation: u64,
    progress: Progress,
}

/// A row of this rank's landing ring at a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LandingRow {
    /// Not credited yet.
    Withheld,
    Free,
    /// The worker holds something there.
    Lent,
}

/// An expert worker as its dispatcher sees it.
#[derive(Debug, Default)]
pub(crate) struct Dest {
    /// It holds experts.
    pub is_host: bool,
    /// It has given credit: it has a landing ring for this rank, and can be asked.
    is_reached: bool,
    /// Landing rows that are free.
    credit: Vec<u32>,
    /// Per landing row, as far as they have been credited.
    rows: Vec<LandingRow>,
    /// Of these, rows in which the worker holds something.
    in_use: u32,
    /// When it last gave a sign of itself, or got something after it had nothing.
    alive: Nanos,
    doubts: Doubts,
    pub pace: Pace,
    /// Items that wait for one.
    stalled: VecDeque<Ask>,
    /// Batches decided on, not sent yet.
    outbox: Vec<TokenBatch>,
    /// What its mark last said, per class.
    told: Vec<Option<(Progress, bool)>>,
    order: u64,
    /// What all items of the outbox's last batch have in common.
    open: Option<Common>,
    /// The token that the open batch's last row is of.
    tail: Option<u32>,
    /// The most rows and items of a batch of late, so that the next one is made with room for as many.
    usual: (usize, usize),
}

/// Patience with a worker doubles at most so often.
const MOST_DOUBTS: u32 = 20;
/// A doubt is forgotten after so many times the patience that it was worth.
const CALM: u64 = 64;

/// How often a worker was taken for lost and came back, of late. Each doubles the patience with it, so that one that is
/// only slow gets to return all that it was asked for. What it returns in between proves nothing: it may have a slow
/// step and a quick one, and be doubted in each of the slow ones.
#[derive(Clone, Copy, Debug, Default)]
struct Doubts {
    count: u32,
    /// Until when none is forgotten.
    until: Nanos,
    /// How long that was from the last one on.
    term: Nanos,
}

impl Doubts {
    fn patience(self, patience: Nanos) -> Nanos {
        patience.saturating_mul(1 << self.count)
    }

    fn add(&mut self, now: Nanos, patience: Nanos) {
        self.term = CALM.saturating_mul(self.patience(patience));
        self.until = now.saturating_add(self.term);
        self.count = (self.count + 1).min(MOST_DOUBTS);
    }

    /// The worker has returned something.
    fn calm(&mut self, now: Nanos) {
        if self.count > 0 && now >= self.until {
            self.count -= 1;
            self.term /= 2;
            self.until = now.saturating_add(self.term);
        }
    }
}

impl Dest {
    /// A peer that was just met. It gives no credit yet, and may have none to give.
    pub fn meet(&mut self, is_host: bool, classes: usize, now: Nanos) {
        let (doubts, pace) = (self.doubts, std::mem::take(&mut self.pace));
        *self = Self { is_host, told: vec![None; classes], alive: now, doubts, pace, ..Self::default() };
    }

    /// It is gone.
    pub fn lose(&mut self, now: Nanos) {
        let pace = std::mem::take(&mut self.pace).broken(now);
        *self = Self { doubts: self.doubts, pace, ..Self::default() };
    }

    /// It holds nothing, and nothing waits for it.
    pub fn is_free(&self) -> bool {
        self.in_use == 0 && self.stalled.is_empty()
    }

    /// Of the items that wait, some are not to be sent any more.
    pub fn forget_waiting(&mut self, which: impl Fn(&Ask) -> bool) {
        self.stalled.retain(|a| !which(a));
    }

    /// When it is taken for lost, if it owes something and gives no sign before.
    pub fn overdue(&self, patience: Nanos) -> Option<Nanos> {
        let owes = self.is_host && (self.in_use > 0 || !self.stalled.is_empty());
        let at = self.alive.saturating_add(self.doubts.patience(patience));
        (owes && at < Nanos::MAX).then_some(at)
    }

    pub fn doubt(&mut self, now: Nanos, patience: Nanos) {
        self.doubts.add(now, patience);
    }

    /// It gives a sign.
    pub fn alive(&mut self, now: Nanos, returns: bool) {
        self.alive = now;
        if returns {
            self.doubts.calm(now);
        }
    }

    pub fn stalled(&self) -> usize {
        self.stalled.len()
    }
}

impl Rank {
    /// Routed tokens leave for their experts. `away`: segments, and where their rows are in `routed`.
    pub(super) fn dispatch(
        &mut self,
        block: u16,
        away: &[(u32, usize)],
        groups: &[(u8, Progress)],
        routed: &[u16],
        net: &mut Net,
        n: &mut Counters,
    ) {
        let k = self.shape.top_k as usize;
        self.probe(net);
        for &(class, progress) in groups {
            let mut rows = 0;
            for &(id, first) in away {
                let s = self.segment(id);
                if s.class != class || s.progress != progress + 1 {
                    continue;
                }
                let count = s.tokens.len();
                rows += count as u32;
                self.count_loads(block, &routed[first * k..(first + count) * k]);
                for i in 0..count {
                    let token = self.segment(id).tokens[i];
                    let at = (first + i) * k;
                    self.ask_experts(token, (block, class, progress), &routed[at..at + k], net, n);
                }
            }
            for d in &mut self.dests {
                for b in
                    d.outbox.iter_mut().rev().take_while(|b| b.class.0 == class && b.progress == progress)
                {
                    b.step_rows = rows;
                }
            }
        }
        self.probed(net);
        self.flush(net);
    }

    /// In a loop of its own: counters are far apart, and misses of several overlap.
    fn count_loads(&mut self, block: u16, experts: &[u16]) {
        let first = block as usize * self.shape.experts as usize;
        for &expert in experts {
            if let Some(load) = self.loads.get_mut(first + expert as usize) {
                *load += 1;
            }
        }
    }

    /// Asks a token's K experts. Most are held by one worker, whole: those take the short way to its batch.
    fn ask_experts(
        &mut self,
        token: u32,
        (block, class, progress): (u16, u8, Progress),
        experts: &[u16],
        net: &Net,
        n: &mut Counters,
    ) {
        let group = self.token_group[token as usize];
        let tag = self.pool.begin(group);
        let at = group as usize * experts.len();
        self.asked[at..at + experts.len()].copy_from_slice(experts);
        let slice = Slice::whole(self.shape.segments);
        let common = Common { class, block, generation: self.routing.generation(block), progress };
        let src = self.slab.input(token);
        for (k, &expert) in experts.iter().enumerate() {
            let back = ReturnTo { group, tag, k: k as u8 };
            if let Some(worker) = self.routing.only_holder(block, expert)
                && let Some(peer) = net.find(worker)
                && let Some(d) = self.dests.get_mut(peer).filter(|d| d.is_reached && d.stalled.is_empty())
                && d.put(common, (token, src), (expert, slice, back))
            {
                self.pool.ask(group, k as u8, 1);
                let part = (at + k) * self.shape.segments as usize;
                self.asked_of[part] = peer as u32;
                continue;
            }
            self.ask_expert(Ask { token, back, slice, block, expert, class, progress }, net, n);
        }
    }

    /// Asks a whole expert: its only holder, or all slices of one cover.
    fn ask_expert(&mut self, ask: Ask, net: &Net, n: &mut Counters) {
        match self.routing.only_holder(ask.block, ask.expert) {
            Some(worker) => {
                self.pool.ask(ask.back.group, ask.back.k, 1);
                self.ask_slice(&ask, worker, net, n);
            }
            None => self.ask_cover(ask, net, n),
        }
    }

    fn ask_cover(&mut self, ask: Ask, net: &Net, n: &mut Counters) {
        let mut chosen = std::mem::take(&mut self.chosen);
        chosen.clear();
        let slices = self.routing.choose(ask.block, ask.expert, &mut chosen);
        if slices == 0 {
            self.orphan(ask, n);
        } else {
            n.sliced += u64::from(slices > 1);
            self.pool.ask(ask.back.group, ask.back.k, slices);
            for &(slice, worker) in &chosen {
                self.ask_slice(&Ask { slice, ..ask }, worker, net, n);
            }
        }
        self.chosen = chosen;
    }

    /// Nobody holds the expert. The token waits, and its segment leaves the count: nobody waits for it.
    fn orphan(&mut self, ask: Ask, n: &mut Counters) {
        n.orphaned += 1;
        self.pool.ask(ask.back.group, ask.back.k, 0);
        if self.orphans.iter().all(|o| o.back != ask.back) {
            self.orphans.push(ask);
        }
        let id = self.token_segment[ask.token as usize];
        let s = self.segment(id);
        if std::mem::replace(&mut s.counted, false) {
            let (class, progress, rows) = (s.class, s.progress, s.tokens.len() as u32);
            self.clocks[class as usize].remove(progress, rows);
        }
    }

    pub(super) fn ask_slice(&mut self, ask: &Ask, worker: WorkerId, net: &Net, n: &mut Counters) {
        if worker == self.me {
            self.note_asked(ask, SELF as u32);
            return self.local.push(*ask);
        }
        let Some(peer) = net.find(worker).filter(|p| self.dests.get(*p).is_some_and(|d| d.is_reached)) else {
            // A worker that the placement names and nobody has met yet.
            return self.postpone(*ask);
        };
        self.note_asked(ask, peer as u32);
        if !self.send_or_stall(peer, ask) {
            n.credit_stalls += 1;
        }
    }

    fn note_asked(&mut self, ask: &Ask, peer: u32) {
        let at = self.part(ask.back, ask.slice);
        self.asked_of[at] = peer;
    }

    /// Puts an item into a batch, if there is a landing row for its token, else in line.
    fn send_or_stall(&mut self, peer: usize, ask: &Ask) -> bool {
        let (generation, src) = (self.routing.generation(ask.block), self.slab.input(ask.token));
        let d = &mut self.dests[peer];
        if !d.stalled.is_empty() || !d.ask(ask, generation, src) {
            d.stalled.push_back(*ask);
            return false;
        }
        true
    }

    /// Landing rows are free again: what waited for them goes on. Those that are free already, or lie behind any ring,
    /// are not taken.
    pub fn credited(&mut self, peer: usize, rows: &[u32], net: &mut Net, n: &mut Counters) {
        let Some(d) = self.dests.get_mut(peer).filter(|d| d.is_host) else {
            n.bad_frames += u64::from(!rows.is_empty());
            return;
        };
        let (mut is_timed, before) = (false, d.credit.len());
        for &row in rows {
            match d.take_back(row) {
                Some(LandingRow::Lent) => is_timed |= d.pace.returned(row, self.now),
                Some(_) => {}
                None => continue,
            }
            d.credit.push(row);
        }
        let taken = d.credit.len() - before;
        n.bad_frames += u64::from(taken < rows.len());
        let is_first = taken > 0 && !std::mem::replace(&mut d.is_reached, true);
        self.unsaid |= is_first;
        if !d.stalled.is_empty() {
            while let Some(&ask) = d.stalled.front() {
                // Somebody else may have been asked meanwhile, and have answered.
                if self.pool.waits_for(ask.back, ask.slice)
                    && !d.ask(&ask, self.routing.generation(ask.block), self.slab.input(ask.token))
                {
                    break;
                }
                d.stalled.pop_front();
            }
            self.flush(net);
        }
        if is_timed {
            self.rescale(peer, net);
        }
        if is_first && self.routing.reach(net.peers[peer].id, true) {
            self.retry(true, net, n);
        }
    }

    /// Items came back unrun from a worker: it lacks their units, which somebody else may hold.
    pub fn redirected(&mut self, asks: Vec<Ask>, from: WorkerId, net: &mut Net, n: &mut Counters) {
        let cycle = self.cycle.value();
        for ask in &asks {
            self.routing.lacks(from, ask.unit(), cycle);
        }
        for ask in asks {
            n.redirected += 1;
            self.ask_again(ask, Some(from), net, n);
        }
        self.flush(net);
    }

    /// Tries an item again in a cycle.
    pub fn postpone(&mut self, ask: Ask) {
        self.note_asked(&ask, NONE);
        self.retries.push((self.now + self.cycle.value(), ask));
    }

    /// Asks for a slice again under the present table: that slice alone if it is still served, else the whole choice
    /// under another slicing, which discards what had come. A worker that has just sent the item back is older than
    /// this table: it will hold the unit soon, or the table will say otherwise. Another one is asked, and without one
    /// the item waits a cycle.
    pub(super) fn ask_again(&mut self, ask: Ask, from: Option<WorkerId>, net: &Net, n: &mut Counters) {
        if !self.pool.waits_for(ask.back, ask.slice) {
            return;
        }
        let asked = self.pool.slicing(ask.back.group)[ask.back.k as usize];
        if asked != 0 && asked != ask.slice.count(self.shape.segments) {
            return;
        }
        let next = if asked == 0 { Next::Nobody } else { self.routing.choose_slice(ask.unit(), from) };
        match next {
            Next::Worker(worker) => self.ask_slice(&ask, worker, net, n),
            Next::Wait => self.postpone(ask),
            // Another slicing: a step that runs here may still write the rows of the one before.
            Next::Nobody if self.hosting => {
                self.forget_waiting(ask.back);
                self.orphan(Ask { slice: Slice::whole(self.shape.segments), ..ask }, n);
                self.reslices = true;
            }
            Next::Nobody => {
                self.forget_waiting(ask.back);
                self.ask_expert(Ask { slice: Slice::whole(self.shape.segments), ..ask }, net, n);
            }
        }
    }

    /// A choice is asked for anew: what of it still waits to be sent is not wanted any more.
    fn forget_waiting(&mut self, back: ReturnTo) {
        for d in &mut self.dests {
            d.forget_waiting(|a| a.back == back);
        }
        self.retries.retain(|(_, a)| a.back != back);
    }

    /// The table changed, or time passed: orphans and postponed items are tried again.
    pub fn retry(&mut self, all: bool, net: &mut Net, n: &mut Counters) {
        let (now, mut again) = (self.now, vec![]);
        self.retries.retain(|(at, ask)| {
            let due = all || *at <= now;
            if due {
                again.push(*ask);
            }
            !due
        });
        if all || (self.reslices && !self.hosting) {
            self.reslices = false;
            again.append(&mut self.orphans);
        }
        if again.is_empty() {
            return;
        }
        for ask in again {
            self.ask_again(ask, None, net, n);
        }
        self.flush(net);
    }

    /// A segment is given up: its items that were not sent count as returned, so that its rows can be freed.
    pub(super) fn forgo_unsent(&mut self, id: u32) {
        let tokens = self.segment(id).tokens.clone();
        let of = |a: &Ask| tokens.contains(&a.token);
        // Orphans first: of a choice that became one, slices of its old slicing may still wait in line.
        let mut unsent: Vec<Ask> = self.orphans.iter().filter(|a| of(a)).copied().collect();
        self.orphans.retain(|a| !of(a));
        for d in &mut self.dests {
            if d.stalled.iter().any(of) {
                unsent.extend(d.stalled.iter().filter(|a| of(a)).copied());
                d.stalled.retain(|a| !of(a));
            }
        }
        unsent.extend(self.retries.iter().map(|(_, a)| a).filter(|a| of(a)).copied());
        self.retries.retain(|(_, a)| !of(a));
        unsent.extend(self.local.iter().filter(|a| of(a)).copied());
        self.local.retain(|a| !of(a));
        for a in unsent {
            let slices = a.slice.count(self.shape.segments);
            if self.pool.slicing(a.back.group)[a.back.k as usize] == 0 {
                self.pool.ask(a.back.group, a.back.k, slices);
            }
            let arrival = self.pool.arrive(a.back, a.slice);
            debug_assert!(arrival != Arrival::Abandoned, "it is abandoned after this");
        }
    }

    /// The mark of one class for one worker, if it says something new.
    fn news(&mut self, peer: usize, class: u8) -> Option<Mark> {
        let progress = self.clocks[class as usize].frontier();
        let d = &mut self.dests[peer];
        let blocked = d.stalled.iter().any(|a| a.class == class);
        let told = d.told.get_mut(class as usize)?;
        if *told == Some((progress, blocked)) || (told.is_none() && progress == IDLE) {
            return None;
        }
        *told = Some((progress, blocked));
        // To others something else may still have to be said: what all have been told is not this.
        self.unsaid |= blocked || progress != self.published[class as usize];
        d.order += 1;
        let progress = if plant::is(Plant::MarkTooHigh) { progress.saturating_add(1) } else { progress };
        Some(Mark {
            class: Class(class),
            order: d.order,
            progress,
            frames: 0,
            tokens: self.clocks[class as usize].total(),
            blocked,
            cycle: self.cycle.value(),
        })
    }

    /// Sends what was decided, and marks with it.
    pub(super) fn flush(&mut self, net: &mut Net) {
        for c in &mut self.clocks {
            c.publish();
        }
        // Hosts in turn, each rank starting after itself, so that they do not all begin with the same one.
        let (count, prefill) = (self.dests.len(), self.prefill_class());
        let (paces, cycle) = (self.config.probe_every.is_some(), self.cycle.value());
        for i in 0..count {
            let peer = (self.me.0 as usize + i) % count;
            if peer == SELF {
                continue;
            }
            let d = &mut self.dests[peer];
            if let Some(b) = d.outbox.last() {
                let most = |usual: usize, len: usize| len.max(usual - usual / 8);
                d.usual = (most(d.usual.0, b.rows.len()), most(d.usual.1, b.items.len()));
            }
            let decode = d.outbox.iter().rfind(|b| b.class.0 != prefill);
            if let Some(last) = decode.and_then(|b| b.rows.last()).filter(|_| paces) {
                d.pace.sent(last.dst, self.now, cycle);
            }
            let new: usize = d.outbox.iter().map(|b| b.rows.len()).sum();
            if new > 0 && new == d.in_use as usize {
                d.alive = self.now;
            }
            let mut outbox = std::mem::take(&mut d.outbox);
            let mut batches = outbox.drain(..);
            while let Some(mut b) = batches.next() {
                let class = b.class.0;
                b.frames = net.peers[peer].link.class_sent(class, true);
                // What follows a mark must not come below it: the class's last batch carries it.
                if batches.as_slice().iter().all(|later| later.class.0 != class)
                    && let Some(mut mark) = self.news(peer, class)
                {
                    mark.frames = b.frames + 1;
                    b.mark = Some(mark);
                }
                net.send(peer, Body::Tokens(b));
            }
            drop(batches);
            self.dests[peer].outbox = outbox;
        }
    }

    /// Marks that no batch carried.
    pub fn publish(&mut self, now: Nanos, net: &mut Net, own: Option<&mut Host>) {
        let stalled = self.dests.iter().any(|d| !d.stalled.is_empty());
        // What waits is told, and once more when it waits no longer.
        let mut due = std::mem::replace(&mut self.unsaid, stalled) || stalled;
        for (c, published) in self.clocks.iter_mut().zip(&mut self.published) {
            let frontier = c.publish();
            due |= std::mem::replace(published, frontier) != frontier;
        }
        if !due {
            return;
        }
        for peer in 1..self.dests.len() {
            if !self.dests[peer].is_reached {
                continue;
            }
            for class in 0..self.clocks.len() as u8 {
                if let Some(mut mark) = self.news(peer, class) {
                    mark.frames = net.peers[peer].link.class_sent(class, false);
                    net.send(peer, Body::Mark(mark));
                }
            }
        }
        if let Some(host) = own {
            for class in 0..self.clocks.len() as u8 {
                if let Some(mark) = self.news(SELF, class) {
                    host.frontier.hear(SELF, mark, 0, now);
                }
            }
        }
        self.tell_ranks(net);
    }

    /// Once a pass, ranks tell each other where they are, so that one that was idle joins at the newest pass.
    fn tell_ranks(&mut self, net: &mut Net) {
        let blocks = u64::from(self.shape.blocks());
        for class in 0..self.clocks.len() as u8 {
            let p = self.clocks[class as usize].frontier();
            if p == IDLE || p / blocks <= self.told_pass[class as usize] {
                continue;
            }
            self.told_pass[class as usize] = p / blocks;
            for peer in 1..net.peers.len() {
                let to = &net.peers[peer];
                if to.is_up && to.is_rank && !self.dests.get(peer).is_some_and(|d| d.is_reached) {
                    let mark = Mark {
                        class: Class(class),
                        order: 0,
                        progress: p,
                        frames: 0,
                        tokens: 0,
                        blocked: false,
                        cycle: self.cycle.value(),
                    };
                    net.send(peer, Body::Mark(mark));
                }
            }
        }
    }
}

impl Dest {
    /// Adds an item to the open batch. Its token's input travels in the batch's last row, or in a new one. False without
    /// a credit.
    #[inline]
    fn put(
        &mut self,
        common: Common,
        (token, src): (u32, u32),
        (expert, slice, back): (u16, Slice, ReturnTo),
    ) -> bool {
        let is_new = self.open != Some(common) || self.outbox.is_empty();
        if is_new || self.tail != Some(token) {
            let Some(dst) = self.credit.pop() else { return false };
            if is_new {
                self.begin(common);
            }
            self.tail = Some(token);
            self.lend(dst);
            if let Some(batch) = self.outbox.last_mut() {
                batch.rows.push(RowMove { src, dst });
            }
        }
        if let Some(batch) = self.outbox.last_mut() {
            let row = batch.rows.len() as u32 - 1;
            batch.items.push(TokenItem { row, expert, slice, back });
        }
        true
    }

    #[cold]
    fn begin(&mut self, common: Common) {
        let Common { class, block, generation, progress } = common;
        self.open = Some(common);
        self.outbox.push(TokenBatch {
            class: Class(class),
            frames: 0,
            block,
            generation,
            step_rows: 0,
            progress,
            rows: Vec::with_capacity(self.usual.0),
            items: Vec::with_capacity(self.usual.1),
            mark: None,
        });
    }

    fn lend(&mut self, row: u32) {
        self.rows[row as usize] = LandingRow::Lent;
        self.in_use += 1;
    }

    /// A landing row is free now. What it was before, or none if there is no such row or it was free.
    #[inline]
    fn take_back(&mut self, row: u32) -> Option<LandingRow> {
        if row >= MOST_RING {
            return None;
        }
        let row = row as usize;
        if self.rows.len() <= row {
            self.rows.resize(row + 1, LandingRow::Withheld);
        }
        let was = std::mem::replace(&mut self.rows[row], LandingRow::Free);
        self.in_use -= u32::from(was == LandingRow::Lent);
        (was != LandingRow::Free).then_some(was)
    }

    /// Adds an item. False without a credit.
    fn ask(&mut self, a: &Ask, generation: u64, src: u32) -> bool {
        let common = Common { class: a.class, block: a.block, generation, progress: a.progress };
        self.put(common, (a.token, src), (a.expert, a.slice, a.back))
    }
}

#[cfg(test)]
mod tests {
    use super::Doubts;

    /// What is returned between two slow steps does not make the patience with them shorter.
    #[test]
    fn patience_grows_until_it_is_enough_and_then_shrinks_slowly() {
        let (mut doubts, mut now) = (Doubts::default(), 0);
        for times in [1, 2, 4, 8] {
            assert_eq!(doubts.patience(10), 10 * times);
            doubts.add(now, 10);
            now += 10 * times;
            doubts.calm(now);
        }
        assert_eq!(doubts.patience(10), 160);
        // The last doubt was worth 80, and is forgotten 64 times as long after it; the one before in half the time.
        let last = now - 80;
        doubts.calm(last + 64 * 80 - 1);
        assert_eq!(doubts.patience(10), 160);
        doubts.calm(last + 64 * 80);
        assert_eq!(doubts.patience(10), 80);
        doubts.calm(last + 64 * 80 + 64 * 40 - 1);
        assert_eq!(doubts.patience(10), 80);
        for term in [40, 20, 10, 5] {
            now = last + 64 * 80 + 64 * (80 - term);
            doubts.calm(now);
        }
        assert_eq!(doubts.patience(10), 10);
        doubts.calm(u64::MAX);
        assert_eq!(doubts.patience(10), 10);
        for _ in 0..100 {
            doubts.add(u64::MAX, u64::MAX);
        }
        assert_eq!(doubts.patience(1), 1 << 20, "and has an end");
    }
}
