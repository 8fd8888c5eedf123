//! One gateway's session with the rank: what is bound in it, and until when.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sluice_core::front::RankLoad;
use sluice_core::ids::{Attempt, GatewayId, SeqKey};
use sluice_core::lease::Lease;
use sluice_core::sequence::{self, Abort, Finish, RankEvent};
use sluice_core::session::SessionId;

use super::Shared;
use crate::link::end::{End, Lost};
use crate::link::frame::Envelope;
use crate::link::grammars::Wanted;
use crate::link::message::{self, Bind, ToGateway, ToRank, Told};
use crate::link::outbox::Outbox;
use crate::link::ticks::Ticks;
use crate::sampling::{CompiledGrammar, SamplingParams};

/// Bytes of events in one message, about: more are several messages.
const BATCH: usize = 64 << 10;

/// What reaches a gateway, as long as its session lasts. Does nothing afterwards.
#[derive(Clone)]
pub struct Gateway {
    session: Arc<Session>,
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Session { name, id, gateway, .. } = &*self.session;
        f.debug_struct("Gateway").field("name", name).field("session", id).field("id", gateway).finish()
    }
}

impl Gateway {
    pub(super) fn new(session: Arc<Session>) -> Self {
        Self { session }
    }

    /// What its sequences name it by: a number of this session alone.
    pub fn id(&self) -> GatewayId {
        self.session.gateway
    }

    /// The gateway's name.
    pub fn name(&self) -> &str {
        &self.session.name
    }

    /// What becomes of its sequences, in order.
    pub fn told(&self, events: Vec<Told>) {
        self.session.told(events);
    }

    /// The rank's load.
    pub fn load(&self, load: RankLoad) {
        self.session.outbox.push(message::encode(&ToGateway::Load(load)));
    }
}

