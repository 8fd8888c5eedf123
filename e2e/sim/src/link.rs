//! The links between gateways and ranks: a session at each end, and connections that break below them.
//!
//! What is said, kept, resumed and let lapse is decided by [`sluice_core::session`] and [`sluice_core::lease`]; here is
//! what the agent's drivers know besides, and what the network does.

use sluice_core::event::Event;
use sluice_core::front::RankLoad;
use sluice_core::ids::{Attempt, GatewayId, Nanos, SeqKey};
use sluice_core::lease::Lease;
use sluice_core::sequence::RankEvent;
use sluice_core::session::{Arrival, Session, SessionError, SessionId, SessionLimits};
use std::collections::BTreeMap;

/// What both ends of all links are told.
#[derive(Clone, Copy, Debug)]
pub struct LinkConfig {
    /// How long a gateway tries to resume, and either end waits for a silent one.
    pub patience: Nanos,
    /// How long a rank keeps what a silent gateway has bound.
    pub lease: Nanos,
    /// An end that has nothing to say acknowledges so much later.
    pub beat: Nanos,
    /// What is kept for a peer that does not acknowledge.
    pub limits: SessionLimits,
}

/// Which end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The one that dials.
    Gateway,
    /// The one that keeps what was bound.
    Rank,
}

/// From a rank to a gateway.
#[derive(Clone, Copy, Debug)]
pub enum Said {
    /// What becomes of a sequence.
    Of {
        /// Which.
        seq: SeqKey,
        /// Its attempt.
        attempt: Attempt,
        /// What.
        event: RankEvent,
    },
    /// The rank's load.
    Load(RankLoad),
}

/// What travels on a connection.
#[derive(Clone, Debug)]
pub struct Envelope<T> {
    /// Number of the newest message that the sender has.
    pub has: u64,
    /// A message and the number it travels under; none in a heartbeat.
    pub message: Option<(u64, Message<T>)>,
}

impl<T> Envelope<T> {
    /// The message, and the session that it was said in.
    pub fn open(self) -> Option<(SessionId, T)> {
        self.message.map(|(_, m)| (m.session, m.body))
    }
}

/// A message with what proves that none is lost or doubled.
#[derive(Clone, Debug)]
pub struct Message<T> {
    session: SessionId,
    /// Among all that were said in the session, from 1.
    serial: u64,
    body: T,
}

/// One end's session, and its books.
pub struct Talk<S> {
    /// Its name.
    pub id: SessionId,
    session: Session<Message<S>>,
    /// Said so far.
    said: u64,
    /// Dealt with so far.
    dealt: u64,
    /// What the peer was told that this end has.
    told: u64,
    /// It is over, and about to be forgotten.
    pub is_lost: bool,
    /// The connection it goes over.
    pub connection: Option<u32>,
    /// A heartbeat is due.
    pub beats: bool,
}

impl<S: Clone> Talk<S> {
    /// A session in which nothing was said.
    pub fn new(id: SessionId, limits: SessionLimits) -> Self {
        Self {
            id,
            session: Session::new(limits),
            said: 0,
            dealt: 0,
            told: 0,
            is_lost: false,
            connection: None,
            beats: false,
        }
    }

    /// Says something, now or over a later connection.
    ///
    /// # Errors
    /// The session is lost by it.
    pub fn say(&mut self, body: S) -> Result<(), SessionError> {
        self.said += 1;
        self.session.push(Message { session: self.id, serial: self.said, body }, 1)
    }

    /// What is to be sent over the present connection.
    pub fn give(&mut self) -> Option<Envelope<S>> {
        let has = self.session.has();
        let (number, message) = self.session.give()?;
        let message = Some((number, message.clone()));
        self.told = has;
        Some(Envelope { has, message })
    }

    /// A heartbeat, if the peer does not know yet what this end has.
    pub fn beat(&mut self) -> Option<Envelope<S>> {
        let has = self.session.has();
        (std::mem::replace(&mut self.told, has) != has).then_some(Envelope { has, message: None })
    }

    /// Something came. Gives the message if it did not come before.
    ///
    /// # Errors
    /// The session is lost; or, in words, what it took that it must not.
    pub fn take<H>(&mut self, envelope: Envelope<H>) -> Result<Result<Option<H>, SessionError>, String> {
        let taken = self.session.acked(envelope.has).and_then(|()| match envelope.message {
            Some((number, message)) => Ok((self.session.receive(number)? == Arrival::New).then_some(message)),
            None => Ok(None),
        });
        let message = match taken {
            Ok(Some(message)) => message,
            Ok(None) => return Ok(Ok(None)),
            Err(error) => return Ok(Err(error)),
        };
        self.dealt += 1;
        if (message.session, message.serial) != (self.id, self.dealt) {
            let Message { session, serial, .. } = message;
            return Err(format!(
                "{} deals with message {serial} of {session} where its {}th is due",
                self.id, self.dealt
            ));
        }
        Ok(Ok(Some(message.body)))
    }

    /// Messages of which it does not know that they came.
    pub fn kept(&self) -> usize {
        self.session.kept()
    }

    /// What this end has, for the opening of a connection.
    pub fn has(&self) -> u64 {
        self.session.has()
    }

