//! Gateways: what their fronts decide is carried out; they die, stall, drain and start again.

use super::link::Open;
use super::{Ev, World};
use crate::client::Client;
use crate::link::End;
use crate::symbol::Request;
use sluice_core::event::Event;
use sluice_core::front::{Action, CancelCause, Ending, Front, FrontConfig, Submit};
use sluice_core::ids::Nanos;
use sluice_core::session::SessionId;
use std::sync::Arc;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Serves,
    /// It takes no new requests. For how long it will be away.
    Drains(Nanos),
    /// It is not there.
    Away,
}

pub(super) struct Gateway {
    pub front: Front<u32>,
    pub tick: Option<Nanos>,
    pub incarnation: u64,
    pub stage: Stage,
    /// It does nothing until then.
    pub paused: Nanos,
    /// Its grace period is over: what it still has is cut.
    pub halted: bool,
}

impl Gateway {
    pub(super) fn new(config: FrontConfig) -> Self {
        let front = Front::new(config);
        Self { front, tick: None, incarnation: 1, stage: Stage::Serves, paused: 0, halted: false }
    }

    pub(super) fn is_there(&self) -> bool {
        self.stage != Stage::Away
    }
}

impl World {
    pub(super) fn front(
        &mut self,
        gateway: usize,
        call: impl FnOnce(&mut Front<u32>, &mut Vec<Action<u32>>),
    ) {
        let mut out = std::mem::take(&mut self.out);
        call(&mut self.gateways[gateway].front, &mut out);
        for action in out.drain(..) {
            match action {
                Action::Bind { rank, bind, .. } => {
                    self.tell_rank(gateway, rank.0 as usize, Event::Bind(bind));
                }
                Action::CancelAt { rank, seq, attempt } => {
                    self.tell_rank(gateway, rank.0 as usize, Event::Cancel { seq, attempt });
                }
                Action::Deliver { index, id, handle, .. } => {
                    self.told = self.events;
                    let got =
                        self.clients[handle as usize].deliver(&self.shape, self.scenario.hot, index, id);
                    self.must(got);
                }
                Action::End { ending, handle, seq } => {
                    self.note(|| format!("gateway {gateway}: {seq} ends: {ending:?}"));
                    self.end(gateway, handle, ending);
                }
            }
        }
        self.out = out;
        let g = &mut self.gateways[gateway];
        let (waiting, most) = (g.front.waiting().fresh, self.scenario.gateways[gateway].queue);
        let (is_over, incarnation) =
            (matches!(g.stage, Stage::Drains(_)) && g.front.is_idle(), g.incarnation);
        if let Some(at) = g.front.next_tick() {
            let at = at.max(self.now + 1);
            if g.tick.is_none_or(|t| at < t) {
                g.tick = Some(at);
                self.heap.push(at, Ev::FrontTick { gateway: gateway as u32 });
            }
        }
        if is_over {
            self.heap.push(self.now + 1, Ev::Leave { gateway: gateway as u32, incarnation });
        }
        if waiting > most {
            self.fail(format!("gateway {gateway} keeps {waiting} new sequences in a queue of {most}"));
        }
    }

    fn end(&mut self, gateway: usize, client: u32, ending: Ending) {
        let (room, halted) = (self.room(), self.gateways[gateway].halted);
        let client = &mut self.clients[client as usize];
        if ending == Ending::Cut && halted {
            self.coverage.cut += 1;
            let cut = client.cut();
            return self.must(cut);
        }
        let ended = client.end(&self.shape, self.scenario.hot, self.now, ending, room);
        self.must(ended);
    }

    /// Tokens that the smallest KV pool holds: less is never too large.
    fn room(&self) -> u32 {
        let ranks = self.scenario.workers.iter().filter_map(|w| w.rank.as_ref());
        ranks.map(|r| r.pages * r.page_size).min().unwrap_or(0)
    }

    /// The gateway that a client comes to: any that serves, if its own does not. Now and then one that has just begun
    /// to drain.
    fn door(&mut self, own: usize) -> Option<usize> {
        let n = self.gateways.len();
        let stays = match self.gateways[own].stage {
            Stage::Serves => true,
            Stage::Drains(_) => self.rng.chance(30),
            Stage::Away => false,
        };
        if stays {
            return Some(own);
        }
        (1..n).map(|i| (own + i) % n).find(|g| self.gateways[*g].stage == Stage::Serves)
    }

    pub(super) fn submit(&mut self, arrival: usize) {
        let a = self.scenario.arrivals[arrival].clone();
        if a.cancel.is_some_and(|at| at < self.now) && self.now > a.at {
            // It went before any gateway was there.
            return;
        }
        let Some(gateway) = self.door(a.gateway) else {
            let at = self.now + 16 * self.hop();
            return self.heap.push(at, Ev::Submit { arrival: arrival as u32 });
        };
        let paused = self.gateways[gateway].paused;
        if paused > self.now {
            return self.heap.push(paused, Ev::Submit { arrival: arrival as u32 });
        }
        let first = self.clients.len() as u32;
        for request in &a.choices {
            self.by_key.insert(request.key, self.clients.len() as u32);
            self.clients.push(Client::new(Arc::clone(request), gateway, a.deadline));
        }
        let one: &Request = &a.choices[0];
        let submit = Submit {
            request: one.key.request,
            choices: (first..self.clients.len() as u32).collect(),
            prompt: Arc::clone(&one.prompt),
            stop: one.stop.clone(),
            deadline: a.deadline,
            salt: one.salt,
        };
        self.note(|| {
            format!("gateway {gateway}: request {} of {} tokens", submit.request, submit.prompt.len())
        });
        let now = self.now;
        let mut refused = None;
        self.front(gateway, |front, out| refused = front.submit(now, submit, out).err());
        if let Some(why) = refused {
            self.coverage.refused += 1;
            self.note(|| format!("it is refused: {why}"));
            for client in &mut self.clients[first as usize..] {
                client.ending = Some(Ending::Refused(why));
            }
        }
    }

