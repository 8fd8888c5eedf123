//! A model that says at once what its prompt says, as far as the grammar lets it.

use sluice_core::front::{CancelCause, Complete, Ending, Refused};
use sluice_core::ids::SeqKey;
use sluice_core::sequence::Abort;

use crate::gateway::{Engine, EventSink, Generate, SeqEvent};
use crate::sampling::{CompiledGrammar, Logprobs, TokenLogprob};

/// Tokens of one choice, at most: what a stranger is after is in the request.
const MOST: u32 = 24;

pub(super) struct Echo {
    pub(super) vocab: usize,
}

impl Engine for Echo {
    fn submit(&self, request: Generate, sink: EventSink) {
        for choice in 0..request.choices {
            let ending = self.produce(&request, choice, &sink);
            let _ = sink.send(choice, SeqEvent::End(ending));
        }
    }

    fn cancel(&self, _: SeqKey, _: CancelCause) {}
}

impl Echo {
    fn produce(&self, request: &Generate, choice: u16, sink: &EventSink) -> Ending {
        let cannot_go_on = Ending::Refused(Refused::Aborted(Abort::Constraint));
        let mut constraint = request.grammar.as_ref().map(CompiledGrammar::start);
        for step in 0..request.stop.max_tokens.min(MOST) {
            if constraint.as_ref().is_some_and(|c| c.is_complete()) {
                return Ending::Complete(Complete::Stop);
            }
            let mut id = request.prompt[step as usize % request.prompt.len()];
            if let Some(constraint) = &mut constraint {
                let mut logits = vec![0.0; self.vocab];
                if constraint.mask(&mut logits).is_err() {
                    return cannot_go_on;
                }
                let allowed = |id: &u32| logits[*id as usize] == 0.0;
                let all = 0..self.vocab as u32;
                let Some(next) = Some(id).filter(allowed).or_else(|| all.clone().find(allowed)) else {
                    return Ending::Complete(Complete::Stop);
                };
                id = next;
                if constraint.accept(id).is_err() {
                    return cannot_go_on;
                }
            }
            let logprobs = request.sampling.logprobs.map(|count| {
                let of = |id| TokenLogprob { id, logprob: -0.5 };
                Box::new(Logprobs { token: of(id), top: (0..count).map(of).collect() })
            });
            sink.served_by(&"bits".into());
            if sink.send(choice, SeqEvent::Token { id, logprobs }).is_err() {
                return Ending::Cancelled;
            }
            if request.stop.ids.contains(&id) {
                return Ending::Complete(Complete::Stop);
            }
        }
        Ending::Complete(Complete::Length)
    }
}
