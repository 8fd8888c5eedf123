//! Peers come and go. What a worker that is gone was asked for is asked of another replica: the inputs are still here,
//! and experts are pure functions, so the outputs have the same bits.

use super::{Ask, Dest, Rank};
use crate::counters::Counters;
use crate::frame::{ReturnItem, ReturnTo};
use crate::ids::{Nanos, Slice, WorkerId};
use crate::net::Net;
use crate::plant::{self, Plant};

/// Cycles for which an expert worker that owes something may give no sign, at least.
const PATIENCE_CYCLES: u64 = 64;

impl Rank {
    /// A peer's connection is new. One that holds experts is asked from its first credit on.
    pub fn peer_up(&mut self, peer: usize, is_host: bool) {
        if self.dests.len() <= peer {
            self.dests.resize_with(peer + 1, Dest::default);
        }
        self.dests[peer].meet(is_host, self.clocks.len(), self.now);
        self.unsaid = true;
    }

    /// A peer is gone. What it was asked for and has not returned goes elsewhere, or waits as an orphan.
    pub fn peer_down(&mut self, peer: usize, worker: WorkerId, net: &mut Net, n: &mut Counters) {
        let Some(d) = self.dests.get_mut(peer) else { return };
        if plant::is(Plant::EarlyUnmask) {
            return;
        }
        d.lose(self.now);
        self.routing.reach(worker, false);
        let lost: Vec<ReturnItem> = self.asked_of_peer(peer).collect();
        let asks: Vec<Ask> = lost.into_iter().filter_map(|item| self.sent_back(item, n)).collect();
        n.redispatched += asks.len() as u64;
        for ask in asks {
            self.ask_again(ask, None, net, n);
        }
        self.flush(net);
    }

    /// How long a worker that owes something may give no sign.
    fn patience(&self) -> Nanos {
        self.patience.max(PATIENCE_CYCLES * self.cycle.value())
    }

    /// When the next worker is taken for lost.
    pub(super) fn next_overdue(&self) -> Option<Nanos> {
        let patience = self.patience();
        self.dests.iter().filter_map(|d| d.overdue(patience)).min()
    }

    /// A worker that has owed something for too long without a sign: it is to be taken for lost.
    pub fn suspect(&mut self) -> Option<usize> {
        let (patience, now) = (self.patience(), self.now);
        if now < self.watch {
            return None;
        }
        let peer = self.dests.iter().position(|d| d.overdue(patience).is_some_and(|at| at <= now))?;
        self.dests[peer].doubt(now, patience);
        Some(peer)
    }

    /// The entry of `asked_of` of one slice.
    pub(super) fn part(&self, back: ReturnTo, slice: Slice) -> usize {
        let choice = back.group as usize * self.shape.top_k as usize + back.k as usize;
        choice * self.shape.segments as usize + slice.lo as usize
    }
}