    pub(super) fn quit(&mut self, arrival: usize) {
        let keys = self.scenario.arrivals[arrival].choices.iter().map(|c| c.key).collect::<Vec<_>>();
        for key in keys {
            let Some(client) = self.by_key.get(&key).map(|c| &mut self.clients[*c as usize]) else {
                continue;
            };
            let gateway = client.gateway;
            let paused = self.gateways[gateway].paused;
            if paused > self.now {
                return self.heap.push(paused, Ev::Quit { arrival: arrival as u32 });
            }
            client.cancelled = true;
            let now = self.now;
            self.front(gateway, |front, out| front.cancel(now, key, CancelCause::Client, out));
        }
    }

    // ---- faults

    pub(super) fn kill_gateway(&mut self, gateway: usize, away: Option<Nanos>) -> bool {
        if !self.gateways[gateway].is_there() {
            return false;
        }
        for client in self.clients.iter_mut().filter(|c| c.gateway == gateway && c.is_open()) {
            self.coverage.cut += 1;
            client.ending = Some(Ending::Cut);
        }
        self.depart(gateway, away);
        true
    }

    /// It is not there any more.
    fn depart(&mut self, gateway: usize, away: Option<Nanos>) {
        let g = &mut self.gateways[gateway];
        self.coverage.add_front(g.front.counts());
        let before = g.incarnation;
        *g = Gateway {
            incarnation: before + 1,
            stage: Stage::Away,
            ..Gateway::new(self.scenario.gateways[gateway])
        };
        for rank in self.ranks() {
            let old = self.link(gateway, rank).gateway.talk.id;
            self.renew_session(gateway, rank, SessionId { incarnation: before + 1, number: 1 });
            self.link(gateway, rank).gateway.pause = 0;
            self.cut(gateway, rank, &[End::Rank]);
            // A wish for a session that it had still sent arrives when its successor has one.
            if self.rng.chance(20) {
                let connection = self.link(gateway, rank).dial();
                let open = Open { connection, id: old, fresh: true, has: 0 };
                let at = self.now + self.hop() + self.rng.below(2 * away.unwrap_or(self.scenario.link.lease));
                self.heap.push(at, Ev::Open { gateway: gateway as u32, rank: rank as u32, open });
            }
        }
        if let Some(away) = away {
            self.heap.push(self.now + away, Ev::Return { gateway: gateway as u32 });
        }
    }

    /// It is there again, and knows nothing.
    pub(super) fn gateway_returns(&mut self, gateway: usize) {
        self.note(|| format!("gateway {gateway} starts again"));
        self.gateways[gateway].stage = Stage::Serves;
        for rank in self.ranks() {
            self.dial(gateway, rank);
        }
    }

    pub(super) fn pause_gateway(&mut self, gateway: usize, length: Nanos) -> bool {
        let (now, patience) = (self.now, self.scenario.link.patience);
        let g = &mut self.gateways[gateway];
        if !g.is_there() || g.paused > now {
            return false;
        }
        g.paused = now + length;
        for rank in self.ranks() {
            let Some(r) = &mut self.link(gateway, rank).rank else { continue };
            let Some(connection) = r.talk.connection else { continue };
            r.lease.renew(now);
            if length > patience {
                let (gateway, rank) = (gateway as u32, rank as u32);
                self.heap.push(now + patience, Ev::Silent { gateway, rank, connection, end: End::Rank });
            }
        }
        true
    }

    pub(super) fn drain_gateway(&mut self, gateway: usize, grace: Option<Nanos>, away: Nanos) -> bool {
        let g = &mut self.gateways[gateway];
        if g.stage != Stage::Serves {
            return false;
        }
        g.stage = Stage::Drains(away);
        let incarnation = g.incarnation;
        self.front(gateway, |front, _| front.drain());
        if let Some(grace) = grace {
            self.heap.push(self.now + grace, Ev::Halt { gateway: gateway as u32, incarnation });
        }
        true
    }

    /// The grace period of a gateway that drains is over.
    pub(super) fn halt(&mut self, gateway: usize, incarnation: u64) {
        let g = &mut self.gateways[gateway];
        if g.incarnation == incarnation && g.is_there() {
            g.halted = true;
            self.front(gateway, Front::halt);
        }
    }

    /// A gateway that drains has nothing any more.
    pub(super) fn leave(&mut self, gateway: usize, incarnation: u64) {
        let g = &self.gateways[gateway];
        let Stage::Drains(away) = g.stage else { return };
        if g.incarnation == incarnation && g.front.is_idle() {
            self.coverage.left += 1;
            self.depart(gateway, Some(away));
        }
    }
}
