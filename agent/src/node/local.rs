//! An engine without a gateway: one prompt, its text as it comes.

use std::sync::Arc;
use std::time::Duration;

use sluice_core::front::{CancelCause, Ending};
use sluice_core::ids::SeqKey;
use sluice_core::sequence::StopRule;

use super::{ModelText, open_model};
use crate::cli::GenerateOptions;
use crate::gateway::{Conversation, Engine as _, Generate, SeqEvent, TextError, TextModel as _, events};
use crate::model::{Model, ModelError};
use crate::runtime::{Progress, Runtime, StartError, Surroundings, launch};
use crate::sampling::{ParamError, SamplingParams};

/// A prompt that cannot be answered.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// The model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The engine.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The text.
    #[error(transparent)]
    Text(#[from] TextError),
    /// A model that only continues texts.
    #[error("the model has no chat template: `generate --raw` continues a text as it is")]
    NoTemplate,
    /// A sampling parameter.
    #[error(transparent)]
    Sampling(#[from] ParamError),
    /// Too long.
    #[error("the prompt has {prompt} tokens and the model's context {context}: nothing could follow it")]
    TooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Positions of the model.
        context: usize,
    },
    /// Nothing to go on from.
    #[error("the prompt is empty")]
    Empty,
    /// The engine ended it.
    #[error("the answer was ended: {0}")]
    Ended(String),
}

/// A model and its engine.
#[derive(Debug)]
pub struct LocalEngine {
    model: Model,
    runtime: Runtime,
}

/// How much was said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the answer.
    pub tokens: usize,
}

impl LocalEngine {
    /// Loads the model and starts an engine.
    ///
    /// # Errors
    /// What could not be had.
    pub fn start(options: &GenerateOptions, progress: Progress) -> Result<Self, LocalError> {
        let model = open_model(&options.model)?;
        let around = Surroundings { queue: 1, observer: Arc::new(()), progress, cancelled: Arc::default() };
        let runtime = launch(&model.weights, &options.engine, around)?;
        Ok(Self { model, runtime })
    }

    /// Answers a prompt; `say` gets the text piece by piece and may say no to more.
    ///
    /// # Errors
    /// The prompt does not fit, or the engine ended it.
    pub async fn answer(
        &self,
        options: &GenerateOptions,
        prompt: &str,
        mut say: impl FnMut(&str) -> bool,
    ) -> Result<Answer, LocalError> {
        let text = ModelText::new(&self.model);
        let ids = if options.raw {
            text.encode(prompt, true)?
        } else {
            let chat = text.render(&conversation(options.system.as_deref(), prompt));
            let chat =
                chat.map_err(|e| if e == TextError::NoTemplate { LocalError::NoTemplate } else { e.into() })?;
            text.encode(&chat, false)?
        };
        if ids.is_empty() {
            return Err(LocalError::Empty);
        }
        let context = self.model.spec.max_positions;
        let room = context.saturating_sub(ids.len());
        if room == 0 {
            return Err(LocalError::TooLong { prompt: ids.len(), context });
        }
        let prompt_tokens = ids.len();
        let sampling = SamplingParams {
            temperature: options.temperature,
            top_p: options.top_p,
            seed: options.seed.unwrap_or_else(rand::random),
            ..SamplingParams::default()
        };
        sampling.check(self.model.spec.vocab)?;
        let mut stop = self.model.generation.eos.clone();
        stop.sort_unstable();
        let request = Generate {
            request: rand::random(),
            choices: 1,
            prompt: ids.into(),
            stop: StopRule { ids: stop, min_tokens: 0, max_tokens: options.max_tokens.min(room as u32) },
            timeout: Duration::from_secs(24 * 3600),
            salt: 0,
            sampling: Arc::new(sampling),
            grammar: None,
            trace: "generate".into(),
        };
        let seq = SeqKey { request: request.request, choice: 0 };
        let (sink, mut source) = events(usize::MAX);
        self.runtime.submit(request, sink);
        let mut words = text.detokenizer(true);
        let mut tokens = 0;
        while let Some((_, event)) = source.next().await {
            match event {
                SeqEvent::Token { id, .. } => {
                    tokens += 1;
                    if !say(&words.push(id)) {
                        self.runtime.cancel(seq, CancelCause::Client);
                    }
                }
                SeqEvent::End(Ending::Complete(_) | Ending::Cancelled) => {
                    say(&words.finish());
                    return Ok(Answer { prompt_tokens, tokens });
                }
                SeqEvent::End(Ending::Refused(why)) => return Err(LocalError::Ended(why.to_string())),
                SeqEvent::End(Ending::Deadline) => return Err(LocalError::Ended("it took too long".into())),
                SeqEvent::End(Ending::Cut) => break,
            }
        }
        Err(LocalError::Ended("the engine went down".into()))
    }
}

fn conversation(system: Option<&str>, prompt: &str) -> Conversation {
    let message = |role: &str, content: &str| serde_json::json!({ "role": role, "content": content });
    Conversation {
        messages: system.map(|s| message("system", s)).into_iter().chain([message("user", prompt)]).collect(),
        add_generation_prompt: true,
        ..Conversation::default()
    }
}
