//! Head steps: final norm, logits and sampling.

use sluice_core::step::{HeadStep, Outcome};
use sluice_kernels::cpu::{Epilogue, Io, Norm, Rows};

use super::{CpuBackend, StepError};
use crate::backend::SampledLogprobs;
use crate::backend::error::check_tokens;

/// Rows whose logits are held at a time: a large vocabulary's logits take room.
const ROWS: usize = 32;

impl CpuBackend {
    pub(super) fn head(&mut self, step: &HeadStep) -> Result<Outcome, StepError> {
        let rank = self.rank()?;
        check_tokens(step.rows.iter().map(|row| row.token), self.layout.tokens)?;
        self.merge_returns(step.rows.iter().map(|row| (row.token, row.entry)), &step.slicing)?;
        self.logprobs.clear();
        let mut samples = Vec::with_capacity(step.rows.len());
        for rows in step.rows.chunks(ROWS) {
            let tokens: Vec<u32> = rows.iter().map(|row| row.token).collect();
            let all = Rows::first(rows.len());
            let normed = self.buffers.normed.get(rows.len(), self.spec.hidden);
            let norm = Norm { weight: Some(&rank.final_norm), eps: self.spec.final_norm_eps };
            self.cpu.rmsnorm(Io::across(&self.slab.residual, &tokens, normed, all), norm)?;
            let logits = self.buffers.logits.get(rows.len(), rank.head.rows());
            self.cpu.matmul(Io::across(normed, all, logits, all), &rank.head, Epilogue::default())?;
            for (i, row) in rows.iter().enumerate() {
                let logits = logits.row_mut(i);
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
        Ok(Outcome::Sampled(samples))
    }
}
