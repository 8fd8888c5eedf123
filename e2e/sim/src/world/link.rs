//! The links between gateways and ranks: connections are dialled and break, sessions go on over the next one, or are
//! over and what was bound in them lapses.

use super::hello::Name;
use super::{Ev, World};
use crate::link::{End, GatewayEnd, Link, RankEnd, Said, Talk};
use sluice_core::ids::{GatewayId, Nanos, WorkerId};
use sluice_core::lease::Lease;
use sluice_core::session::{Opening, SessionId};
use std::collections::BTreeMap;

/// A gateway's first word on a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Open {
    pub connection: u32,
    pub id: SessionId,
    pub fresh: bool,
    pub has: u64,
}

/// What comes back.
#[derive(Clone, Copy, Debug)]
pub(super) enum Answer {
    /// The session goes on. What the rank has.
    Opened(u64),
    /// The rank knows nothing of it.
    Unknown,
    /// Nobody is there, or nobody that talks to this gateway.
    Refused,
}

impl World {
    pub(super) fn at(&self, gateway: usize, rank: usize) -> usize {
        gateway * self.nodes.len() + rank
    }

    pub(super) fn link(&mut self, gateway: usize, rank: usize) -> &mut Link {
        let at = self.at(gateway, rank);
        &mut self.links[at]
    }

    // ---- connections

    /// A gateway that has no connection to a rank dials.
    pub(super) fn dial(&mut self, gateway: usize, rank: usize) {
        if !self.gateways[gateway].is_there() {
            return;
        }
        let (now, limit, way) = (self.now, self.scenario.link.patience / 2, self.hop() + self.hop());
        let link = self.link(gateway, rank);
        if link.gateway.talk.connection.is_some() || link.gateway.dialling.is_some() {
            return;
        }
        let connection = link.dial();
        let end = &mut link.gateway;
        end.dialling = Some(connection);
        let open = Open { connection, id: end.talk.id, fresh: !end.answered, has: end.talk.has() };
        let arrival = link.leave(connection, End::Rank, now, way);
        let (gateway, rank) = (gateway as u32, rank as u32);
        if let Some(at) = arrival {
            self.heap.push(at, Ev::Open { gateway, rank, open });
        }
        self.heap.push(now + limit.max(1), Ev::Unanswered { gateway, rank, connection });
    }

    /// Dials again, after a pause that grows.
    fn dial_later(&mut self, gateway: usize, rank: usize) {
        let (least, most) = (self.hop(), self.scenario.link.patience);
        let end = &mut self.link(gateway, rank).gateway;
        let pause = end.pause;
        end.pause = (2 * pause).clamp(least, most);
        self.heap.push(self.now + pause + 1, Ev::Dial { gateway: gateway as u32, rank: rank as u32 });
    }

    /// The opening of a session reaches a rank's machine.
    pub(super) fn open(&mut self, gateway: usize, rank: usize, open: Open) {
        let Open { connection, id, fresh, has } = open;
        let now = self.now;
        if !self.link(gateway, rank).arrives(connection, now) {
            return;
        }
        if !self.nodes[rank].is_alive {
            // A machine says so, unless it is gone too.
            if self.rng.chance(70) {
                self.answer(gateway, rank, connection, Answer::Refused);
            }
            return;
        }
        if !self.greet(rank, Name::Gateway(gateway), id.incarnation) {
            return self.answer(gateway, rank, connection, Answer::Refused);
        }
        let current = self.link(gateway, rank).rank.as_ref();
        let (newest, is_lost) = (current.map(|r| r.talk.id), current.is_some_and(|r| r.talk.is_lost));
        match id.opening(fresh, newest, is_lost) {
            Opening::Unknown => return self.answer(gateway, rank, connection, Answer::Unknown),
            Opening::Begin => self.begin(gateway, rank, id),
            Opening::Resume => {}
        }
        let Some(end) = &mut self.link(gateway, rank).rank else { return };
        let before = end.talk.connection;
        let connected = end.talk.connect(connection, has);
        end.lease.renew(now);
        match connected {
            Ok(()) => {
                let has = end.talk.has();
                if let Some(before) = before {
                    self.close_at_rank(gateway, rank, before);
                }
                self.answer(gateway, rank, connection, Answer::Opened(has));
                self.give_to_gateway(gateway, rank);
            }
            Err(why) => {
                self.lose(gateway, rank, End::Rank, &why.to_string());
                self.answer(gateway, rank, connection, Answer::Unknown);
            }
        }
    }

    /// A rank begins a session: the one before is over.
    fn begin(&mut self, gateway: usize, rank: usize, id: SessionId) {
        self.sessions += 1;
        let (number, now, config) = (GatewayId(self.sessions), self.now, self.scenario.link);
        let mut end = RankEnd {
            talk: Talk::new(id, config.limits),
            gateway: number,
            lease: Lease::new(config.lease, now),
            bound: BTreeMap::new(),
        };
        let load = end.talk.say(Said::Load(self.load(rank)));
        self.must(load.map_err(|e| e.to_string()));
        self.note(|| format!("worker {rank} begins {id} of gateway {gateway}"));
        if let Some(old) = self.link(gateway, rank).rank.replace(end) {
            self.coverage.replaced += 1;
            if old.talk.id > id {
                self.fail(format!("worker {rank} begins {id} of gateway {gateway} after {}", old.talk.id));
            }
            self.cancel_later(rank, &old);
        }
    }

