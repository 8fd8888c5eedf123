//! Who is talked to: hellos of workers and gateways, some of which come too late.

use super::World;
use crate::device::Device;
use sluice_core::hello::{Hello, Members, Refused, Role, WireVersions};
use sluice_core::ids::{Nanos, WorkerId};

/// Who says hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Name {
    Worker(usize),
    Gateway(usize),
}

/// What a worker or a gateway says of itself. All workers of a run have one schedule.
pub(super) fn hello(name: Name, incarnation: u64) -> Hello {
    let (worker, name, role) = match name {
        Name::Worker(w) => (Some(WorkerId(w as u32)), format!("worker-{w}"), Role::Hybrid),
        Name::Gateway(g) => (None, format!("gateway-{g}"), Role::Gateway),
    };
    Hello {
        deployment: "sim".into(),
        numerics: worker.map(|_| "digests".into()),
        worker,
        name,
        incarnation,
        role,
        wire: WireVersions { min: 1, max: 1 },
        schedule: None,
    }
}

/// Nobody is known yet to a worker of this incarnation.
pub(super) fn members(worker: usize, life: u32) -> Members {
    Members::new(hello(Name::Worker(worker), u64::from(life) + 1))
}

impl World {
    /// A worker hears a hello. True if it talks to who said it.
    pub(super) fn greet(&mut self, worker: usize, name: Name, incarnation: u64) -> bool {
        let said = hello(name, incarnation);
        let node = &mut self.nodes[worker];
        match node.members.greet(&said, Some(&said.name), |_| said.worker) {
            Ok(_) => {
                let newest = node.greeted.entry(name).or_insert(incarnation);
                let before = std::mem::replace(newest, incarnation.max(*newest));
                if incarnation < before {
                    self.fail(format!(
                        "worker {worker} takes incarnation {incarnation} of {name:?} after {before}"
                    ));
                }
                true
            }
            Err(Refused::Stale { .. }) => {
                self.note(|| format!("worker {worker} refuses incarnation {incarnation} of {name:?}"));
                self.coverage.stale_incarnations += 1;
                false
            }
            Err(other) => {
                self.fail(format!("worker {worker} refuses {name:?}: {other}"));
                false
            }
        }
    }

    /// A hello that a worker sent before it died arrives.
    pub(super) fn late_hello(&mut self, worker: usize, peer: usize, incarnation: u64) {
        if !self.nodes[worker].is_alive || !self.greet(worker, Name::Worker(peer), incarnation) {
            return;
        }
        // It takes the place of the connections there are, and nobody is at its other end.
        let length = self.hop() * 4;
        self.sever(worker, peer, length);
    }

    /// Puts a worker that knows nothing in the place of one that died.
    pub(super) fn blank(&mut self, worker: usize) -> Result<(), String> {
        let config = &self.scenario.workers[worker];
        let core = sluice_core::worker::Worker::new(config.clone()).map_err(|e| e.to_string())?;
        let device = Device::new(config, self.scenario.hot);
        let node = &mut self.nodes[worker];
        (node.core, node.device, node.life) = (core, device, node.life + 1);
        node.members = members(worker, node.life);
        (node.running, node.tick, node.overdue, node.paused) = (None, None, None, 0);
        node.bound.clear();
        node.greeted.clear();
        node.generations.clear();
        (node.is_alive, node.draining) = (false, false);
        Ok(())
    }

    /// Hellos of a dead incarnation that are under way still.
    pub(super) fn leave_hellos(&mut self, worker: usize, away: Nanos) {
        let incarnation = u64::from(self.nodes[worker].life) + 1;
        for peer in (0..self.nodes.len()).filter(|p| *p != worker) {
            if self.rng.chance(20) {
                let at = self.now + self.hop() + self.rng.below(2 * away);
                let (worker, peer) = (peer as u32, worker as u32);
                self.heap.push(at, super::Ev::Hello { worker, peer, incarnation });
            }
        }
    }
}
