//! What all requests that produce tokens have in common, read and checked.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Number;
use tokio::time::Instant;

use super::auth::Caller;
use super::config::{Limits, ServedModel, Timeouts};
use super::error::ApiError;
use crate::sampling::SamplingParams;

/// One or a list of them.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct StreamOptions {
    include_usage: Option<bool>,
}

/// The fields, named as OpenAI and vLLM name them. Others are ignored.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Fields {
    pub(super) model: Option<String>,
    pub(super) stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    pub(super) n: Option<u32>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<i64>,
    min_p: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    repetition_penalty: Option<f32>,
    logit_bias: Option<BTreeMap<String, f32>>,
    allowed_token_ids: Option<Vec<u32>>,
    seed: Option<Number>,
    stop: Option<OneOrMany<String>>,
    stop_token_ids: Option<Vec<u32>>,
    include_stop_str_in_output: Option<bool>,
    ignore_eos: Option<bool>,
    min_tokens: Option<u32>,
    skip_special_tokens: Option<bool>,
    return_token_ids: Option<bool>,
    cache_salt: Option<String>,
    timeout: Option<f64>,
}

/// The same, checked and with defaults filled in.
#[derive(Clone, Debug)]
pub(super) struct Params {
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    pub(super) n: u16,
    pub(super) sampling: SamplingParams,
    pub(super) stops: Vec<String>,
    pub(super) include_stop: bool,
    /// Ids that end an output, sorted.
    pub(super) stop_ids: Vec<u32>,
    pub(super) eos: Vec<u32>,
    pub(super) min_tokens: u32,
    pub(super) skip_special: bool,
    pub(super) return_token_ids: bool,
    pub(super) salt: u64,
    pub(super) deadline: Instant,
}

/// As good as never.
const FAR: Duration = Duration::from_secs(366 * 24 * 3600);

/// What the checks need to know beside the fields.
pub(super) struct Rules<'a> {
    pub(super) model: &'a ServedModel,
    pub(super) limits: &'a Limits,
    pub(super) timeouts: &'a Timeouts,
    pub(super) caller: Caller,
    /// When the request came.
    pub(super) entered: Instant,
    /// From the `x-request-timeout` header, in seconds.
    pub(super) header_timeout: Option<f64>,
}

impl Rules<'_> {
    /// When the request is given up; `seconds` are those that its body asks for.
    pub(super) fn deadline(&self, seconds: Option<f64>) -> Result<Instant, ApiError> {
        let timeout = match seconds.or(self.header_timeout) {
            None => self.timeouts.request,
            Some(seconds) => Duration::try_from_secs_f64(seconds)
                .ok()
                .filter(|timeout| !timeout.is_zero())
                .ok_or_else(|| {
                    ApiError::invalid("timeout", format!("timeout must be seconds over 0, got {seconds}"))
                })?
                .min(self.timeouts.longest),
        };
        // An option may name a time that no clock will show.
        Ok(self.entered.checked_add(timeout).unwrap_or_else(|| self.entered + FAR))
    }
}

