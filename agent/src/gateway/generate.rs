//! From checked parameters and prompts to running sequences.

use std::sync::Arc;

use sluice_core::ids::SeqKey;
use sluice_core::sequence::StopRule;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::auth::Keys;
use super::choice::ChoiceOutput;
use super::config::{Limits, ServedModel, Timeouts};
use super::engine::{Engine, Generate, events};
use super::error::ApiError;
use super::observe::Observer;
use super::output::Outputs;
use super::params::{Params, outside};
use super::text::TextModel;
use super::work::Preparation;
use crate::sampling::random::prompt_seed;
use crate::sampling::{CompiledGrammar, Grammar, GrammarCompiler, SamplingParams};

/// Everything the endpoints share.
pub struct Gateway {
    pub(super) engine: Arc<dyn Engine>,
    pub(super) text: Arc<dyn TextModel>,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) model: ServedModel,
    pub(super) limits: Limits,
    pub(super) timeouts: Timeouts,
    pub(super) keys: Keys,
    /// Share of the requests that are traced, 0 to 1.
    pub(super) traced: f64,
    grammars: Option<Arc<GrammarCompiler>>,
    /// Requests at one time.
    pub(super) requests: Arc<Semaphore>,
    /// Kibibytes of bodies at one time.
    pub(super) bodies: Arc<Semaphore>,
    /// Tokenizing and compiling, which take a processor.
    pub(super) work: Arc<Semaphore>,
}

/// One prompt with its limits.
pub(super) struct Prompt {
    pub(super) ids: Arc<[u32]>,
    pub(super) max_tokens: u32,
}

impl Gateway {
    /// A gateway before it is served. Without a grammar compiler structured output is refused.
    pub fn new(
        engine: Arc<dyn Engine>,
        text: Arc<dyn TextModel>,
        model: ServedModel,
        grammars: Option<Arc<GrammarCompiler>>,
        observer: Arc<dyn Observer>,
    ) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            engine,
            text,
            observer,
            model,
            keys: Keys::default(),
            traced: 0.0,
            grammars,
            requests: Arc::new(Semaphore::new(1)),
            bodies: Arc::new(Semaphore::new(1)),
            work: Arc::new(Semaphore::new(processors)),
            limits: Limits::default(),
            timeouts: Timeouts::default(),
        }
        .with_limits(Limits::default())
    }

    /// With other limits than the defaults.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.requests = Arc::new(Semaphore::new(limits.requests.clamp(1, Semaphore::MAX_PERMITS)));
        // Room for 32 of the largest bodies.
        self.bodies =
            Arc::new(Semaphore::new(limits.body_bytes.div_ceil(1024).saturating_mul(32).clamp(1, 1 << 24)));
        self.limits = limits;
        self
    }

    /// With other timeouts than the defaults.
    #[must_use]
    pub fn with_timeouts(mut self, timeouts: Timeouts) -> Self {
        self.timeouts = timeouts;
        self
    }

    /// Lets in only who has one of these keys.
    #[must_use]
    pub fn with_keys(mut self, keys: Keys) -> Self {
        self.keys = keys;
        self
    }

    /// Who is let in.
    #[must_use]
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Traces a share (0 to 1) of the requests: their spans have the target [`TRACED`](super::TRACED).
    #[must_use]
    pub fn with_traces(mut self, share: f64) -> Self {
        self.traced = share;
        self
    }

    /// Compiles what the output must look like.
    pub(super) async fn compile(
        &self,
        preparation: &Preparation,
        grammar: Grammar,
    ) -> Result<CompiledGrammar, ApiError> {
        let Some(compiler) = self.grammars.clone() else {
            let message = "structured output is not available: the model's tokenizer does not allow it";
            return Err(ApiError::invalid("response_format", message));
        };
        self.work(preparation, move || Ok(compiler.compile(&grammar)?)).await
    }

    /// Hands the sequences to the run time: `n` choices of each prompt, prompt after prompt.
    pub(super) fn start(
        &self,
        prompts: &[Prompt],
        params: &Arc<Params>,
        grammar: Option<&CompiledGrammar>,
        trace: &Arc<str>,
    ) -> Result<Outputs, ApiError> {
        let wanted = prompts.len() * usize::from(params.n);
        if wanted > self.limits.choices {
            let message =
                format!("at most {} choices over all prompts are allowed, got {wanted}", self.limits.choices);
            return Err(ApiError::invalid("n", message));
        }
        if grammar.is_none() && params.allows_nothing(self.model.vocab) {
            let message = format!(
                "every token that is allowed ends the output, and min_tokens is {}: no token could come first",
                params.min_tokens
            );
            return Err(ApiError::unsatisfiable("allowed_token_ids", message));
        }
        for prompt in prompts {
            if prompt.ids.is_empty() {
                return Err(ApiError::invalid("prompt", "the prompt has no tokens"));
            }
            if let Some(id) = prompt.ids.iter().find(|id| **id as usize >= self.model.vocab) {
                return Err(outside("prompt", *id, self.model.vocab));
            }
        }
        let (mut sink, source) = events(self.limits.backlog.saturating_mul(wanted));
        let timeout = params.deadline.saturating_duration_since(Instant::now());
        let mut choices = Vec::with_capacity(wanted);
        let mut requests = Vec::with_capacity(prompts.len());
        for (number, prompt) in prompts.iter().enumerate() {
            let seed = prompt_seed(params.sampling.seed, number);
            let sampling = Arc::new(SamplingParams { seed, ..params.sampling.clone() });
            let request = rand::random();
            choices.extend(
                (0..params.n).map(|choice| {
                    (SeqKey { request, choice }, ChoiceOutput::new(&*self.text, params.clone()))
                }),
            );
            let generate = Generate {
                request,
                choices: params.n,
                prompt: prompt.ids.clone(),
                stop: StopRule {
                    ids: params.stop_ids.clone(),
                    min_tokens: params.min_tokens,
                    max_tokens: prompt.max_tokens,
                },
                timeout,
                salt: params.salt,
                sampling,
                grammar: grammar.cloned(),
                trace: trace.clone(),
            };
            requests.push((generate, sink.clone()));
            sink = sink.after(usize::from(params.n));
        }
        drop(sink);
        let prompt_tokens = prompts.iter().map(|prompt| prompt.ids.len() as u64).sum();
        let (engine, observer) = (self.engine.clone(), self.observer.clone());
        let outputs = Outputs::new(engine, observer, source, choices, prompt_tokens);
        for (generate, sink) in requests {
            self.engine.submit(generate, sink);
        }
        Ok(outputs)
    }
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway")
            .field("model", &self.model)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}
