//! What a sequence's tokens so far do to its logits. Rebuilt from the token ids, so a replay has the same.

use std::collections::HashMap;

use super::params::SamplingParams;

/// Which tokens occurred, and how often among the produced ones.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// How often each token of prompt or output was produced.
    produced: HashMap<u32, u32>,
}

impl History {
    /// From a prompt and what was produced after it.
    pub fn new(prompt: &[u32], produced: &[u32]) -> Self {
        let mut history = Self { produced: prompt.iter().map(|&id| (id, 0)).collect() };
        produced.iter().for_each(|&id| history.push(id));
        history
    }

    /// One more produced token.
    pub fn push(&mut self, id: u32) {
        *self.produced.entry(id).or_default() += 1;
    }

    /// Applies the three penalties to the logits of the tokens that occurred.
    pub fn penalise(&self, params: &SamplingParams, logits: &mut [f32]) {
        for (&id, &times) in &self.produced {
            let Some(logit) = logits.get_mut(id as usize) else { continue };
            if params.repetition_penalty != 1.0 {
                *logit = if *logit > 0.0 {
                    *logit / params.repetition_penalty
                } else {
                    *logit * params.repetition_penalty
                };
            }
            if times > 0 {
                *logit -= params.frequency_penalty * times as f32;
                *logit -= params.presence_penalty;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetition_counts_the_prompt_the_others_do_not() {
        let params = SamplingParams {
            repetition_penalty: 2.0,
            frequency_penalty: 0.5,
            presence_penalty: 0.25,
            ..SamplingParams::default()
        };
        let mut logits = [4.0, 4.0, -4.0, 4.0];
        History::new(&[0, 2], &[1, 1]).penalise(&params, &mut logits);
        assert_eq!(logits, [2.0, 2.0 - 1.0 - 0.25, -8.0, 4.0]);
    }

    #[test]
    fn replay_and_growth_agree() {
        let params =
            SamplingParams { frequency_penalty: 0.7, repetition_penalty: 1.3, ..SamplingParams::default() };
        let mut grown = History::new(&[5, 6], &[]);
        [7, 5, 7].into_iter().for_each(|id| grown.push(id));
        let (mut a, mut b) = ([1.0f32; 10], [1.0f32; 10]);
        grown.penalise(&params, &mut a);
        History::new(&[5, 6], &[7, 5, 7]).penalise(&params, &mut b);
        assert_eq!(a, b);
    }
}
