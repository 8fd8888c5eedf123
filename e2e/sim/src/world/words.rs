//! What gateways and ranks say to each other, now or over a later connection, and what comes of a word too late.

use super::{Ev, World};
use crate::link::{End, Envelope, Link, RankEnd, Said};
use sluice_core::event::Event;
use sluice_core::ids::{Attempt, GatewayId, SeqKey, WorkerId};
use sluice_core::sequence::{Bind, RankEvent};
use sluice_core::session::SessionId;

impl World {
    /// A gateway asks something of a rank.
    pub(super) fn tell_rank(&mut self, gateway: usize, rank: usize, event: Event) {
        let end = &mut self.link(gateway, rank).gateway;
        if !end.is_up || end.talk.is_lost {
            return;
        }
        match end.talk.say(event) {
            Ok(()) => self.give_to_rank(gateway, rank),
            Err(why) => self.lose(gateway, rank, End::Gateway, &why.to_string()),
        }
    }

    /// A rank says something of a sequence to the gateway whose session it is.
    pub(super) fn tell_gateway(
        &mut self,
        rank: usize,
        number: GatewayId,
        (seq, attempt): (SeqKey, Attempt),
        event: RankEvent,
    ) {
        let is_it = |l: &Link| l.rank.as_ref().is_some_and(|r| r.gateway == number);
        let Some(gateway) = (0..self.gateways.len()).find(|g| is_it(&self.links[self.at(*g, rank)])) else {
            return;
        };
        let load = self.rng.chance(4).then(|| Said::Load(self.load(rank)));
        let Some(end) = &mut self.link(gateway, rank).rank else { return };
        end.says(seq, attempt, &event);
        if end.talk.is_lost {
            return;
        }
        let mut said = end.talk.say(Said::Of { seq, attempt, event });
        if let Some(load) = load {
            said = said.and_then(|()| end.talk.say(load));
        }
        match said {
            Ok(()) => self.give_to_gateway(gateway, rank),
            Err(why) => self.lose(gateway, rank, End::Rank, &why.to_string()),
        }
    }

    pub(super) fn give_to_rank(&mut self, gateway: usize, rank: usize) {
        loop {
            let talk = &mut self.link(gateway, rank).gateway.talk;
            let (Some(connection), false) = (talk.connection, talk.is_lost) else { return };
            let Some(envelope) = talk.give() else { return };
            self.send_to_rank(gateway, rank, connection, envelope);
        }
    }

    fn send_to_rank(&mut self, gateway: usize, rank: usize, connection: u32, envelope: Envelope<Event>) {
        let (now, way) = (self.now, self.hop());
        if let Some(at) = self.link(gateway, rank).leave(connection, End::Rank, now, way) {
            let (gateway, rank) = (gateway as u32, rank as u32);
            self.heap.push(at, Ev::ToRank { gateway, rank, connection, envelope });
        }
    }

    pub(super) fn give_to_gateway(&mut self, gateway: usize, rank: usize) {
        loop {
            let Some(RankEnd { talk, .. }) = &mut self.link(gateway, rank).rank else { return };
            let (Some(connection), false) = (talk.connection, talk.is_lost) else { return };
            let Some(envelope) = talk.give() else { return };
            self.send_to_gateway(gateway, rank, connection, envelope);
        }
    }

    fn send_to_gateway(&mut self, gateway: usize, rank: usize, connection: u32, envelope: Envelope<Said>) {
        let (now, way) = (self.now, self.hop());
        if let Some(at) = self.link(gateway, rank).leave(connection, End::Gateway, now, way) {
            let (gateway, rank) = (gateway as u32, rank as u32);
            self.heap.push(at, Ev::ToGateway { gateway, rank, connection, envelope });
        }
    }

    /// Something reaches a rank.
    pub(super) fn rank_hears(
        &mut self,
        gateway: usize,
        rank: usize,
        connection: u32,
        envelope: Envelope<Event>,
    ) {
        let now = self.now;
        let link = self.link(gateway, rank);
        let arrives = link.arrives(connection, now);
        let is_its = |r: &&mut RankEnd| arrives && r.talk.connection == Some(connection) && !r.talk.is_lost;
        let Some(end) = link.rank.as_mut().filter(is_its) else {
            return self.too_late_for_rank(gateway, rank, envelope);
        };
        end.lease.renew(now);
        match end.talk.take(envelope) {
            Ok(Ok(Some(event))) => {
                end.asked(&event);
                // The rank's core knows the session, not the gateway.
                let number = end.gateway;
                let event = match event {
                    Event::Bind(bind) => Event::Bind(Bind { gateway: number, ..bind }),
                    other => other,
                };
                self.beat_later(gateway, rank, End::Rank);
                self.note(|| format!("worker {rank} <- {event:?}"));
                self.asked(rank, &event);
                self.handle(rank, event, false);
            }
            Ok(Ok(None)) => {}
            Ok(Err(why)) => self.lose(gateway, rank, End::Rank, &why.to_string()),
            Err(what) => self.fail(what),
        }
    }