    /// What was bound in a session that is over is cancelled, while the next one may have begun.
    fn cancel_later(&mut self, rank: usize, end: &RankEnd) {
        let (at, life) = (self.now + self.hop(), self.nodes[rank].life);
        for (seq, attempt) in &end.bound {
            let (seq, attempt) = (*seq, *attempt);
            self.heap.push(at, Ev::Cancel { worker: rank as u32, life, seq, attempt });
        }
    }

    fn answer(&mut self, gateway: usize, rank: usize, connection: u32, answer: Answer) {
        let (now, way) = (self.now, self.hop());
        let arrival = self.link(gateway, rank).leave(connection, End::Gateway, now, way);
        let (gateway, rank) = (gateway as u32, rank as u32);
        match arrival {
            Some(at) => self.heap.push(at, Ev::Answer { gateway, rank, connection, answer }),
            // Nothing is heard after it.
            None => {
                let at = now + self.scenario.link.patience;
                self.heap.push(at, Ev::Broke { gateway, rank, connection, end: End::Rank });
            }
        }
    }

    /// A rank's answer to an opening, or its machine's if nobody is there.
    pub(super) fn answered(&mut self, gateway: usize, rank: usize, connection: u32, answer: Answer) {
        let now = self.now;
        let link = self.link(gateway, rank);
        if !link.arrives(connection, now) {
            return;
        }
        if link.gateway.dialling != Some(connection) {
            return self.hang_up(gateway, rank, connection);
        }
        let end = &mut link.gateway;
        end.dialling = None;
        let resumes = end.answered;
        match answer {
            Answer::Opened(has) => match end.talk.connect(connection, has) {
                Ok(()) => {
                    (end.answered, end.until, end.pause) = (true, None, 0);
                    self.coverage.resumed += u64::from(resumes);
                    self.note(|| format!("gateway {gateway} reaches worker {rank}, resumes: {resumes}"));
                    self.give_to_rank(gateway, rank);
                }
                Err(why) => self.lose(gateway, rank, End::Gateway, &why.to_string()),
            },
            Answer::Unknown => self.lose(gateway, rank, End::Gateway, "the rank knows nothing of it"),
            Answer::Refused if resumes => self.lose(gateway, rank, End::Gateway, "nobody is there"),
            Answer::Refused => self.dial_later(gateway, rank),
        }
    }

    /// A dial had no answer for too long.
    pub(super) fn unanswered(&mut self, gateway: usize, rank: usize, connection: u32) {
        let now = self.now;
        let end = &mut self.link(gateway, rank).gateway;
        if end.dialling != Some(connection) {
            return;
        }
        end.dialling = None;
        let is_late = end.until.is_some_and(|until| until <= now);
        self.hang_up(gateway, rank, connection);
        if is_late {
            return self.lose(gateway, rank, End::Gateway, "it could not be resumed");
        }
        self.dial_later(gateway, rank);
    }

    /// A gateway leaves a connection, of which the rank hears.
    fn hang_up(&mut self, gateway: usize, rank: usize, connection: u32) {
        let (now, at) = (self.now, self.now + self.hop());
        self.link(gateway, rank).close(connection, now);
        let (gateway, rank) = (gateway as u32, rank as u32);
        self.heap.push(at, Ev::Broke { gateway, rank, connection, end: End::Rank });
    }

    /// A rank leaves a connection, of which the gateway hears: its session is over, or came over another one. That may be
    /// an older one, whose opening was long under way, and which the gateway has given up; it dials once more then.
    fn close_at_rank(&mut self, gateway: usize, rank: usize, connection: u32) {
        let (now, at) = (self.now, self.now + self.hop());
        self.link(gateway, rank).close(connection, now);
        let (gateway, rank) = (gateway as u32, rank as u32);
        self.heap.push(at, Ev::Broke { gateway, rank, connection, end: End::Gateway });
    }

    /// An end hears nothing any more, and closes the connection.
    pub(super) fn silent(&mut self, gateway: usize, rank: usize, connection: u32, end: End) {
        let (now, at) = (self.now, self.now + self.hop());
        let link = self.link(gateway, rank);
        let present = match end {
            End::Gateway => link.gateway.talk.connection,
            End::Rank => link.rank.as_ref().and_then(|r| r.talk.connection),
        };
        if present != Some(connection) {
            return;
        }
        link.close(connection, now);
        let other = if end == End::Gateway { End::Rank } else { End::Gateway };
        self.broke(gateway, rank, connection, end);
        let (gateway, rank) = (gateway as u32, rank as u32);
        self.heap.push(at, Ev::Broke { gateway, rank, connection, end: other });
    }

