//! What a client may ask of the sampler, with vLLM's names and meanings.

use serde::{Deserialize, Serialize};

/// Below this temperature the highest logit wins.
const GREEDY_BELOW: f32 = 1e-5;

/// How the tokens of one sequence are drawn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SamplingParams {
    /// Divides the logits; under 1e-5 the highest logit wins.
    pub temperature: f32,
    /// Of the most probable tokens, the fewest whose probabilities sum to at least this. In (0, 1].
    pub top_p: f32,
    /// The most probable tokens; 0 for all.
    pub top_k: u32,
    /// Tokens at least this probable relative to the most probable. In [0, 1].
    pub min_p: f32,
    /// Subtracted from the logit of each token that was produced. In [-2, 2].
    pub presence_penalty: f32,
    /// Subtracted once per time a token was produced. In [-2, 2].
    pub frequency_penalty: f32,
    /// Divides a positive and multiplies a negative logit of each token of prompt and output. Over 0; 1 does nothing.
    pub repetition_penalty: f32,
    /// Added to logits, by token id.
    pub logit_bias: Vec<(u32, f32)>,
    /// The only token ids that may be drawn.
    pub allowed_ids: Option<Vec<u32>>,
    /// The key of the random numbers.
    pub seed: u64,
    /// Log-probabilities wanted: of the drawn token and of this many of the most probable.
    pub logprobs: Option<u32>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            allowed_ids: None,
            seed: 0,
            logprobs: None,
        }
    }
}

/// A parameter out of its range.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{name} must be {range}, got {value}")]
pub struct ParamError {
    /// The parameter, as the client wrote it.
    pub name: &'static str,
    /// What is allowed.
    pub range: &'static str,
    /// What it was.
    pub value: String,
}

impl SamplingParams {
    /// Parameters under which the highest logit wins.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Whether no random number is needed.
    pub fn is_greedy(&self) -> bool {
        self.temperature < GREEDY_BELOW
    }

    /// Whether the sampler must know the token ids so far.
    pub fn has_penalties(&self) -> bool {
        self.presence_penalty != 0.0 || self.frequency_penalty != 0.0 || self.repetition_penalty != 1.0
    }

    /// Checks every range; `vocab` bounds token ids.
    pub fn check(&self, vocab: usize) -> Result<(), ParamError> {
        let within = |name, range, value: f32, ok: bool| {
            if ok { Ok(()) } else { Err(ParamError { name, range, value: value.to_string() }) }
        };
        let t = self.temperature;
        within("temperature", "a number from 0 to 100", t, (0.0..=100.0).contains(&t))?;
        within("top_p", "over 0 and at most 1", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0)?;
        within("min_p", "from 0 to 1", self.min_p, (0.0..=1.0).contains(&self.min_p))?;
        let p = self.presence_penalty;
        within("presence_penalty", "from -2 to 2", p, (-2.0..=2.0).contains(&p))?;
        let f = self.frequency_penalty;
        within("frequency_penalty", "from -2 to 2", f, (-2.0..=2.0).contains(&f))?;
        let r = self.repetition_penalty;
        within("repetition_penalty", "over 0 and at most 100", r, r > 0.0 && r <= 100.0)?;
        for &(id, bias) in &self.logit_bias {
            check_id("logit_bias", id, vocab)?;
            within("logit_bias", "from -100 to 100", bias, (-100.0..=100.0).contains(&bias))?;
        }
        if let Some(ids) = &self.allowed_ids {
            if ids.is_empty() {
                let value = "an empty list".to_owned();
                return Err(ParamError { name: "allowed_token_ids", range: "at least one token id", value });
            }
            ids.iter().try_for_each(|&id| check_id("allowed_token_ids", id, vocab))?;
        }
        Ok(())
    }
}

fn check_id(name: &'static str, id: u32, vocab: usize) -> Result<(), ParamError> {
    if (id as usize) < vocab {
        return Ok(());
    }
    Err(ParamError { name, range: "of token ids in the vocabulary", value: format!("{id} with {vocab} ids") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_checked_by_name() {
        let ok = SamplingParams::default();
        assert_eq!(ok.check(10), Ok(()));
        let bad = |params: SamplingParams| params.check(10).unwrap_err().to_string();
        assert!(
            bad(SamplingParams { temperature: f32::NAN, ..ok.clone() }).starts_with("temperature must be")
        );
        assert!(bad(SamplingParams { temperature: -1.0, ..ok.clone() }).starts_with("temperature"));
        assert!(bad(SamplingParams { top_p: 0.0, ..ok.clone() }).starts_with("top_p"));
        assert!(bad(SamplingParams { min_p: 1.5, ..ok.clone() }).starts_with("min_p"));
        assert!(
            bad(SamplingParams { repetition_penalty: 0.0, ..ok.clone() }).starts_with("repetition_penalty")
        );
        assert!(bad(SamplingParams { logit_bias: vec![(10, 1.0)], ..ok.clone() }).contains("vocabulary"));
        assert!(bad(SamplingParams { allowed_ids: Some(vec![]), ..ok }).contains("at least one"));
    }
}
