//! How a sequence's tokens are drawn, as it travels with the sequence.

use std::sync::Arc;

use sluice_core::sequence::Bind;

use super::{CompiledGrammar, SamplingParams, SequenceSampling};

/// What a rank is told beside a bind.
#[derive(Clone, Debug)]
pub struct Draw {
    /// The parameters.
    pub sampling: Arc<SamplingParams>,
    /// What the output must look like.
    pub grammar: Option<CompiledGrammar>,
    /// The span of its request, if it is traced in this process.
    pub span: tracing::Span,
}

impl Draw {
    /// The state of the sampler at the start of an attempt.
    pub fn start(&self, bind: &Bind) -> SequenceSampling {
        SequenceSampling {
            params: (*self.sampling).clone(),
            choice: bind.seq.choice,
            ids: Arc::clone(&bind.ids),
            produced: bind.produced,
            stop_ids: bind.stop.ids.clone(),
            min_tokens: bind.stop.min_tokens,
            constraint: self.grammar.as_ref().map(CompiledGrammar::start),
        }
    }
}