    /// Something reaches a gateway.
    pub(super) fn gateway_hears(
        &mut self,
        gateway: usize,
        rank: usize,
        connection: u32,
        envelope: Envelope<Said>,
    ) {
        let now = self.now;
        let link = self.link(gateway, rank);
        let arrives = link.arrives(connection, now);
        let end = &mut link.gateway;
        if !arrives || end.talk.connection != Some(connection) || end.talk.is_lost {
            return self.too_late_for_gateway(gateway, rank, envelope);
        }
        let said = match end.talk.take(envelope) {
            Ok(Ok(Some(said))) => said,
            Ok(Ok(None)) => return,
            Ok(Err(why)) => return self.lose(gateway, rank, End::Gateway, &why.to_string()),
            Err(what) => return self.fail(what),
        };
        let was_up = std::mem::replace(&mut end.is_up, true);
        self.beat_later(gateway, rank, End::Gateway);
        let worker = WorkerId(rank as u32);
        self.front(gateway, |front, out| match said {
            Said::Of { seq, attempt, event } => front.rank_event(now, worker, seq, attempt, event, out),
            Said::Load(load) if was_up => front.rank_load(now, worker, load, out),
            Said::Load(load) => front.rank_up(now, worker, 1, load, out),
        });
    }

    // A thread that read a message while its session was ended by another one may pass it on after the next session has
    // begun: both cores are to see by the attempt that it is over.

    fn too_late_for_rank(&mut self, gateway: usize, rank: usize, envelope: Envelope<Event>) {
        if let Some((id, event)) = envelope.open()
            && self.rng.chance(30)
        {
            let (at, life) =
                (self.now + self.rng.below(2 * self.scenario.link.patience), self.nodes[rank].life);
            let (gateway, rank) = (gateway as u32, rank as u32);
            self.heap.push(at, Ev::LateToRank { gateway, rank, life, id, event });
        }
    }

    pub(super) fn rank_hears_late(
        &mut self,
        gateway: usize,
        rank: usize,
        life: u32,
        id: SessionId,
        event: Event,
    ) {
        let is_over = self.link(gateway, rank).rank.as_ref().is_some_and(|r| r.talk.id > id);
        let Event::Bind(bind) = event else { return };
        if !is_over || self.nodes[rank].life != life {
            return;
        }
        let (seq, attempt, nobody) = (bind.seq, bind.attempt, GatewayId(0));
        let event = Event::Bind(Bind { gateway: nobody, ..bind });
        self.coverage.late_words += 1;
        self.note(|| format!("worker {rank} <- {event:?}, of {id}"));
        self.asked(rank, &event);
        self.handle(rank, event, false);
        // The end of its session waits until it is passed on.
        let (at, worker) = (self.now + self.hop(), rank as u32);
        self.heap.push(at, Ev::Cancel { worker, life, seq, attempt });
    }

    fn too_late_for_gateway(&mut self, gateway: usize, rank: usize, envelope: Envelope<Said>) {
        if let Some((id, said)) = envelope.open()
            && self.rng.chance(30)
        {
            let at = self.now + self.rng.below(2 * self.scenario.link.patience);
            let (gateway, rank) = (gateway as u32, rank as u32);
            self.heap.push(at, Ev::LateToGateway { gateway, rank, id, said });
        }
    }

    pub(super) fn gateway_hears_late(&mut self, gateway: usize, rank: usize, id: SessionId, said: Said) {
        let present = self.link(gateway, rank).gateway.talk.id;
        let Said::Of { seq, attempt, event } = said else { return };
        // Not of a process that is gone.
        if present.incarnation != id.incarnation || present.number <= id.number {
            return;
        }
        self.coverage.late_words += 1;
        self.note(|| format!("gateway {gateway} <- worker {rank}, of {id}: {seq} ({attempt}) {event:?}"));
        let (now, worker) = (self.now, WorkerId(rank as u32));
        self.front(gateway, |front, out| front.rank_event(now, worker, seq, attempt, event, out));
    }

    /// An end that has heard something says so by and by, if it has nothing else to say.
    fn beat_later(&mut self, gateway: usize, rank: usize, end: End) {
        let at = self.now + self.scenario.link.beat.max(1);
        let link = self.link(gateway, rank);
        let beats = match (end, &mut link.rank) {
            (End::Gateway, _) => &mut link.gateway.talk.beats,
            (End::Rank, Some(r)) => &mut r.talk.beats,
            (End::Rank, None) => return,
        };
        if !std::mem::replace(beats, true) {
            self.heap.push(at, Ev::Beat { gateway: gateway as u32, rank: rank as u32, end });
        }
    }

    /// A heartbeat is due.
    pub(super) fn beat(&mut self, gateway: usize, rank: usize, end: End) {
        let link = self.link(gateway, rank);
        match (end, &mut link.rank) {
            (End::Gateway, _) => {
                let talk = &mut link.gateway.talk;
                talk.beats = false;
                let Some(connection) = talk.connection else { return };
                if let Some(envelope) = talk.beat() {
                    self.send_to_rank(gateway, rank, connection, envelope);
                }
            }
            (End::Rank, Some(RankEnd { talk, .. })) => {
                talk.beats = false;
                let Some(connection) = talk.connection else { return };
                if let Some(envelope) = talk.beat() {
                    self.send_to_gateway(gateway, rank, connection, envelope);
                }
            }
            (End::Rank, None) => {}
        }
    }
}