pub(super) struct Session {
    shared: Arc<Shared>,
    name: String,
    gateway: GatewayId,
    id: SessionId,
    outbox: Outbox,
    ticks: Ticks,
    lease: Mutex<Lease>,
    /// Held from a message's arrival until it is passed on: two connections of one session may overlap.
    inbound: Mutex<()>,
    /// What is to be cancelled with the session.
    bound: Mutex<HashMap<SeqKey, Attempt>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Session {
    pub(super) fn new(shared: Arc<Shared>, name: &str, gateway: GatewayId, id: SessionId) -> Self {
        let ticks = Ticks::start();
        let lease = Mutex::new(Lease::new(shared.config.lease, ticks.now()));
        let outbox = Outbox::new(shared.config.limits);
        let (inbound, bound) = (Mutex::default(), Mutex::default());
        Self { shared, name: name.to_owned(), gateway, id, outbox, ticks, lease, inbound, bound }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn id(&self) -> SessionId {
        self.id
    }

    pub(super) fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// Whether anything is bound in it.
    pub(super) fn has_bound(&self) -> bool {
        !lock(&self.bound).is_empty()
    }

    /// The gateway gave a sign.
    pub(super) fn heard(&self) {
        lock(&self.lease).renew(self.ticks.now());
    }

    /// Resolves when it is over, or its lease has lapsed, with which it is.
    pub(super) async fn over(&self) -> Arc<Lost> {
        loop {
            let end = lock(&self.lease).end();
            tokio::select! {
                why = self.outbox.lost() => return why,
                () = self.ticks.reach(end) => {}
            }
            if lock(&self.lease).has_lapsed(self.ticks.now()) {
                let term = Duration::from_nanos(self.shared.config.lease);
                return self.outbox.lose(Lost::Lapsed(term));
            }
        }
    }

    /// Cancels what is bound in it. It is over already, so nothing comes after.
    pub(super) fn end(&self) {
        let _order = lock(&self.inbound);
        let bound: Vec<_> = lock(&self.bound).drain().collect();
        for (seq, attempt) in bound {
            self.shared.side.cancel(seq, attempt);
        }
        self.shared.side.closed(self.gateway);
    }

    /// Something came over one of its connections.
    pub(super) fn take(self: &Arc<Self>, connection: u64, envelope: Envelope) -> Result<(), End> {
        let _order = lock(&self.inbound);
        let Some(message) = self.outbox.take(connection, envelope)? else { return Ok(()) };
        match message::decode("message of a gateway", &message) {
            Ok(ToRank::Bind(bind)) => self.bind(&bind),
            Ok(ToRank::Cancel { seq, attempt }) => {
                let mut bound = lock(&self.bound);
                if bound.get(&seq).is_some_and(|current| *current <= attempt) {
                    bound.remove(&seq);
                }
                drop(bound);
                self.shared.side.cancel(seq, attempt);
            }
            Err(garbage) => return Err(End::Lost(self.outbox.lose(garbage.into()))),
        }
        Ok(())
    }

    fn bind(self: &Arc<Self>, bind: &Bind) {
        let (seq, attempt, gateway) = (bind.seq, bind.attempt, &self.name);
        lock(&self.bound).insert(seq, attempt);
        if let Err(why) = bind.check(self.shared.vocab) {
            tracing::error!(%seq, attempt, gateway, %why, "a bind was refused");
            return self.abort(seq, attempt, Abort::Fault);
        }
        let sampling = Arc::clone(&bind.sampling);
        let ready = Ready { sampling, bind: bind.bind(self.shared.side.now(), self.gateway) };
        let Some(source) = &bind.grammar else { return self.pass(ready, None) };
        match self.shared.grammars.want(source) {
            Wanted::Now(compiled) => self.compiled(ready, compiled),
            Wanted::Later(pending) => {
                let session = Arc::clone(self);
                tokio::spawn(async move {
                    let compiled = session.shared.grammars.compile(pending).await;
                    let _order = lock(&session.inbound);
                    session.compiled(ready, compiled);
                });
            }
        }
    }

    fn compiled(&self, ready: Ready, compiled: Result<CompiledGrammar, String>) {
        let (seq, attempt, gateway) = (ready.bind.seq, ready.bind.attempt, &self.name);
        match compiled {
            // Cancelled in the meantime, or bound again.
            _ if lock(&self.bound).get(&seq) != Some(&attempt) => {}
            Ok(grammar) => self.pass(ready, Some(grammar)),
            Err(why) => {
                tracing::warn!(%seq, attempt, gateway, why, "a grammar that its gateway took was refused");
                self.abort(seq, attempt, Abort::Constraint);
            }
        }
    }

    fn pass(&self, ready: Ready, grammar: Option<CompiledGrammar>) {
        self.shared.side.bind(ready.bind, ready.sampling, grammar);
    }

    fn abort(&self, seq: SeqKey, attempt: Attempt, why: Abort) {
        let event = RankEvent::Finished(Finish::Aborted(why));
        self.told(vec![Told { seq, attempt, event, logprobs: None }]);
    }

    fn told(&self, mut events: Vec<Told>) {
        let mut bound = lock(&self.bound);
        for told in &events {
            let ends = !matches!(told.event, RankEvent::Accepted | RankEvent::Token { .. });
            if ends && bound.get(&told.seq) == Some(&told.attempt) {
                bound.remove(&told.seq);
            }
        }
        drop(bound);
        while !events.is_empty() {
            let mut bytes = 0;
            let fits = |told: &&Told| {
                let had_room = bytes < BATCH;
                bytes += size(told);
                had_room
            };
            let later = events.split_off(events.iter().take_while(fits).count());
            self.outbox.push(message::encode(&ToGateway::Told(events)));
            events = later;
        }
    }
}

/// A bind that waits for its grammar, or for nothing.
struct Ready {
    bind: sequence::Bind,
    sampling: Arc<SamplingParams>,
}

/// Bytes of an event in a message, at most.
fn size(told: &Told) -> usize {
    const EVENT: usize = 32;
    const LOGPROB: usize = 9;
    EVENT + told.logprobs.as_ref().map_or(0, |l| LOGPROB * (2 + l.top.len()))
}
