//! One choice of a request: from its tokens to what the client is shown.

use std::sync::Arc;

use sluice_core::front::Complete;

use super::params::Params;
use super::stops::Stops;
use super::text::{Detokenizer, TextModel};
use crate::sampling::Logprobs;

/// What one event adds to a choice.
#[derive(Debug, Default)]
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) token: Option<TokenOut>,
    pub(super) finish: Option<Finish>,
}

#[derive(Debug)]
pub(super) struct TokenOut {
    pub(super) id: u32,
    /// Characters that it added to the text; those that a stop string may still take are counted.
    pub(super) chars: usize,
    pub(super) logprobs: Option<Box<Logprobs>>,
}

/// How a choice was completed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finish {
    pub(super) complete: Complete,
    pub(super) cause: StopCause,
}

/// Which stop it was, as vLLM's `stop_reason` tells.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(untagged)]
pub(super) enum StopCause {
    Text(String),
    Token(u32),
    None(()),
}

impl Finish {
    pub(super) fn reason(&self) -> &'static str {
        match self.complete {
            Complete::Stop => "stop",
            Complete::Length => "length",
        }
    }
}

pub(super) struct ChoiceOutput {
    detokenizer: Box<dyn Detokenizer>,
    stops: Stops,
    params: Arc<Params>,
    produced: u32,
    last: Option<u32>,
}

impl ChoiceOutput {
    pub(super) fn new(model: &dyn TextModel, params: Arc<Params>) -> Self {
        Self {
            detokenizer: model.detokenizer(params.skip_special),
            stops: Stops::new(params.stops.clone(), params.include_stop),
            params,
            produced: 0,
            last: None,
        }
    }

    /// One more token. With a `finish` the sequence is to be cancelled: a stop string was found.
    pub(super) fn token(&mut self, id: u32, logprobs: Option<Box<Logprobs>>) -> Piece {
        self.produced += 1;
        self.last = Some(id);
        let hidden = !self.params.include_stop && self.params.stop_ids.binary_search(&id).is_ok();
        let text = if hidden { String::new() } else { self.detokenizer.push(id) };
        let chars = text.chars().count();
        let text = if self.produced <= self.params.min_tokens {
            self.stops.pass(&text)
        } else {
            self.stops.push(&text)
        };
        Piece { text, token: Some(TokenOut { id, chars, logprobs }), finish: self.stopped() }
    }

    /// The sequence is complete.
    pub(super) fn end(&mut self, complete: Complete) -> Piece {
        let rest = self.detokenizer.finish();
        let mut text = self.stops.push(&rest);
        text += &self.stops.finish();
        let finish = self.stopped().unwrap_or_else(|| {
            let stop = self.last.filter(|id| {
                complete == Complete::Stop
                    && self.params.stop_ids.binary_search(id).is_ok()
                    && !self.params.eos.contains(id)
            });
            Finish { complete, cause: stop.map_or(StopCause::None(()), StopCause::Token) }
        });
        Piece { text, token: None, finish: Some(finish) }
    }

    fn stopped(&self) -> Option<Finish> {
        let cause = StopCause::Text(self.stops.found()?.to_owned());
        Some(Finish { complete: Complete::Stop, cause })
    }

    pub(super) fn produced(&self) -> u32 {
        self.produced
    }
}
