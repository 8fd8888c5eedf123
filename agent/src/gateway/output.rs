//! A running request: the events of all its sequences, as pieces of its choices.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use sluice_core::front::{CancelCause, Ending};
use sluice_core::ids::SeqKey;

use super::choice::{ChoiceOutput, Finish, Piece, TokenOut};
use super::engine::{Engine, EventSource, SeqEvent};
use super::error::ApiError;
use super::observe::Observer;

/// Tokens, as OpenAI counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub(super) struct Usage {
    pub(super) prompt_tokens: u64,
    pub(super) completion_tokens: u64,
    pub(super) total_tokens: u64,
}

/// Dropping it cancels what still runs: that is how a client that went away is noticed.
pub(super) struct Outputs {
    engine: Arc<dyn Engine>,
    observer: Arc<dyn Observer>,
    source: EventSource,
    choices: Vec<Running>,
    live: usize,
    prompt_tokens: u64,
}

struct Running {
    seq: SeqKey,
    output: ChoiceOutput,
    over: bool,
    last: Instant,
}

impl Outputs {
    /// `choices` in the order of their indices in `source`; `prompt_tokens` over all prompts.
    pub(super) fn new(
        engine: Arc<dyn Engine>,
        observer: Arc<dyn Observer>,
        source: EventSource,
        choices: Vec<(SeqKey, ChoiceOutput)>,
        prompt_tokens: u64,
    ) -> Self {
        let now = Instant::now();
        let choices: Vec<Running> = choices
            .into_iter()
            .map(|(seq, output)| Running { seq, output, over: false, last: now })
            .collect();
        Self { engine, observer, source, live: choices.len(), choices, prompt_tokens }
    }

    /// The next piece and its choice; nothing once all are complete. After an error the request is over.
    pub(super) async fn next(&mut self) -> Option<Result<(usize, Piece), ApiError>> {
        while self.live > 0 {
            let Some((index, event)) = self.source.next().await else {
                return Some(Err(ApiError::internal("the run time went away")));
            };
            let Some(choice) = self.choices.get_mut(index).filter(|choice| !choice.over) else { continue };
            let piece = match event {
                SeqEvent::Token { id, logprobs } => {
                    let now = Instant::now();
                    let waited = now.duration_since(std::mem::replace(&mut choice.last, now));
                    self.observer.token(choice.output.produced() == 0, waited);
                    choice.output.token(id, logprobs)
                }
                SeqEvent::End(Ending::Complete(complete)) => {
                    choice.over = true;
                    choice.output.end(complete)
                }
                SeqEvent::End(ending) => {
                    choice.over = true;
                    self.live -= 1;
                    let slow = ending == Ending::Cancelled && self.source.overflowed();
                    let error = if slow { ApiError::slow_client() } else { ApiError::ending(ending) };
                    return Some(Err(error));
                }
            };
            if piece.finish.is_some() {
                if !choice.over {
                    choice.over = true;
                    self.engine.cancel(choice.seq, CancelCause::StopString);
                }
                self.live -= 1;
            }
            return Some(Ok((index, piece)));
        }
        None
    }

    pub(super) fn usage(&self) -> Usage {
        let completion_tokens = self.choices.iter().map(|choice| u64::from(choice.output.produced())).sum();
        let prompt_tokens = self.prompt_tokens;
        Usage { prompt_tokens, completion_tokens, total_tokens: prompt_tokens + completion_tokens }
    }

    /// The numerics id that serves it, once that is known.
    pub(super) fn fingerprint(&self) -> Arc<OnceLock<Arc<str>>> {
        self.source.fingerprint()
    }

    pub(super) fn choices(&self) -> usize {
        self.choices.len()
    }

    /// Everything, for a client that does not stream.
    pub(super) async fn collect(&mut self) -> Result<Vec<Collected>, ApiError> {
        let mut all: Vec<Collected> = (0..self.choices.len()).map(|_| Collected::default()).collect();
        while let Some(piece) = self.next().await {
            let (index, piece) = piece?;
            let one = &mut all[index];
            one.text += &piece.text;
            one.tokens.extend(piece.token);
            one.finish = piece.finish;
        }
        Ok(all)
    }
}

impl Drop for Outputs {
    fn drop(&mut self) {
        if self.source.overflowed() {
            self.observer.overflowed();
        }
        for choice in self.choices.iter().filter(|choice| !choice.over) {
            self.engine.cancel(choice.seq, CancelCause::Client);
        }
    }
}

/// A whole choice.
#[derive(Debug, Default)]
pub(super) struct Collected {
    pub(super) text: String,
    pub(super) tokens: Vec<TokenOut>,
    pub(super) finish: Option<Finish>,
}

impl Collected {
    pub(super) fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|token| token.id).collect()
    }
}