impl Fields {
    /// Checks everything that does not depend on the prompt. `logprobs` is the number of most probable tokens wanted.
    pub(super) fn check(self, logprobs: Option<u32>, rules: &Rules) -> Result<Params, ApiError> {
        let (model, limits) = (rules.model, rules.limits);
        if let Some(name) = self.model.as_deref()
            && !model.names.iter().any(|known| known == name)
        {
            return Err(ApiError::model(name));
        }
        let n = self.n.unwrap_or(1);
        if n == 0 || n as usize > limits.choices.min(usize::from(u16::MAX)) {
            return Err(ApiError::invalid("n", format!("n must be from 1 to {}, got {n}", limits.choices)));
        }
        if let Some(wanted) = logprobs
            && wanted > limits.top_logprobs
        {
            let message = format!(
                "at most {} log-probabilities are given, {wanted} were asked for",
                limits.top_logprobs
            );
            return Err(ApiError::invalid("logprobs", message));
        }
        let stops = self.stop.map_or_else(Vec::new, OneOrMany::into_vec);
        check_stops(&stops, limits)?;
        let eos = if self.ignore_eos.unwrap_or(false) { Vec::new() } else { model.eos.clone() };
        let stop_token_ids = self.stop_token_ids.unwrap_or_default();
        if let Some(id) = stop_token_ids.iter().find(|id| **id as usize >= model.vocab) {
            return Err(outside("stop_token_ids", *id, model.vocab));
        }
        let mut stop_ids: Vec<u32> = eos.iter().copied().chain(stop_token_ids).collect();
        stop_ids.sort_unstable();
        stop_ids.dedup();

        let defaults = &model.defaults;
        let sampling = SamplingParams {
            temperature: self.temperature.or(defaults.temperature).unwrap_or(1.0),
            top_p: self.top_p.or(defaults.top_p).unwrap_or(1.0),
            top_k: self.top_k.map(top_k).transpose()?.or(defaults.top_k).unwrap_or(0),
            min_p: self.min_p.or(defaults.min_p).unwrap_or(0.0),
            presence_penalty: self.presence_penalty.unwrap_or(0.0),
            frequency_penalty: self.frequency_penalty.unwrap_or(0.0),
            repetition_penalty: self.repetition_penalty.or(defaults.repetition_penalty).unwrap_or(1.0),
            logit_bias: logit_bias(self.logit_bias.unwrap_or_default(), limits)?,
            allowed_ids: self.allowed_token_ids,
            seed: self.seed.as_ref().map_or_else(|| Ok(draw_seed()), seed)?,
            logprobs,
        };
        // OpenAI's bound; the sampler itself would go further.
        if !(0.0..=2.0).contains(&sampling.temperature) {
            let message = format!("temperature must be from 0 to 2, got {}", sampling.temperature);
            return Err(ApiError::invalid("temperature", message));
        }
        sampling.check(model.vocab)?;
        Ok(Params {
            stream: self.stream.unwrap_or(false),
            include_usage: self.stream_options.and_then(|options| options.include_usage).unwrap_or(false),
            n: n as u16,
            sampling,
            stops,
            include_stop: self.include_stop_str_in_output.unwrap_or(false),
            stop_ids,
            eos,
            min_tokens: self.min_tokens.unwrap_or(0),
            skip_special: self.skip_special_tokens.unwrap_or(true),
            return_token_ids: self.return_token_ids.unwrap_or(false),
            salt: rules.caller.salt(self.cache_salt.as_deref()),
            deadline: rules.deadline(self.timeout)?,
        })
    }
}

impl Params {
    /// Whether the first token may be none: all that is allowed ends the output, and it must not end yet.
    pub(super) fn allows_nothing(&self, vocab: usize) -> bool {
        let ends = |id: &u32| self.stop_ids.binary_search(id).is_ok();
        self.min_tokens > 0
            && match &self.sampling.allowed_ids {
                Some(ids) => ids.iter().all(ends),
                None => (0..vocab as u32).all(|id| ends(&id)),
            }
    }
}

/// 400: an id the model has no row for.
pub(super) fn outside(param: &'static str, id: u32, vocab: usize) -> ApiError {
    ApiError::invalid(param, format!("token id {id} in {param} is outside the vocabulary of {vocab} ids"))
}

