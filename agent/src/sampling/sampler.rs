//! One sequence's sampler.

use std::sync::Arc;

use sluice_core::sequence::Abort;
use sluice_core::step::Sample;

use super::constraint::Constraint;
use super::draw::{DrawScratch, draw};
use super::history::History;
use super::logprobs::{Logprobs, TokenLogprob, log_sum_exp, logprob, top};
use super::math;
use super::params::SamplingParams;
use super::random::unit_draw;

/// How one sequence's tokens are drawn, and what it consists of so far.
#[derive(Debug)]
pub struct SequenceSampling {
    /// The client's parameters.
    pub params: SamplingParams,
    /// Which of the request's choices this is: part of the random numbers' key.
    pub choice: u16,
    /// The prompt's token ids and what earlier attempts produced.
    pub ids: Arc<[u32]>,
    /// How many of `ids`, at the end, were produced.
    pub produced: u32,
    /// Not drawn before `min_tokens` tokens are produced.
    pub stop_ids: Vec<u32>,
    /// Tokens to produce at least.
    pub min_tokens: u32,
    /// Structured output, at its start: it is shown the produced ids here.
    pub constraint: Option<Box<dyn Constraint>>,
}

impl SequenceSampling {
    /// The highest logit each time.
    pub fn greedy(prompt: Arc<[u32]>) -> Self {
        Self {
            params: SamplingParams::greedy(),
            choice: 0,
            ids: prompt,
            produced: 0,
            stop_ids: Vec::new(),
            min_tokens: 0,
            constraint: None,
        }
    }
}

/// Buffers shared by the samplers of one thread.
#[derive(Debug, Default)]
pub struct SamplerScratch {
    draw: DrawScratch,
}

/// One sequence's sampler.
#[derive(Debug)]
pub struct Sampler {
    params: SamplingParams,
    choice: u16,
    stop_ids: Vec<u32>,
    min_tokens: u32,
    history: Option<History>,
    constraint: Option<Box<dyn Constraint>>,
    next: u32,
    failed: Option<Abort>,
}

impl Sampler {
    /// Rebuilds the state from the token ids.
    pub fn new(sequence: SequenceSampling) -> Self {
        let SequenceSampling { params, choice, ids, produced, stop_ids, min_tokens, mut constraint } =
            sequence;
        let (prompt, output) = ids.split_at(ids.len().saturating_sub(produced as usize));
        let history = params.has_penalties().then(|| History::new(prompt, output));
        let left = constraint.as_mut().is_some_and(|constraint| {
            output.iter().any(|&id| {
                constraint
                    .accept(id)
                    .inspect_err(|error| tracing::warn!(%error, "replay left the grammar"))
                    .is_err()
            })
        });
        let failed = left.then_some(Abort::Constraint);
        Self { params, choice, stop_ids, min_tokens, history, constraint, next: produced, failed }
    }

    /// The client's parameters.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// Which of the request's choices this is.
    pub fn choice(&self) -> u16 {
        self.choice
    }

    /// Draws the `index`-th produced token. The logits are overwritten.
    ///
    /// [`Sample::Abort`] where nothing can be drawn: a grammar that failed, an index out of turn, no finite logit.
    pub fn sample(
        &mut self,
        index: u32,
        logits: &mut [f32],
        scratch: &mut SamplerScratch,
    ) -> (Sample, Option<Logprobs>) {
        if let Some(why) = self.failed.or((index != self.next).then_some(Abort::Fault)) {
            return (Sample::Abort(why), None);
        }
        if self.constraint.as_ref().is_some_and(|constraint| constraint.is_complete()) {
            return (Sample::Done, None);
        }
        let raw = self.params.logprobs.map(|n| RawLogprobs::new(logits, n as usize));
        if let Err(sample) = self.restrict(index, logits) {
            return (sample, None);
        }
        let drawn = if self.params.is_greedy() {
            math::argmax(logits).map(|id| id as u32)
        } else {
            let unit = unit_draw(self.params.seed, self.choice, index);
            draw(logits, &self.params, unit, &mut scratch.draw)
        };
        let Some(id) = drawn else { return (Sample::Abort(self.blame(index, logits)), None) };
        self.accept(id);
        (Sample::Token(id), raw.map(|raw| raw.of(id)))
    }