    /// Goes on over a new connection.
    ///
    /// # Errors
    /// The session is lost.
    pub fn connect(&mut self, connection: u32, has: u64) -> Result<(), SessionError> {
        self.session.resume(has)?;
        self.connection = Some(connection);
        self.told = self.session.has();
        Ok(())
    }
}

/// A gateway's end.
pub struct GatewayEnd {
    /// Its session.
    pub talk: Talk<Event>,
    /// The rank has answered for the session.
    pub answered: bool,
    /// The front knows the rank.
    pub is_up: bool,
    /// The connection that is being opened.
    pub dialling: Option<u32>,
    /// Until when it tries to resume.
    pub until: Option<Nanos>,
    /// Before the next dial.
    pub pause: Nanos,
}

impl GatewayEnd {
    /// Has said nothing in this session.
    pub fn new(id: SessionId, limits: SessionLimits) -> Self {
        Self {
            talk: Talk::new(id, limits),
            answered: false,
            is_up: false,
            dialling: None,
            until: None,
            pause: 0,
        }
    }
}

/// A rank's end.
pub struct RankEnd {
    /// Its session.
    pub talk: Talk<Said>,
    /// What the rank's core knows the session by.
    pub gateway: GatewayId,
    /// Until when it lasts if nothing is heard.
    pub lease: Lease,
    /// What is to be cancelled with it.
    pub bound: BTreeMap<SeqKey, Attempt>,
}

impl RankEnd {
    /// Something that the gateway asks.
    pub fn asked(&mut self, event: &Event) {
        match event {
            Event::Bind(bind) => _ = self.bound.insert(bind.seq, bind.attempt),
            Event::Cancel { seq, attempt } if self.bound.get(seq).is_some_and(|a| a <= attempt) => {
                self.bound.remove(seq);
            }
            _ => {}
        }
    }

    /// Something that the rank says of a sequence.
    pub fn says(&mut self, seq: SeqKey, attempt: Attempt, event: &RankEvent) {
        let ends = !matches!(event, RankEvent::Accepted | RankEvent::Token { .. });
        if ends && self.bound.get(&seq) == Some(&attempt) {
            self.bound.remove(&seq);
        }
    }
}

/// One connection.
#[derive(Clone, Copy, Debug, Default)]
struct Connection {
    /// It is broken: what had left before may still arrive until then.
    broke: Option<Nanos>,
    /// The last arrival at each end, which nothing overtakes.
    last: [Nanos; 2],
}

/// The link between one gateway and one rank.
pub struct Link {
    /// By number.
    connections: Vec<Connection>,
    /// Nothing gets through until then.
    pub blocked: Nanos,
    /// The gateway's end.
    pub gateway: GatewayEnd,
    /// The rank's end, if it knows of a session.
    pub rank: Option<RankEnd>,
}

impl Link {
    /// Without connections.
    pub fn new(id: SessionId, limits: SessionLimits) -> Self {
        Self { connections: vec![], blocked: 0, gateway: GatewayEnd::new(id, limits), rank: None }
    }

    /// A new connection is dialled.
    pub fn dial(&mut self) -> u32 {
        self.connections.push(Connection::default());
        self.connections.len() as u32 - 1
    }

    /// When something that leaves now arrives; never if the connection is broken.
    pub fn leave(&mut self, connection: u32, to: End, now: Nanos, way: Nanos) -> Option<Nanos> {
        let c = self.connections.get_mut(connection as usize)?;
        if c.broke.is_some() || now < self.blocked {
            return None;
        }
        let last = &mut c.last[to as usize];
        *last = (now + way).max(*last);
        Some(*last)
    }

    /// Whether what left before the connection broke arrives.
    pub fn arrives(&self, connection: u32, now: Nanos) -> bool {
        let broke = self.connections.get(connection as usize).and_then(|c| c.broke);
        broke.is_none_or(|until| now <= until)
    }

    /// All connections break. Some of what is under way still arrives, until `leak`. Gives those that did.
    pub fn cut(&mut self, leak: Nanos) -> Vec<u32> {
        let whole = self.connections.iter_mut().zip(0..).filter(|(c, _)| c.broke.is_none());
        whole
            .map(|(c, i)| {
                c.broke = Some(leak);
                i
            })
            .collect()
    }

    /// One connection is closed by an end.
    pub fn close(&mut self, connection: u32, now: Nanos) {
        if let Some(c) = self.connections.get_mut(connection as usize).filter(|c| c.broke.is_none()) {
            c.broke = Some(now);
        }
    }

    /// Nothing is left to happen. `is_there`: the gateway is.
    ///
    /// # Errors
    /// An end that should not be, or does not know what the other does.
    pub fn settled(&self, is_there: bool) -> Result<(), String> {
        let connection = self.gateway.talk.connection;
        match &self.rank {
            None if is_there => Err("the rank knows nothing of the gateway".into()),
            None => Ok(()),
            Some(_) if !is_there => Err("the rank keeps a session of a gateway that is not there".into()),
            Some(r) if !r.bound.is_empty() => {
                Err(format!("the rank keeps {} sequences in the books of {}", r.bound.len(), r.talk.id))
            }
            Some(r) if (r.talk.id, r.talk.connection) != (self.gateway.talk.id, connection) => {
                Err("they have not found each other again".into())
            }
            Some(r) if connection.is_none() || r.talk.kept() + self.gateway.talk.kept() > 0 => {
                Err("something that was said has not come".into())
            }
            Some(_) => Ok(()),
        }
    }
}
