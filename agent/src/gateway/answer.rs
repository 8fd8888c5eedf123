//! What the answers of both completion endpoints have in common.

use std::sync::{Arc, OnceLock};

use axum::response::Response;
use serde::Serialize;

use super::error::ApiError;
use super::generate::Gateway;
use super::http::Asked;
use super::output::{Outputs, Usage};
use super::params::Params;
use super::sse::{self, Frames};

/// An answer, or an event of one.
#[derive(Serialize)]
pub(super) struct Answer<'a, C> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<C>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
    /// Null in what is said before a rank has taken the request.
    system_fingerprint: Option<&'a str>,
    seed: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prompt_token_ids: Option<&'a [u32]>,
}

/// What all events of one answer share.
pub(super) struct Head {
    pub(super) gateway: Arc<Gateway>,
    pub(super) logprobs: bool,
    pub(super) return_token_ids: bool,
    pub(super) include_usage: bool,
    id: String,
    created: u64,
    seed: u64,
    fingerprint: Arc<OnceLock<Arc<str>>>,
}

impl Head {
    pub(super) fn new(
        kind: &str,
        gateway: Arc<Gateway>,
        asked: &Asked,
        params: &Params,
        outputs: &Outputs,
    ) -> Self {
        Self {
            fingerprint: outputs.fingerprint(),
            gateway,
            logprobs: params.sampling.logprobs.is_some(),
            return_token_ids: params.return_token_ids,
            include_usage: params.include_usage,
            id: format!("{kind}-{}", asked.trace),
            created: asked.created,
            seed: params.sampling.seed,
        }
    }

    /// A whole answer.
    pub(super) fn whole<C>(&self, object: &'static str, choices: Vec<C>, usage: Usage) -> Answer<'_, C> {
        self.answer(object, choices, Some(Some(usage)))
    }

    /// An event. For a client that asked for usage, it is null in all events but the last.
    pub(super) fn event<C>(
        &self,
        object: &'static str,
        choices: Vec<C>,
        usage: Option<Usage>,
    ) -> Answer<'_, C> {
        self.answer(object, choices, self.include_usage.then_some(usage))
    }

    fn answer<C>(
        &self,
        object: &'static str,
        choices: Vec<C>,
        usage: Option<Option<Usage>>,
    ) -> Answer<'_, C> {
        Answer {
            id: &self.id,
            object,
            created: self.created,
            model: self.gateway.model.name(),
            choices,
            usage,
            system_fingerprint: self.fingerprint.get().map(|id| &**id),
            seed: self.seed,
            prompt_token_ids: None,
        }
    }
}

/// Answers in the form the client asked for: event by event, or whole.
pub(super) async fn respond(
    mut outputs: Outputs,
    mut frames: impl Frames,
    stream: bool,
    gateway: &Gateway,
    asked: Asked,
) -> Result<Response, ApiError> {
    if stream {
        return sse::respond(outputs, frames, gateway.pace(), asked.hold()).await;
    }
    let collected = outputs.collect().await?;
    let usage = outputs.usage();
    Ok(frames.whole(collected, usage))
}
