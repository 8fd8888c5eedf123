//! Head steps: final norm, logits, and sampling from them on the host.

use sluice_core::step::{Entry, HeadStep, Outcome};
use sluice_kernels::cuda::{DenseOutput, DenseTuning, RowNorm, Rows};

use super::{CudaBackend, HEAD_ROWS, StepError};
use crate::backend::SampledLogprobs;
use crate::backend::error::check_tokens;

impl CudaBackend {
    pub(super) fn head(&mut self, step: &HeadStep) -> Result<Outcome, StepError> {
        check_tokens(step.rows.iter().map(|row| row.token), self.layout.tokens)?;
        self.logprobs.clear();
        let top_k = self.layout.top_k as usize;
        let mut samples = Vec::with_capacity(step.rows.len());
        let mut slicing = &step.slicing[..];
        for rows in step.rows.chunks(HEAD_ROWS) {
            let merges = rows.iter().filter(|row| matches!(row.entry, Entry::Merge(_))).count();
            let Some((now, rest)) = slicing.split_at_checked(merges * top_k) else {
                return Err(StepError::Inconsistent("too few slice counts for its merges"));
            };
            slicing = rest;
            self.enter(rows.iter().map(|row| (row.token, row.entry)), now)?;
            let mut logits = self.logits(rows.len())?;
            let width = logits.len() / rows.len();
            for (row, logits) in rows.iter().zip(logits.chunks_exact_mut(width)) {
                let logits = &mut logits[..self.spec.vocab];
                if let Some(probe) = &mut self.probe {
                    probe.logits(row.seq, row.index, logits);
                }
                let sampler = self.samplers.get_mut(row.seq.0 as usize).and_then(Option::as_mut);
                let sampler = sampler.ok_or(StepError::NotOpen(row.seq.0))?;
                let (sample, logprobs) = sampler.sample(row.index, logits, &mut self.sampler_scratch);
                samples.push(sample);
                if let Some(logprobs) = logprobs {
                    self.logprobs.push(SampledLogprobs { seq: row.seq, index: row.index, logprobs });
                }
            }
        }
        if !slicing.is_empty() {
            return Err(StepError::Inconsistent("more slice counts than merges"));
        }
        Ok(Outcome::Sampled(samples))
    }

    /// The logits of the first rows of the step's residual stream, each row filled up to whole strips.
    fn logits(&mut self, rows: usize) -> Result<Vec<f32>, StepError> {
        let Self { spec, device, ops, buffers, rank, .. } = self;
        let rank = rank.as_mut().ok_or(StepError::NoRank)?;
        let norm = RowNorm { weight: &rank.weights.final_norm, eps: spec.final_norm_eps };
        ops.rows.add_rmsnorm(device, rows, &mut buffers.x, None, &norm, &mut buffers.normed)?;
        let normed = Rows { data: &buffers.normed, stride: spec.hidden };
        let width = rank.weights.head.shape().outputs();
        let out = DenseOutput::Single(&mut rank.logits);
        ops.dense.run(device, rows, &normed, &rank.weights.head, out, width, DenseTuning::default())?;
        Ok(device.download(&rank.logits.slice(..rows * width))?)
    }
}