/// The most tokens a completion may have.
///
/// `asked` names the field it came from. `prompt` is in tokens and at least 1.
pub(super) fn max_tokens(
    asked: Option<(&'static str, u32)>,
    default: Option<u32>,
    min_tokens: u32,
    prompt: usize,
    model: &ServedModel,
    limits: &Limits,
) -> Result<u32, ApiError> {
    let context = model.context;
    let longest = limits.prompt_tokens.unwrap_or(context).min(context - 1);
    if prompt > longest {
        let message = format!(
            "the prompt has {prompt} tokens and at most {longest} are allowed (the model's context is {context} tokens)"
        );
        return Err(ApiError::context("prompt", message));
    }
    let room = u32::try_from(context - prompt).unwrap_or(u32::MAX);
    let max = match asked {
        Some((param, max)) if max > room => {
            let message = format!(
                "this model's context is {context} tokens, but {} were asked for: {prompt} in the prompt and {max} in \
                 {param}; at most {room} are left for the completion",
                prompt as u64 + u64::from(max)
            );
            return Err(ApiError::context(param, message));
        }
        Some((_, max)) => max,
        None => default.or(model.defaults.max_tokens).unwrap_or(room).min(room),
    };
    if min_tokens > max {
        let message =
            format!("min_tokens is {min_tokens}, more than the {max} tokens the completion may have");
        return Err(ApiError::invalid("min_tokens", message));
    }
    Ok(max)
}

fn check_stops(stops: &[String], limits: &Limits) -> Result<(), ApiError> {
    if stops.len() > limits.stops {
        let message = format!("at most {} stop strings are allowed, got {}", limits.stops, stops.len());
        return Err(ApiError::invalid("stop", message));
    }
    if stops.iter().any(String::is_empty) {
        return Err(ApiError::invalid("stop", "a stop string must not be empty"));
    }
    if stops.iter().any(|stop| stop.len() > limits.stop_bytes) {
        return Err(ApiError::invalid(
            "stop",
            format!("a stop string may have at most {} bytes", limits.stop_bytes),
        ));
    }
    Ok(())
}

fn top_k(value: i64) -> Result<u32, ApiError> {
    if value == -1 {
        return Ok(0);
    }
    u32::try_from(value).map_err(|_| {
        ApiError::invalid("top_k", format!("top_k must be -1 or 0 (all tokens) or more, got {value}"))
    })
}

fn logit_bias(biases: BTreeMap<String, f32>, limits: &Limits) -> Result<Vec<(u32, f32)>, ApiError> {
    if biases.len() > limits.logit_bias {
        let message =
            format!("logit_bias may have at most {} entries, got {}", limits.logit_bias, biases.len());
        return Err(ApiError::invalid("logit_bias", message));
    }
    let mut biases = biases
        .into_iter()
        .map(|(id, bias)| match id.parse() {
            Ok(id) => Ok((id, bias)),
            Err(_) => Err(ApiError::invalid("logit_bias", format!("`{id}` in logit_bias is not a token id"))),
        })
        .collect::<Result<Vec<_>, _>>()?;
    biases.sort_unstable_by_key(|(id, _)| *id);
    Ok(biases)
}

fn seed(number: &Number) -> Result<u64, ApiError> {
    number
        .as_u64()
        .or_else(|| number.as_i64().map(i64::cast_unsigned))
        .ok_or_else(|| ApiError::invalid("seed", format!("seed must be a 64-bit integer, got {number}")))
}

/// Short enough to survive a client that keeps numbers as doubles.
fn draw_seed() -> u64 {
    rand::random::<u64>() >> 11
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::auth::Keys;
    use crate::gateway::config::GenerationDefaults;
    use axum::http::HeaderMap;

    fn model() -> ServedModel {
        ServedModel {
            names: vec!["tiny".into(), "alias".into()],
            context: 100,
            vocab: 50,
            eos: vec![9, 2],
            defaults: GenerationDefaults {
                temperature: Some(0.5),
                top_k: Some(7),
                ..GenerationDefaults::default()
            },
            created: 0,
        }
    }

    fn check(body: &str) -> Result<Params, ApiError> {
        let (model, limits, timeouts) = (model(), Limits::default(), Timeouts::default());
        let caller = Keys::default().caller(&HeaderMap::new()).unwrap();
        let rules = Rules {
            model: &model,
            limits: &limits,
            timeouts: &timeouts,
            caller,
            entered: Instant::now(),
            header_timeout: None,
        };
        serde_json::from_str::<Fields>(body).unwrap().check(None, &rules)
    }

    #[test]
    fn defaults_come_from_the_model_then_from_openai() {
        let params = check(r#"{"model": "alias", "what": [1], "top_p": null}"#).unwrap();
        assert_eq!(
            (params.sampling.temperature, params.sampling.top_p, params.sampling.top_k),
            (0.5, 1.0, 7)
        );
        assert_eq!((params.n, params.stream, params.skip_special), (1, false, true));
        assert_eq!(params.stop_ids, [2, 9]);
        assert_eq!(check(r#"{"ignore_eos": true, "stop_token_ids": [4, 3, 4]}"#).unwrap().stop_ids, [3, 4]);
        assert_eq!(check(r#"{"top_k": -1}"#).unwrap().sampling.top_k, 0);
        assert_eq!(check(r#"{"seed": -1}"#).unwrap().sampling.seed, u64::MAX);
        assert_ne!(check("{}").unwrap().sampling.seed, check("{}").unwrap().sampling.seed);
        let biased = check(r#"{"logit_bias": {"10": 1, "9": -1.5}}"#).unwrap();
        assert_eq!(biased.sampling.logit_bias, [(9, -1.5), (10, 1.0)]);
    }

    #[test]
    fn what_is_out_of_range_is_named() {
        for (body, param) in [
            (r#"{"n": 0}"#, "n"),
            (r#"{"n": 100000}"#, "n"),
            (r#"{"temperature": -0.1}"#, "temperature"),
            (r#"{"temperature": 1e39}"#, "temperature"),
            (r#"{"temperature": 2.1}"#, "temperature"),
            (r#"{"top_p": 0}"#, "top_p"),
            (r#"{"top_k": -2}"#, "top_k"),
            (r#"{"min_p": 2}"#, "min_p"),
            (r#"{"presence_penalty": 3}"#, "presence_penalty"),
            (r#"{"frequency_penalty": -3}"#, "frequency_penalty"),
            (r#"{"repetition_penalty": 0}"#, "repetition_penalty"),
            (r#"{"logit_bias": {"50": 1}}"#, "logit_bias"),
            (r#"{"logit_bias": {"x": 1}}"#, "logit_bias"),
            (r#"{"stop": ""}"#, "stop"),
            (r#"{"stop": ["a","a","a","a","a","a","a","a","a","a","a","a","a","a","a","a","a"]}"#, "stop"),
            (r#"{"stop_token_ids": [50]}"#, "stop_token_ids"),
            (r#"{"allowed_token_ids": []}"#, "allowed_token_ids"),
            (r#"{"seed": 1.5}"#, "seed"),
            (r#"{"timeout": -1}"#, "timeout"),
            (r#"{"timeout": 1e300}"#, "timeout"),
            (r#"{"model": "other"}"#, "model"),
        ] {
            let error = check(body).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{body}: {error:?}");
            assert_eq!(error.status, if param == "model" { 404 } else { 400 });
        }
    }

    #[test]
    fn what_may_come_first_is_more_than_what_ends_the_output() {
        let nothing = |body: &str| check(body).unwrap().allows_nothing(50);
        assert!(nothing(r#"{"allowed_token_ids": [2, 9, 2], "min_tokens": 1}"#));
        assert!(nothing(
            r#"{"allowed_token_ids": [3], "stop_token_ids": [3], "ignore_eos": true, "min_tokens": 4}"#
        ));
        assert!(!nothing(r#"{"allowed_token_ids": [2, 9]}"#));
        assert!(!nothing(r#"{"allowed_token_ids": [2, 3], "min_tokens": 1}"#));
        assert!(!nothing(r#"{"allowed_token_ids": [2], "ignore_eos": true, "min_tokens": 1}"#));
        assert!(!nothing(r#"{"min_tokens": 1}"#));
        let all: Vec<u32> = (0..50).collect();
        assert!(nothing(&serde_json::json!({"stop_token_ids": all, "min_tokens": 1}).to_string()));
    }

    #[test]
    fn the_completion_must_fit_the_context() {
        let (model, limits) = (model(), Limits::default());
        let max = |asked: Option<u32>, default, min, prompt| {
            max_tokens(asked.map(|max| ("max_tokens", max)), default, min, prompt, &model, &limits)
        };
        assert_eq!(max(None, None, 0, 60), Ok(40));
        assert_eq!(max(None, Some(16), 0, 60), Ok(16));
        assert_eq!(max(None, Some(16), 0, 95), Ok(5));
        assert_eq!(max(Some(40), Some(16), 0, 60), Ok(40));
        assert_eq!(max(Some(41), None, 0, 60).unwrap_err().code, Some("context_length_exceeded"));
        assert_eq!(max(None, None, 0, 99), Ok(1));
        assert_eq!(max(None, None, 0, 100).unwrap_err().code, Some("context_length_exceeded"));
        assert_eq!(max(Some(3), None, 4, 5).unwrap_err().param.as_deref(), Some("min_tokens"));
    }
}
