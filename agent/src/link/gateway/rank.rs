//! What a gateway says to a rank.

use std::fmt;
use std::sync::Arc;

use sluice_core::ids::{Attempt, SeqKey};
use sluice_core::sequence::{self, Abort, Finish, RankEvent};

use super::GatewaySide;
use crate::link::frame::MOST_MESSAGE;
use crate::link::message::{self, Bind, ToRank, Told};
use crate::link::outbox::Outbox;
use crate::sampling::{Grammar, SamplingParams};

/// What reaches a rank, as long as the session lasts that it came [up](GatewaySide::up) with. Does nothing afterwards.
#[derive(Clone)]
pub struct Rank {
    pub(super) outbox: Arc<Outbox>,
    pub(super) side: Arc<dyn GatewaySide>,
}

impl fmt::Debug for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rank").field("outbox", &self.outbox).finish_non_exhaustive()
    }
}

impl Rank {
    /// Binds a sequence to it.
    pub fn bind(&self, bind: sequence::Bind, sampling: Arc<SamplingParams>, grammar: Option<&Grammar>) {
        let (seq, attempt) = (bind.seq, bind.attempt);
        let bind = Bind::new(bind, self.side.now(), sampling, grammar);
        let message = message::encode(&ToRank::Bind(Box::new(bind)));
        if message.len() <= MOST_MESSAGE {
            return self.outbox.push(message);
        }
        // One sequence that cannot travel is not worth the session of all others.
        let (length, most) = (message.len(), MOST_MESSAGE);
        tracing::error!(%seq, length, most, "a sequence is too long to be sent to a rank");
        let event = RankEvent::Finished(Finish::Aborted(Abort::Fault));
        self.side.told(vec![Told { seq, attempt, event, logprobs: None }]);
    }

    /// Takes one attempt back.
    pub fn cancel(&self, seq: SeqKey, attempt: Attempt) {
        self.outbox.push(message::encode(&ToRank::Cancel { seq, attempt }));
    }
}
