//! From logits to a token: argmax and log probabilities.

use super::context::Cpu;
use super::math::ln;
use super::reduce::{Max, Reduce, SumExp};
use super::simd::dispatch;

/// The normaliser of a row of logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogNormaliser {
    max: f32,
    log_sum: f64,
}

impl LogNormaliser {
    /// The natural logarithm of the softmax probability of a logit of that row.
    pub fn log_probability(&self, logit: f32) -> f32 {
        (f64::from(logit - self.max) - self.log_sum) as f32
    }
}

impl Cpu {
    /// The index and value of the largest logit; ties go to the lower index. `None` if there are none, or all are NaN
    /// or negative infinity.
    pub fn argmax(&self, logits: &[f32]) -> Option<(usize, f32)> {
        // SAFETY: the context's set is available, and the slice is valid.
        let max = unsafe { dispatch(self.isa, Reduce { row: logits, step: Max }) };
        let max = if max.is_nan() { logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) } else { max };
        if max == f32::NEG_INFINITY {
            return None;
        }
        logits.iter().position(|x| *x == max).map(|i| (i, logits[i]))
    }

    /// What turns logits of this row into log probabilities.
    pub fn log_normaliser(&self, logits: &[f32]) -> LogNormaliser {
        // SAFETY: the context's set is available, and the slice is valid.
        unsafe {
            let max = dispatch(self.isa, Reduce { row: logits, step: Max });
            let sum = dispatch(self.isa, Reduce { row: logits, step: SumExp { shift: max } });
            LogNormaliser { max, log_sum: if sum > 0.0 { ln(f64::from(sum)) } else { f64::NAN } }
        }
    }

    /// `out[i] = logits[i] - ln(sum of exp(logits))`, for the first `out.len()` logits.
    pub fn log_softmax(&self, logits: &[f32], out: &mut [f32]) {
        let normaliser = self.log_normaliser(logits);
        for (out, logit) in out.iter_mut().zip(logits) {
            *out = normaliser.log_probability(*logit);
        }
    }
}
