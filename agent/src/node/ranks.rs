//! The rank's end of its gateways' links.

use std::sync::Arc;

use sluice_core::front::RankLoad;
use sluice_core::hello::Hello;
use sluice_core::ids::{Attempt, GatewayId, Nanos, SeqKey, WorkerId};
use sluice_core::sequence::Bind;

use crate::link::rank::{Gateway, Gateways as Sessions, RankSide};
use crate::runtime::{Clock, Door, FrontLink, Told};
use crate::sampling::{CompiledGrammar, Draw, SamplingParams};
use crate::transport::{Connection, Gateways};

/// What links call.
pub(super) struct Side {
    pub door: Arc<dyn Door>,
    pub clock: Clock,
}

impl RankSide for Side {
    fn now(&self) -> Nanos {
        self.clock.now()
    }

    fn opened(&self, gateway: Gateway) {
        self.door.front_up(gateway.id(), Arc::new(Remote(gateway)));
    }

    fn bind(&self, bind: Bind, sampling: Arc<SamplingParams>, grammar: Option<CompiledGrammar>) {
        self.door.bind(bind, Draw { sampling, grammar, span: tracing::Span::none() });
    }

    fn cancel(&self, seq: SeqKey, attempt: Attempt) {
        self.door.cancel(seq, attempt);
    }

    fn closed(&self, gateway: GatewayId) {
        self.door.front_down(gateway);
    }
}

/// A gateway of another process.
struct Remote(Gateway);

impl FrontLink for Remote {
    fn rank(&self, _rank: WorkerId, events: Vec<Told>, load: Option<RankLoad>) {
        if !events.is_empty() {
            self.0.told(events);
        }
        if let Some(load) = load {
            self.0.load(load);
        }
    }
}

/// Connections of gateways, as they come from the mesh.
pub(super) struct Accepting(pub Arc<Sessions>);

impl Gateways for Accepting {
    fn connected(&self, gateway: &Hello, connection: Connection) {
        let (sessions, name) = (Arc::clone(&self.0), gateway.name.clone());
        tokio::spawn(async move {
            let Connection { stream, wire } = connection;
            tracing::info!(gateway = name, wire, over = stream.over(), "connected");
            let end = sessions.serve(&name, stream).await;
            tracing::info!(gateway = name, "disconnected: {end}");
        });
    }
}