    /// Everything that changes a logit before temperature.
    fn restrict(&mut self, index: u32, logits: &mut [f32]) -> Result<(), Sample> {
        if let Some(constraint) = &mut self.constraint
            && let Err(error) = constraint.mask(logits)
        {
            tracing::warn!(%error, "structured output failed");
            self.failed = Some(Abort::Constraint);
            return Err(Sample::Abort(Abort::Constraint));
        }
        if let Some(allowed) = &self.params.allowed_ids {
            let kept = allowed.iter().filter_map(|&id| Some((id, *logits.get(id as usize)?)));
            let kept: Vec<(u32, f32)> = kept.collect();
            logits.fill(f32::NEG_INFINITY);
            kept.into_iter().for_each(|(id, logit)| logits[id as usize] = logit);
        }
        if index < self.min_tokens {
            for &id in &self.stop_ids {
                if let Some(logit) = logits.get_mut(id as usize) {
                    *logit = f32::NEG_INFINITY;
                }
            }
            if self.constraint.is_some() && math::max(logits) == f32::NEG_INFINITY {
                // The grammar allows nothing but the end: it is complete, however few tokens that are.
                return Err(Sample::Done);
            }
        }
        for &(id, bias) in &self.params.logit_bias {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit += bias;
            }
        }
        if let Some(history) = &self.history {
            history.penalise(&self.params, logits);
        }
        Ok(())
    }

    /// Why these logits, restricted, give no token. A restriction leaves negative infinities, but never what is no number.
    fn blame(&self, index: u32, logits: &[f32]) -> Abort {
        let early = index < self.min_tokens && !self.stop_ids.is_empty();
        let restricted = self.constraint.is_some() || self.params.allowed_ids.is_some() || early;
        if restricted && !logits.iter().any(|logit| logit.is_nan()) {
            Abort::Constraint
        } else {
            Abort::Fault
        }
    }

    fn accept(&mut self, id: u32) {
        self.next += 1;
        if let Some(history) = &mut self.history {
            history.push(id);
        }
        if let Some(constraint) = &mut self.constraint
            && let Err(error) = constraint.accept(id)
        {
            tracing::warn!(%error, id, "structured output refused a token it had allowed");
            self.failed = Some(Abort::Constraint);
        }
    }
}

/// What is needed of the raw logits once the token is known.
struct RawLogprobs {
    log_sum: f64,
    logits: Vec<f32>,
    top: Vec<TokenLogprob>,
}

impl RawLogprobs {
    fn new(logits: &[f32], n: usize) -> Self {
        let log_sum = log_sum_exp(logits);
        let top = top(logits, n)
            .into_iter()
            .map(|id| TokenLogprob { id, logprob: logprob(logits[id as usize], log_sum) })
            .collect();
        Self { log_sum, logits: logits.to_vec(), top }
    }

