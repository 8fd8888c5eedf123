//! Log-probabilities of the raw distribution: log-softmax of the logits as the model gave them.

use serde::{Deserialize, Serialize};

use super::math;

/// A token and its log-probability.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// The token id.
    pub id: u32,
    /// The natural logarithm of its probability.
    pub logprob: f32,
}

/// Log-probabilities at one index of a sequence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Logprobs {
    /// The drawn token's.
    pub token: TokenLogprob,
    /// The most probable tokens, in falling order, ties to the lower id.
    pub top: Vec<TokenLogprob>,
}

/// The logarithm of the sum over all `e^logit`.
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = math::max(logits);
    f64::from(max) + libm::log(math::sum_by(logits, |x| math::exp(x - max)))
}

/// One logit's log-probability, given [`log_sum_exp`].
pub fn logprob(logit: f32, log_sum: f64) -> f32 {
    (f64::from(logit) - log_sum) as f32
}

/// The `n` highest logits' ids in falling order, ties to the lower id.
pub fn top(logits: &[f32], n: usize) -> Vec<u32> {
    let mut best: Vec<u32> = Vec::with_capacity(n + 1);
    if n == 0 {
        return best;
    }
    let mut floor = f32::NEG_INFINITY;
    for (id, &logit) in logits.iter().enumerate() {
        if best.len() == n && logit <= floor || logit.is_nan() {
            continue;
        }
        let at = best.partition_point(|&other| logits[other as usize] >= logit);
        best.insert(at, id as u32);
        best.truncate(n);
        floor = logits[best[best.len() - 1] as usize];
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_softmax_matches_f64() {
        let logits: Vec<f32> = (0..1000).map(|i| (i as f32 * 1.7).sin() * 9.0).collect();
        let exact = logits.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
        assert!((log_sum_exp(&logits) - exact).abs() < 1e-6);
        let total: f64 = logits.iter().map(|&x| f64::from(logprob(x, log_sum_exp(&logits))).exp()).sum();
        assert!((total - 1.0).abs() < 1e-5);
    }

    #[test]
    fn top_is_sorted_with_ties_to_the_lower_id() {
        let logits = [1.0, 5.0, f32::NAN, 5.0, 2.0, 9.0, f32::NEG_INFINITY];
        assert_eq!(top(&logits, 4), [5, 1, 3, 4]);
        assert_eq!(top(&logits, 0), [] as [u32; 0]);
        assert_eq!(top(&logits, 100), [5, 1, 3, 4, 0, 6]);
    }
}
