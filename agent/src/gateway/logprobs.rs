//! Log-probabilities in OpenAI's two forms. They are written with every digit of an f32, so equal bits give equal JSON.

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use super::text::TextModel;
use crate::sampling::{Logprobs, TokenLogprob};

/// What JSON has no number for; OpenAI's own.
const IMPOSSIBLE: f32 = -9999.0;

fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { IMPOSSIBLE }
}

fn text(model: &dyn TextModel, id: u32) -> String {
    String::from_utf8_lossy(&model.token_bytes(id)).into_owned()
}

/// Of a chat completion.
#[derive(Debug, Default, Serialize)]
pub(super) struct ChatLogprobs {
    pub(super) content: Vec<ChatToken>,
    refusal: Option<()>,
}

#[derive(Debug, Serialize)]
pub(super) struct ChatToken {
    #[serde(flatten)]
    token: ChatTop,
    top_logprobs: Vec<ChatTop>,
}

#[derive(Debug, Serialize)]
struct ChatTop {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl ChatTop {
    fn new(model: &dyn TextModel, of: TokenLogprob) -> Self {
        let bytes = model.token_bytes(of.id);
        Self { token: String::from_utf8_lossy(&bytes).into_owned(), logprob: finite(of.logprob), bytes }
    }
}

impl ChatToken {
    pub(super) fn new(model: &dyn TextModel, logprobs: &Logprobs) -> Self {
        Self {
            token: ChatTop::new(model, logprobs.token),
            top_logprobs: logprobs.top.iter().map(|one| ChatTop::new(model, *one)).collect(),
        }
    }
}

/// Of a text completion.
#[derive(Debug, Default, Serialize)]
pub(super) struct TextLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<f32>,
    top_logprobs: Vec<TopMap>,
    text_offset: Vec<usize>,
}

/// Most probable first; of tokens with the same text the most probable.
#[derive(Debug)]
struct TopMap(Vec<(String, f32)>);

impl Serialize for TopMap {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (text, logprob) in &self.0 {
            map.serialize_entry(text, logprob)?;
        }
        map.end()
    }
}

impl TextLogprobs {
    /// `offset` is where the token's text begins, in characters.
    pub(super) fn push(&mut self, model: &dyn TextModel, logprobs: &Logprobs, offset: usize) {
        let mut top: Vec<(String, f32)> = Vec::with_capacity(logprobs.top.len() + 1);
        if !logprobs.top.is_empty() {
            for one in logprobs.top.iter().chain([&logprobs.token]) {
                let text = text(model, one.id);
                if top.iter().all(|(known, _)| *known != text) {
                    top.push((text, finite(one.logprob)));
                }
            }
        }
        self.tokens.push(text(model, logprobs.token.id));
        self.token_logprobs.push(finite(logprobs.token.logprob));
        self.top_logprobs.push(TopMap(top));
        self.text_offset.push(offset);
    }
}
