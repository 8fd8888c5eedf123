//! How fast expert workers return, beside their siblings: those that hold units that they hold too. A slow one gets
//! less of what is asked, down to a probe now and then; what it is late with is asked of a sibling, without taking it
//! for lost (DESIGN section 3, replica choice).
//!
//! A time is that between a landing row's loan and its return. One row of each worker is timed at a time, the last
//! decode row of what was sent together: prefill takes as long as it is. What is usual decides over shares, and the
//! longest of late over what is late, since a step of prefill in front is no sign of anything.

use super::{Ask, NONE, Rank};
use crate::counters::Counters;
use crate::frame::ReturnItem;
use crate::ids::{Nanos, WorkerId};
use crate::median::Median;
use crate::net::{Net, SELF};
use crate::routing::Next;
use std::collections::HashSet;

/// Up to so many times its siblings' time is no reason to send a worker less.
const EVEN: u64 = 2;
/// A worker that takes longer than so many times its siblings' time is slow, and what it has not returned by then is
/// late.
const LATE: u64 = 4;
/// Nothing is late before so many cycles.
const LATE_CYCLES: u64 = 4;
/// Times that a median is of. So few, that three probes end a slow worker's time out.
const TIMES: usize = 5;

/// Of one expert worker.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    times: Median<TIMES>,
    /// The longest time; an eighth less with each that is shorter.
    longest: Nanos,
    /// The row that is timed, and since when.
    timed: Option<(u32, Nanos)>,
    /// When that row is late.
    late: Nanos,
    /// A row may be late after so long; [`Rank::hedge`] looks closer.
    bound: Nanos,
    /// Times since it was last compared with its siblings.
    fresh: usize,
    /// It gets probes only: when the next.
    probe: Option<Nanos>,
}

impl Default for Pace {
    fn default() -> Self {
        let never = Nanos::MAX;
        Self { times: Median::new(), longest: 0, timed: None, late: never, bound: 0, fresh: 0, probe: None }
    }
}

impl Pace {
    /// A row is on its way.
    pub fn sent(&mut self, row: u32, now: Nanos, cycle: Nanos) {
        if self.timed.is_none() {
            self.timed = Some((row, now));
            self.late = now.saturating_add(self.bound.max(LATE_CYCLES * cycle));
        }
    }

    /// A row came back. True if it is time to compare the worker with its siblings.
    #[inline]
    pub fn returned(&mut self, row: u32, now: Nanos) -> bool {
        let Some((_, at)) = self.timed.take_if(|(timed, _)| *timed == row) else { return false };
        let time = now.saturating_sub(at);
        self.times.push(time);
        self.longest = time.max(self.longest - self.longest / 8);
        self.fresh += 1;
        self.probe.is_some() || self.fresh >= TIMES
    }

    /// Rows came back unrun: that took no time worth knowing.
    pub fn forget(&mut self, rows: &[u32]) {
        self.timed.take_if(|(timed, _)| rows.contains(timed));
    }

    /// The connection broke: the timed row took at least as long as it was away.
    pub fn broken(mut self, now: Nanos) -> Self {
        if let Some((row, _)) = self.timed {
            self.returned(row, now);
        }
        self
    }

    /// For how long the timed row has been away.
    fn away(&self, now: Nanos) -> Nanos {
        self.timed.map_or(0, |(_, at)| now.saturating_sub(at))
    }

    /// The time it takes, as far as is known; at least that of the row that is away.
    pub fn usual(&self, now: Nanos) -> Option<Nanos> {
        Some(self.times.value()).filter(|t| *t > 0).map(|t| t.max(self.away(now)))
    }

    /// The longest of late, as far as is known; at least that of the row that is away.
    fn longest(&self, now: Nanos) -> Option<Nanos> {
        Some(self.longest).filter(|t| *t > 0).map(|t| t.max(self.away(now)))
    }
}

impl Rank {
    /// The median of a time of a worker's siblings.
    fn of_siblings(
        &self,
        worker: WorkerId,
        net: &Net,
        time: impl Fn(&Pace, Nanos) -> Option<Nanos>,
    ) -> Option<Nanos> {
        let of = |w: WorkerId| time(&self.dests.get(net.find(w)?)?.pace, self.now);
        let mut times: Vec<Nanos> = self.routing.siblings(worker).filter_map(of).collect();
        let middle = times.len() / 2;
        (!times.is_empty()).then(|| *times.select_nth_unstable(middle).1)
    }

    fn late_after(&self, worker: WorkerId, net: &Net) -> Option<Nanos> {
        let siblings = self.of_siblings(worker, net, Pace::longest)?;
        Some(siblings.saturating_mul(LATE).max(LATE_CYCLES * self.cycle.value()))
    }

