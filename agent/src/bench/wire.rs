//! The part of the OpenAI API that the load generator speaks.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::options::{BenchOptions, Endpoint};
use super::workload::{Item, Prompt};

/// One event of a stream, or a whole answer; the fields that matter.
#[derive(Debug, Deserialize)]
pub(super) struct Answer<'a> {
    #[serde(borrow, default)]
    pub(super) choices: Vec<Choice<'a>>,
    #[serde(default)]
    pub(super) usage: Option<Usage>,
    #[serde(borrow, default)]
    pub(super) error: Option<Fault<'a>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Choice<'a> {
    #[serde(default)]
    pub(super) token_ids: Option<Vec<u32>>,
    #[serde(borrow, default)]
    pub(super) finish_reason: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    text: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    delta: Option<Delta<'a>>,
}

#[derive(Debug, Deserialize)]
struct Delta<'a> {
    #[serde(borrow, default)]
    content: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    reasoning_content: Option<Cow<'a, str>>,
}

impl Choice<'_> {
    /// Whether it brings any text.
    pub(super) fn has_text(&self) -> bool {
        let delta = self.delta.as_ref();
        [
            self.text.as_ref(),
            delta.and_then(|d| d.content.as_ref()),
            delta.and_then(|d| d.reasoning_content.as_ref()),
        ]
        .into_iter()
        .flatten()
        .any(|t| !t.is_empty())
    }
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Usage {
    #[serde(default)]
    pub(super) prompt_tokens: u64,
    #[serde(default)]
    pub(super) completion_tokens: u64,
}

#[derive(Debug, Deserialize)]
pub(super) struct Fault<'a> {
    #[serde(borrow, default)]
    pub(super) message: Option<Cow<'a, str>>,
}

/// The request's path below `/v1`.
pub(super) fn path(endpoint: Endpoint) -> &'static str {
    match endpoint {
        Endpoint::Completions => "/completions",
        Endpoint::Chat => "/chat/completions",
    }
}

/// The request's body. Fields the user gave win.
pub(super) fn body(options: &BenchOptions, model: &str, item: &Item, index: u64) -> Vec<u8> {
    let mut map = Map::new();
    let mut put = |key: &str, value: Value| {
        map.insert(key.into(), value);
    };
    put("model", json!(model));
    let limit = match options.endpoint {
        Endpoint::Completions => {
            put(
                "prompt",
                match &item.prompt {
                    Prompt::Text(text) => json!(text.as_ref()),
                    Prompt::Ids(ids) => json!(ids.as_ref()),
                },
            );
            "max_tokens"
        }
        Endpoint::Chat => {
            let content = match &item.prompt {
                Prompt::Text(text) => text.to_string(),
                // Chat takes no ids: as many words instead.
                Prompt::Ids(ids) => ids.iter().map(|id| format!("{id} ")).collect(),
            };
            put("messages", json!([{ "role": "user", "content": content }]));
            "max_completion_tokens"
        }
    };
    put(limit, json!(item.output));
    put("temperature", json!(options.temperature));
    if options.temperature > 0.0 {
        put("seed", json!(options.seed.wrapping_add(index) >> 1));
    }
    if !options.allow_eos {
        put("ignore_eos", json!(true));
    }
    if options.stream {
        put("stream", json!(true));
        put("stream_options", json!({ "include_usage": true }));
        put("return_token_ids", json!(true));
    }
    for (key, value) in &options.extra {
        put(key, value.clone());
    }
    Value::Object(map).to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::fake::options;

    #[test]
    fn a_body_asks_for_what_the_item_says() {
        let item = Item { prompt: Prompt::Ids([1, 2].into()), output: 9 };
        let o = options("http://unused");
        let v: Value = serde_json::from_slice(&body(&o, "m", &item, 0)).unwrap();
        assert_eq!(v["prompt"], json!([1, 2]));
        assert_eq!(
            (&v["max_tokens"], &v["ignore_eos"], &v["return_token_ids"]),
            (&json!(9), &json!(true), &json!(true))
        );
        let mut chat = BenchOptions { endpoint: Endpoint::Chat, stream: false, allow_eos: true, ..o };
        chat.extra.insert("top_k".into(), json!(5));
        chat.extra.insert("temperature".into(), json!(0.5));
        let item = Item { prompt: Prompt::Text("hi".into()), output: 9 };
        let v: Value = serde_json::from_slice(&body(&chat, "m", &item, 0)).unwrap();
        assert_eq!(v["messages"][0]["content"], "hi");
        assert_eq!(
            (&v["max_completion_tokens"], &v["top_k"], &v["temperature"]),
            (&json!(9), &json!(5), &json!(0.5))
        );
        assert!(v.get("stream").is_none() && v.get("ignore_eos").is_none());
    }

    #[test]
    fn escaped_text_is_read_too() {
        let a: Answer = serde_json::from_str(r#"{"choices":[{"delta":{"content":"\n\u00e9"}}]}"#).unwrap();
        assert!(a.choices[0].has_text());
        let a: Answer =
            serde_json::from_str(r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#).unwrap();
        assert!(!a.choices[0].has_text());
    }
}
