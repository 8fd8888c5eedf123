//! `POST /tokenize` and `POST /detokenize`, in vLLM's form.

use std::sync::Arc;

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::ApiError;
use super::generate::Gateway;
use super::http::Asked;
use super::params::outside;
use super::text::Conversation;
use super::{body, chat};

#[derive(Debug, Deserialize)]
struct Tokenize {
    model: Option<String>,
    prompt: Option<String>,
    add_special_tokens: Option<bool>,
    return_token_strs: Option<bool>,
    tools: Option<Vec<Value>>,
}

/// What is to be tokenized.
enum Source {
    Text(String),
    Chat(Conversation),
}

#[derive(Serialize)]
struct Tokens {
    count: usize,
    max_model_len: usize,
    tokens: Vec<u32>,
    token_strs: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
struct Detokenize {
    model: Option<String>,
    tokens: Vec<u32>,
}

#[derive(Serialize)]
struct Text {
    prompt: String,
}

fn known(gateway: &Gateway, model: Option<&str>) -> Result<(), ApiError> {
    match model {
        Some(name) if !gateway.model.names.iter().any(|known| known == name) => Err(ApiError::model(name)),
        _ => Ok(()),
    }
}

/// Token ids of a prompt, or of a conversation.
pub(super) async fn tokenize(
    gateway: Arc<Gateway>,
    asked: Asked,
    read: body::Read,
) -> Result<Response, ApiError> {
    let deadline = asked.rules(&gateway).deadline(None)?;
    let wanted: Tokenize = body::parse(&read.bytes)?;
    known(&gateway, wanted.model.as_deref())?;
    let (source, special) = if let Some(prompt) = wanted.prompt {
        (Source::Text(prompt), wanted.add_special_tokens.unwrap_or(true))
    } else {
        let mut body: chat::Body = body::parse(&read.bytes)?;
        let (chat, special) = body.conversation(wanted.tools).map_err(|error| {
            if error.param.as_deref() == Some("messages") {
                ApiError::invalid("prompt", "prompt or messages is missing")
            } else {
                error
            }
        })?;
        (Source::Chat(chat), special)
    };
    let (max_model_len, strings) = (gateway.model.context, wanted.return_token_strs.unwrap_or(false));
    let size = read.bytes.len();
    let tokens = gateway
        .with_text(&asked.preparation(read, deadline), size, move |model| {
            let text = match source {
                Source::Text(text) => text,
                Source::Chat(chat) => model.render(&chat)?,
            };
            let tokens = model.encode(&text, special)?;
            let string = |id: &u32| String::from_utf8_lossy(&model.token_bytes(*id)).into_owned();
            let token_strs = strings.then(|| tokens.iter().map(string).collect());
            Ok(Tokens { count: tokens.len(), max_model_len, tokens, token_strs })
        })
        .await?;
    Ok(Json(tokens).into_response())
}

/// The text of token ids, special ones included.
pub(super) async fn detokenize(
    gateway: Arc<Gateway>,
    asked: Asked,
    read: body::Read,
) -> Result<Response, ApiError> {
    let deadline = asked.rules(&gateway).deadline(None)?;
    let wanted: Detokenize = body::parse(&read.bytes)?;
    known(&gateway, wanted.model.as_deref())?;
    let vocab = gateway.model.vocab;
    if let Some(id) = wanted.tokens.iter().find(|id| **id as usize >= vocab) {
        return Err(outside("tokens", *id, vocab));
    }
    let (preparation, tokens) = (asked.preparation(read, deadline), wanted.tokens);
    let prompt =
        gateway.with_text(&preparation, tokens.len(), move |model| Ok(model.decode(&tokens, false))).await?;
    Ok(Json(Text { prompt }).into_response())
}
