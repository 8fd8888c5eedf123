//! Workers die, stall and lose each other.

use super::{Ev, World};
use crate::device::Device;
use crate::faults::Fault;
use sluice_core::event::{Event, PeerUp};
use sluice_core::ids::{Nanos, WorkerId};
use sluice_core::worker::Worker;
use std::sync::Arc;

impl World {
    pub(super) fn fault(&mut self, fault: Fault) {
        self.note(|| format!("{fault:?}"));
        self.coverage.faults[fault.kind()] += 1;
        match fault {
            Fault::Kill { worker, away } => self.kill(worker, away),
            Fault::Pause { worker, length } => {
                let node = &mut self.nodes[worker];
                node.paused = node.paused.max(self.now + length);
            }
            Fault::Cut { a, b, length } => self.sever(a, b, length),
            Fault::Partition { half, length } => {
                let n = self.nodes.len();
                for (a, b) in (0..n).flat_map(|a| (a + 1..n).map(move |b| (a, b))) {
                    if half >> a & 1 != half >> b & 1 {
                        self.sever(a, b, length);
                    }
                }
            }
            Fault::Slow { worker, length, factor } => self.wire.slow(worker, self.now + length, factor),
        }
    }

    /// The connections of two workers break for a time. Each end notices when it does.
    pub(super) fn sever(&mut self, a: usize, b: usize, length: Nanos) {
        let Some(epoch) = self.pairs.sever(a, b) else { return };
        self.ledger.sever(a, b);
        for (worker, peer) in [(a, b), (b, a)] {
            let at = self.now + self.delay(length * 2);
            self.heap.push(at, Ev::Lost { worker: worker as u32, peer: peer as u32, epoch });
        }
        self.heap.push(self.now + length, Ev::Join { a: a as u32, b: b as u32 });
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

    fn kill(&mut self, worker: usize, away: Nanos) {
        if !self.nodes[worker].is_alive {
            return;
        }
        let config = &self.scenario.workers[worker];
        let core = match Worker::new(config.clone()) {
            Ok(core) => core,
            Err(e) => return self.fail(e.to_string()),
        };
        let device = Device::new(config, self.scenario.hot);
        let node = &mut self.nodes[worker];
        self.coverage.add(node.core.counters());
        self.coverage.prefix_hits += node.core.pressure(self.now).prefix.0;
        (node.core, node.device, node.life) = (core, device, node.life + 1);
        (node.running, node.tick, node.overdue, node.paused) = (None, None, None, 0);
        node.bound.clear();
        (node.is_alive, node.draining) = (false, false);
        self.pairs.forget(worker);
        for peer in (0..self.nodes.len()).filter(|p| *p != worker) {
            self.sever(worker, peer, away);
        }
        if self.scenario.workers[worker].rank.is_some() {
            for gateway in 0..self.fronts.len() {
                self.cut(gateway, worker);
            }
        }
        self.heap.push(self.now + away, Ev::Restart { worker: worker as u32 });
    }

    /// It is there again, and knows nothing.
    pub(super) fn restart(&mut self, worker: usize) {
        self.note(|| format!("worker {worker} starts again"));
        self.nodes[worker].is_alive = true;
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
        if self.scenario.workers[worker].rank.is_some() {
            for gateway in 0..self.fronts.len() {
                let at = self.now + self.hop();
                self.heap.push(at, Ev::Heal { gateway: gateway as u32, rank: worker as u32 });
            }
        }
    }

    /// A gateway loses a rank: nothing of this connection gets through any more.
    fn cut(&mut self, gateway: usize, rank: usize) {
        let c = &mut self.connections[gateway * self.nodes.len() + rank];
        let was_up = std::mem::replace(&mut c.is_up, false);
        c.epoch += 2;
        if was_up {
            let (now, rank) = (self.now, config_id(rank));
            self.front(gateway, |front, out| front.rank_down(now, rank, out));
        }
    }

    /// Until when the worker that an event is for does nothing.
    pub(super) fn paused(&self, ev: &Ev) -> Option<Nanos> {
        let worker = match ev {
            Ev::Arrive { flight } => self.flights[*flight as usize].as_ref()?.to,
            Ev::Done { worker, .. }
            | Ev::Decide { worker }
            | Ev::Tick { worker }
            | Ev::Table { worker, .. }
            | Ev::Loaded { worker, .. }
            | Ev::Lost { worker, .. }
            | Ev::Meet { worker, .. } => *worker,
            Ev::ToRank { rank, .. } => *rank,
            _ => return None,
        };
        let until = self.nodes[worker as usize].paused;
        (until > self.now).then_some(until)
    }
}

fn config_id(worker: usize) -> WorkerId {
    WorkerId(worker as u32)
}
