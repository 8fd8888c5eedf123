//! From a row of logits to a token: the same logits and the same history give the same token and log-probabilities,
//! on every device and in every batch.
//!
//! In this order: log-probabilities of the raw logits (before anything below); the [`Constraint`]'s mask; the allowed
//! ids; stop ids banned below `min_tokens`; logit bias; penalties; then the highest logit (ties to the lower id), or
//! temperature, min-p, top-k, top-p and a draw with one random number keyed by (seed, choice, index).
//!
//! Sums run in a fixed order of their own, so that no vector width changes them; `exp` and `ln` are ours or `libm`'s,
//! never the platform's.

mod choice;
mod constraint;
mod draw;
mod extent;
mod history;
mod lark;
mod logprobs;
mod math;
mod params;
pub(crate) mod random;
mod sampler;

/// Part of the numerics id: another name whenever the bits of a draw, a penalty, a log-probability or of the functions
/// in `math` change.
pub(crate) const SAMPLER: &str = "sampler-1";

pub use choice::Draw;
pub use constraint::{
    CompileError, CompiledGrammar, Constraint, ConstraintError, Grammar, GrammarCompiler, GrammarLimits,
};
pub use logprobs::{Logprobs, TokenLogprob};
pub use params::{ParamError, SamplingParams};
pub use random::{philox4x32, unit_draw};
pub use sampler::{Sampler, SamplerScratch, SequenceSampling};
