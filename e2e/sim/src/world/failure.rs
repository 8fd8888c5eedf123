//! Workers die, stall and lose each other.

use super::hello::Name;
use super::{Ev, World};
use crate::faults::Fault;
use crate::link::End;
use sluice_core::event::{Event, PeerUp};
use sluice_core::ids::{Nanos, WorkerId};
use sluice_core::placement::PlacementSlice;
use std::sync::Arc;

impl World {
    pub(super) fn fault(&mut self, fault: Fault) {
        self.note(|| format!("{fault:?}"));
        let happens = match fault {
            Fault::Kill { worker, away } => self.kill(worker, away),
            Fault::Pause { worker, length } => self.pause(worker, length),
            Fault::Cut { a, b, length } => self.sever(a, b, length),
            Fault::Partition { half, length } => {
                let n = self.nodes.len();
                let pairs = (0..n).flat_map(|a| (a + 1..n).map(move |b| (a, b)));
                let apart = pairs.filter(|(a, b)| half >> a & 1 != half >> b & 1);
                apart.fold(false, |any, (a, b)| self.sever(a, b, length) | any)
            }
            Fault::Slow { worker, length, factor } => {
                self.wire.slow(worker, self.now + length, factor);
                true
            }
            Fault::SlowDevice { worker, length, factor } => {
                self.nodes[worker].slow = (self.now + length, factor);
                true
            }
            Fault::OldTable => self.publish_old(),
            Fault::Drain { rank, hand_back, leaves } => self.drain_rank(rank, hand_back, leaves),
            Fault::KillGateway { gateway, away } => self.kill_gateway(gateway, away),
            Fault::PauseGateway { gateway, length } => self.pause_gateway(gateway, length),
            Fault::DrainGateway { gateway, grace, away } => self.drain_gateway(gateway, grace, away),
            Fault::CutLink { gateway, rank, length } => self.cut_link(gateway, rank, length),
            Fault::Isolate { gateway, length } => {
                self.ranks().into_iter().fold(false, |any, rank| self.cut_link(gateway, rank, length) | any)
            }
        };
        self.coverage.faults[fault.kind()] += u64::from(happens);
    }

    fn pause(&mut self, worker: usize, length: Nanos) -> bool {
        let (now, patience) = (self.now, self.scenario.link.patience);
        let node = &mut self.nodes[worker];
        if !node.is_alive || node.paused > now {
            return false;
        }
        node.paused = now + length;
        for gateway in 0..self.gateways.len() {
            if let Some(connection) = self.link(gateway, worker).gateway.talk.connection
                && length > patience
            {
                let (gateway, rank, end) = (gateway as u32, worker as u32, End::Gateway);
                self.heap.push(now + patience, Ev::Silent { gateway, rank, connection, end });
            }
        }
        true
    }

    /// Any slice that is not the newest of its blocks.
    fn publish_old(&mut self) -> bool {
        let newest = self.operator.all();
        let is_old =
            |s: &PlacementSlice| newest.iter().any(|n| n.blocks == s.blocks && n.generation > s.generation);
        let old: Vec<_> = self.published.iter().filter(|s| is_old(s)).cloned().collect();
        if old.is_empty() {
            return false;
        }
        let slice = &old[self.rng.below(old.len() as u64) as usize];
        self.note(|| format!("{slice:?} is published again"));
        self.publish(slice, false);
        true
    }

    fn drain_rank(&mut self, rank: usize, hand_back: bool, leaves: Option<Nanos>) -> bool {
        let node = &mut self.nodes[rank];
        if !node.is_alive {
            return false;
        }
        node.draining = true;
        let life = node.life;
        self.handle(rank, Event::Drain { hand_back }, false);
        if let Some(after) = leaves {
            let (worker, away) = (rank as u32, 1 + after / 4);
            self.heap.push(self.now + after, Ev::Leaves { worker, life, away });
        }
        true
    }

    fn cut_link(&mut self, gateway: usize, rank: usize, length: Nanos) -> bool {
        let blocked = self.now + length;
        let link = self.link(gateway, rank);
        link.blocked = link.blocked.max(blocked);
        let was_there = link.gateway.talk.connection.is_some();
        self.cut(gateway, rank, &[End::Gateway, End::Rank]);
        was_there
    }

    /// The connections of two workers break for a time. Each end notices when it does. False if there were none.
    pub(super) fn sever(&mut self, a: usize, b: usize, length: Nanos) -> bool {
        let Some(epoch) = self.pairs.sever(a, b) else { return false };
        self.ledger.sever(a, b);
        for (worker, peer) in [(a, b), (b, a)] {
            let at = self.now + self.delay(length * 2);
            self.heap.push(at, Ev::Lost { worker: worker as u32, peer: peer as u32, epoch });
        }
        self.heap.push(self.now + length, Ev::Join { a: a as u32, b: b as u32 });
        true
    }

    /// Up to `most`.
    fn delay(&mut self, most: Nanos) -> Nanos {
        1 + self.rng.below(most + 1)
    }

    /// An end notices that the connections are closed, if it has not met its peer anew by then.
    pub(super) fn lost(&mut self, worker: usize, peer: usize, epoch: u32) {
        if self.nodes[worker].is_alive && self.pairs.met(worker, peer) == epoch {
            self.note(|| format!("worker {worker} loses worker {peer}"));
            self.handle(worker, Event::PeerDown(WorkerId(peer as u32)), false);
        }
    }