    /// A worker's time is known anew: how much of its share it gets from now on.
    pub(super) fn rescale(&mut self, peer: usize, net: &Net) {
        let Some(every) = self.config.probe_every.filter(|_| peer != SELF) else { return };
        let (worker, now) = (net.peers[peer].id, self.now);
        let siblings = self.of_siblings(worker, net, Pace::usual);
        let longest = self.of_siblings(worker, net, Pace::longest);
        let pace = &mut self.dests[peer].pace;
        let (own, siblings) = (pace.times.value(), siblings.unwrap_or(Nanos::MAX / LATE));
        pace.fresh = 0;
        pace.bound = longest.map_or(0, |t| t.saturating_mul(LATE));
        let scale = match own {
            _ if own > LATE * siblings => 0.0,
            _ if own > EVEN * siblings => siblings as f32 / own as f32,
            _ => 1.0,
        };
        pace.probe = (scale == 0.0).then(|| pace.probe.unwrap_or(now + every));
        self.next_probe = self.next_probe.min(pace.probe.unwrap_or(Nanos::MAX));
        self.routing.scale(worker, scale);
    }

    /// Before a step's tokens leave: slow workers whose probe is due get their share of them.
    pub(super) fn probe(&mut self, net: &Net) {
        if self.now < self.next_probe {
            return;
        }
        for (d, peer) in self.dests.iter().zip(&net.peers) {
            if d.pace.probe.is_some_and(|at| at <= self.now) && d.is_free() {
                self.routing.scale(peer.id, 1.0);
            }
        }
    }

    /// They have left: a slow worker that got some gets no more for a time.
    pub(super) fn probed(&mut self, net: &Net) {
        let Some(every) = self.config.probe_every.filter(|_| self.next_probe <= self.now) else { return };
        let now = self.now;
        for (d, peer) in self.dests.iter_mut().zip(&net.peers) {
            if let Some(at) = d.pace.probe.filter(|at| *at <= now) {
                let sent = !d.is_free();
                d.pace.probe = Some(if sent { now + every } else { at });
                self.routing.scale(peer.id, 0.0);
            }
        }
        self.next_probe = self.dests.iter().filter_map(|d| d.pace.probe).min().unwrap_or(Nanos::MAX);
    }

    /// When the next worker is late.
    pub(super) fn next_late(&self) -> Option<Nanos> {
        self.dests
            .iter()
            .filter(|d| d.pace.timed.is_some())
            .map(|d| d.pace.late)
            .min()
            .filter(|t| *t < Nanos::MAX)
    }

    /// What late workers hold is asked of their siblings too; whoever returns first is heard.
    pub fn hedge(&mut self, net: &mut Net, n: &mut Counters) {
        let Some(every) = self.config.probe_every.filter(|_| self.watch <= self.now) else { return };
        let now = self.now;
        while let Some(peer) = self.dests.iter().position(|d| d.pace.timed.is_some() && d.pace.late <= now) {
            let worker = net.peers[peer].id;
            let bound = self.late_after(worker, net);
            let away = self.dests[peer].pace.away(now);
            // By now the siblings may be as late as this one: then it is this rank that was slow to hear of them.
            if let Some(bound) = bound.filter(|bound| away < *bound) {
                self.dests[peer].pace.late = now + (bound - away);
                continue;
            }
            // As long as no sibling has returned anything there is nothing to compare with.
            let again = bound.is_none() && self.routing.siblings(worker).next().is_some();
            let soon = now + LATE_CYCLES * self.cycle.value();
            self.dests[peer].pace.late = if again { soon } else { Nanos::MAX };
            if bound.is_some() {
                self.dests[peer].pace.probe = Some(now + every);
                self.next_probe = self.next_probe.min(now + every);
                self.routing.scale(worker, 0.0);
                self.ask_siblings(peer, worker, net, n);
            }
        }
    }

    fn ask_siblings(&mut self, peer: usize, worker: WorkerId, net: &mut Net, n: &mut Counters) {
        let mut items: Vec<Ask> = self.asked_of_peer(peer).filter_map(|item| self.ask_of(item)).collect();
        items.retain(|ask| {
            let Next::Worker(sibling) = self.routing.choose_slice(ask.unit(), Some(worker)) else {
                return false;
            };
            n.hedged += 1;
            self.ask_slice(ask, sibling, net, n);
            true
        });
        let asked: HashSet<_> = items.iter().map(|a| (a.back, a.slice)).collect();
        self.dests[peer].forget_waiting(|a| asked.contains(&(a.back, a.slice)));
        self.flush(net);
    }

    /// What a peer was asked for last and has not returned.
    pub(super) fn asked_of_peer(&self, peer: usize) -> impl Iterator<Item = ReturnItem> + '_ {
        self.token_group
            .iter()
            .filter(|g| **g != NONE)
            .flat_map(|g| self.pool.missing(*g))
            .filter(move |(back, slice)| self.asked_of[self.part(*back, *slice)] == peer as u32)
            .map(|(back, slice)| ReturnItem { back, slice })
    }
}