    fn of(self, id: u32) -> Logprobs {
        let logprob = logprob(self.logits[id as usize], self.log_sum);
        Logprobs { token: TokenLogprob { id, logprob }, top: self.top }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling(params: SamplingParams) -> SequenceSampling {
        SequenceSampling { params, ..SequenceSampling::greedy(vec![1, 2, 3].into()) }
    }

    fn logits(step: u32) -> Vec<f32> {
        (0..200).map(|id| ((id * 31 + step * 17) as f32 * 0.731).sin() * 4.0).collect()
    }

    fn run(sampler: &mut Sampler, steps: std::ops::Range<u32>) -> Vec<(Sample, Option<Logprobs>)> {
        let mut scratch = SamplerScratch::default();
        steps.map(|step| sampler.sample(step, &mut logits(step), &mut scratch)).collect()
    }

    #[test]
    fn a_replay_continues_with_the_same_bits() {
        let params = SamplingParams {
            temperature: 0.9,
            top_p: 0.8,
            repetition_penalty: 1.2,
            frequency_penalty: 0.3,
            seed: 99,
            logprobs: Some(3),
            ..SamplingParams::default()
        };
        let mut first = Sampler::new(sampling(params.clone()));
        let all = run(&mut first, 0..20);
        let produced: Vec<u32> =
            all.iter().map(|(s, _)| if let Sample::Token(id) = s { *id } else { panic!() }).collect();
        let ids: Vec<u32> = [1, 2, 3].into_iter().chain(produced[..8].iter().copied()).collect();
        let mut replay = Sampler::new(SequenceSampling { ids: ids.into(), produced: 8, ..sampling(params) });
        assert_eq!(run(&mut replay, 8..20), all[8..]);
    }

    #[test]
    fn logprobs_are_of_the_raw_distribution() {
        let plain = SamplingParams { logprobs: Some(2), ..SamplingParams::greedy() };
        let banned = SamplingParams { logit_bias: vec![(top(&logits(0), 1)[0], -100.0)], ..plain.clone() };
        let (a, b) =
            (run(&mut Sampler::new(sampling(plain)), 0..1), run(&mut Sampler::new(sampling(banned)), 0..1));
        let (a, b) = (a[0].1.clone().unwrap(), b[0].1.clone().unwrap());
        assert_eq!(a.top, b.top);
        assert_eq!(a.token, a.top[0]);
        assert_eq!(b.token, b.top[1]);
    }

    #[test]
    fn stop_ids_wait_for_min_tokens_and_allowed_ids_bound() {
        let best = top(&logits(0), 1)[0];
        let mut sampler = Sampler::new(SequenceSampling {
            stop_ids: vec![best],
            min_tokens: 1,
            ..sampling(SamplingParams::greedy())
        });
        assert_ne!(run(&mut sampler, 0..1)[0].0, Sample::Token(best));
        let only = SamplingParams { allowed_ids: Some(vec![7]), ..SamplingParams::default() };
        assert_eq!(run(&mut Sampler::new(sampling(only)), 0..1)[0].0, Sample::Token(7));
    }

    #[test]
    fn an_index_out_of_turn_aborts() {
        let mut sampler = Sampler::new(sampling(SamplingParams::greedy()));
        assert_eq!(run(&mut sampler, 1..2)[0].0, Sample::Abort(Abort::Fault));
    }

    #[test]
    fn what_gives_no_token_is_the_clients_fault_only_where_it_restricts() {
        let why = |params: SamplingParams, min_tokens, logit: f32| {
            let sequence = SequenceSampling { stop_ids: vec![1], min_tokens, ..sampling(params) };
            let mut logits = [logit, 0.0];
            Sampler::new(sequence).sample(0, &mut logits, &mut SamplerScratch::default()).0
        };
        for params in [SamplingParams::greedy(), SamplingParams::default()] {
            let only = |ids: &[u32]| SamplingParams { allowed_ids: Some(ids.to_vec()), ..params.clone() };
            assert_eq!(why(only(&[1]), 1, 0.0), Sample::Abort(Abort::Constraint));
            assert_eq!(why(params.clone(), 1, f32::NEG_INFINITY), Sample::Abort(Abort::Constraint));
            assert_eq!(why(params.clone(), 1, f32::NAN), Sample::Abort(Abort::Fault));
            assert_eq!(why(only(&[0]), 0, f32::NAN), Sample::Abort(Abort::Fault));
            assert_eq!(why(only(&[0]), 0, 0.0), Sample::Token(0));
        }
    }
}