    /// The connections are there again: one end meets the other first.
    pub(super) fn join(&mut self, a: usize, b: usize) {
        if !self.nodes[a].is_alive || !self.nodes[b].is_alive {
            return;
        }
        let Some(epoch) = self.pairs.join(a, b) else { return };
        let (first, second) = if self.rng.chance(50) { (a, b) } else { (b, a) };
        let later = self.now + self.hop();
        for (at, worker, peer) in [(self.now, first, second), (later, second, first)] {
            self.heap.push(at, Ev::Meet { worker: worker as u32, peer: peer as u32, epoch });
        }
    }

    pub(super) fn meet(&mut self, worker: usize, peer: usize, epoch: u32) {
        if !self.nodes[worker].is_alive
            || !self.pairs.is_up(worker, peer)
            || self.pairs.epoch(worker, peer) != epoch
        {
            return;
        }
        let incarnation = u64::from(self.nodes[peer].life) + 1;
        if !self.greet(worker, Name::Worker(peer), incarnation) {
            return self
                .fail(format!("worker {worker} does not talk to worker {peer}, which has just started"));
        }
        self.pairs.meet(worker, peer, epoch);
        let config = &self.scenario.workers[peer];
        let (is_rank, is_host) = (config.rank.is_some(), config.host.is_some());
        self.note(|| format!("worker {worker} meets worker {peer} in epoch {epoch}"));
        self.handle(
            worker,
            Event::PeerUp(PeerUp { worker: config_id(peer), epoch, is_rank, is_host }),
            false,
        );
    }

    /// False if it is dead already.
    pub(super) fn kill(&mut self, worker: usize, away: Nanos) -> bool {
        if !self.nodes[worker].is_alive {
            return false;
        }
        self.leave_hellos(worker, away);
        let node = &self.nodes[worker];
        self.coverage.add(node.core.counters());
        self.coverage.prefix_hits += node.core.pressure(self.now).prefix.0;
        self.coverage.lost_replaying += u64::from(node.bound.values().any(|(attempt, ..)| *attempt > 1));
        if let Err(what) = self.blank(worker) {
            self.fail(what);
        }
        self.pairs.forget(worker);
        for peer in (0..self.nodes.len()).filter(|p| *p != worker) {
            self.sever(worker, peer, away);
        }
        if self.scenario.workers[worker].rank.is_some() {
            for gateway in 0..self.gateways.len() {
                let link = self.link(gateway, worker);
                link.rank = None;
                self.coverage.lost_resuming += u64::from(link.gateway.until.is_some());
                self.cut(gateway, worker, &[End::Gateway]);
            }
        }
        self.heap.push(self.now + away, Ev::Restart { worker: worker as u32 });
        true
    }

    /// It is there again, and knows nothing.
    pub(super) fn restart(&mut self, worker: usize) {
        self.note(|| format!("worker {worker} starts again"));
        self.nodes[worker].is_alive = true;
        self.coverage.restarts += 1;
        // With the placement that it kept, or with none.
        if self.rng.chance(50) {
            for slice in self.nodes[worker].disk.clone().into_values() {
                self.heap.push(self.now, Ev::Table { worker: worker as u32, slice });
            }
        }
        for peer in (0..self.nodes.len()).filter(|p| *p != worker) {
            if !self.pairs.is_up(worker, peer) {
                let at = self.now + self.hop();
                self.heap.push(at, Ev::Join { a: worker as u32, b: peer as u32 });
            }
        }
        for slice in self.operator.all() {
            let at = self.now + self.hop();
            self.heap.push(at, Ev::Table { worker: worker as u32, slice: Arc::clone(&slice) });
        }
    }

    /// Until when whoever an event is for does nothing.
    pub(super) fn paused(&self, ev: &Ev) -> Option<Nanos> {
        let worker = |w: u32| self.nodes[w as usize].paused;
        let gateway = |g: u32| self.gateways[g as usize].paused;
        let until = match ev {
            Ev::Arrive { flight } => worker(self.flights[*flight as usize].as_ref()?.to),
            Ev::Done { worker: w, .. }
            | Ev::Decide { worker: w }
            | Ev::Tick { worker: w }
            | Ev::Table { worker: w, .. }
            | Ev::Loaded { worker: w, .. }
            | Ev::Cancel { worker: w, .. }
            | Ev::Lost { worker: w, .. }
            | Ev::Meet { worker: w, .. }
            | Ev::Hello { worker: w, .. } => worker(*w),
            Ev::Open { rank, .. }
            | Ev::ToRank { rank, .. }
            | Ev::LateToRank { rank, .. }
            | Ev::Lapse { rank, .. } => worker(*rank),
            Ev::Dial { gateway: g, .. }
            | Ev::Answer { gateway: g, .. }
            | Ev::Unanswered { gateway: g, .. }
            | Ev::ToGateway { gateway: g, .. }
            | Ev::LateToGateway { gateway: g, .. }
            | Ev::FrontTick { gateway: g }
            | Ev::Halt { gateway: g, .. }
            | Ev::Leave { gateway: g, .. } => gateway(*g),
            Ev::Beat { gateway: g, rank, end }
            | Ev::Silent { gateway: g, rank, end, .. }
            | Ev::Broke { gateway: g, rank, end, .. }
            | Ev::Over { gateway: g, rank, end, .. } => match end {
                End::Gateway => gateway(*g),
                End::Rank => worker(*rank),
            },
            _ => return None,
        };
        (until > self.now).then_some(until)
    }
}

fn config_id(worker: usize) -> WorkerId {
    WorkerId(worker as u32)
}