    /// An end notices that a connection is broken.
    pub(super) fn broke(&mut self, gateway: usize, rank: usize, connection: u32, end: End) {
        let (now, patience) = (self.now, self.scenario.link.patience);
        let link = self.link(gateway, rank);
        match end {
            End::Gateway if link.gateway.talk.connection == Some(connection) => {
                (link.gateway.talk.connection, link.gateway.until) = (None, Some(now + patience));
                self.note(|| format!("gateway {gateway} loses its connection to worker {rank}"));
                self.dial(gateway, rank);
            }
            End::Rank => {
                let Some(r) = link.rank.as_mut().filter(|r| r.talk.connection == Some(connection)) else {
                    return;
                };
                r.talk.connection = None;
                let (at, id) = (r.lease.end().max(now + 1), r.talk.id);
                self.heap.push(at, Ev::Lapse { gateway: gateway as u32, rank: rank as u32, id });
            }
            End::Gateway => {}
        }
    }

    /// Whatever connections a gateway and a rank have are broken. Each end that is there notices when it does.
    pub(super) fn cut(&mut self, gateway: usize, rank: usize, notices: &[End]) {
        let (now, leak) = (self.now, self.now + self.delay_of(2.0));
        let signs = self.gateways[gateway].paused <= now;
        let link = self.link(gateway, rank);
        // Heartbeats came until now.
        if let Some(r) = link.rank.as_mut().filter(|r| signs && r.talk.connection.is_some()) {
            r.lease.renew(now);
        }
        for connection in link.cut(leak) {
            for end in notices {
                let at = leak + self.rng.below(self.scenario.link.patience);
                let (gateway, rank, end) = (gateway as u32, rank as u32, *end);
                self.heap.push(at, Ev::Broke { gateway, rank, connection, end });
            }
        }
    }

    fn delay_of(&mut self, hops: f64) -> Nanos {
        1 + self.rng.exp(self.scenario.hop * hops) as Nanos
    }

    // ---- sessions

    /// An end finds that its session cannot go on.
    pub(super) fn lose(&mut self, gateway: usize, rank: usize, end: End, why: &str) {
        self.note(|| format!("the session of gateway {gateway} and worker {rank} is lost at {end:?}: {why}"));
        let at = self.now + 1;
        let link = self.link(gateway, rank);
        let id = match end {
            End::Gateway => {
                link.gateway.talk.is_lost = true;
                link.gateway.talk.id
            }
            End::Rank => {
                let Some(r) = &mut link.rank else { return };
                r.talk.is_lost = true;
                r.talk.id
            }
        };
        self.heap.push(at, Ev::Over { gateway: gateway as u32, rank: rank as u32, id, end });
    }

    /// A session that was found lost is over at one end.
    pub(super) fn over(&mut self, gateway: usize, rank: usize, id: SessionId, end: End) {
        let link = self.link(gateway, rank);
        match end {
            End::Gateway if link.gateway.talk.id == id => {
                let connection = link.gateway.talk.connection;
                let was_up = self.renew_session(gateway, rank, SessionId { number: id.number + 1, ..id });
                self.coverage.lost += 1;
                if let Some(connection) = connection {
                    self.hang_up(gateway, rank, connection);
                }
                if was_up {
                    let now = self.now;
                    self.front(gateway, |front, out| front.rank_down(now, WorkerId(rank as u32), out));
                }
                self.dial_later(gateway, rank);
            }
            End::Rank if link.rank.as_ref().is_some_and(|r| r.talk.id == id) => {
                let connection = link.rank.as_ref().and_then(|r| r.talk.connection);
                self.end_session(gateway, rank);
                if let Some(connection) = connection {
                    self.close_at_rank(gateway, rank, connection);
                }
            }
            _ => {}
        }
    }

    /// The gateway's end begins anew. True if the front knew the rank.
    pub(super) fn renew_session(&mut self, gateway: usize, rank: usize, id: SessionId) -> bool {
        let limits = self.scenario.link.limits;
        let end = &mut self.link(gateway, rank).gateway;
        let next = GatewayEnd { pause: end.pause, ..GatewayEnd::new(id, limits) };
        std::mem::replace(end, next).is_up
    }

    /// A rank has not heard a gateway for long.
    pub(super) fn lapse(&mut self, gateway: usize, rank: usize, id: SessionId) {
        let now = self.now;
        let end = self.link(gateway, rank).rank.as_ref();
        let over = |r: &RankEnd| r.talk.id == id && r.talk.connection.is_none() && r.lease.has_lapsed(now);
        if end.is_some_and(over) {
            self.note(|| format!("worker {rank} lets what gateway {gateway} has bound in {id} lapse"));
            self.coverage.lapsed += 1;
            self.end_session(gateway, rank);
        }
    }

    /// The rank's end is over: what was bound is cancelled.
    fn end_session(&mut self, gateway: usize, rank: usize) {
        if let Some(end) = self.link(gateway, rank).rank.take() {
            self.cancel_later(rank, &end);
        }
    }
}
