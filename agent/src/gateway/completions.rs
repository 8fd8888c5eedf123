//! `POST /v1/completions`.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::answer::{Head, respond};
use super::body;
use super::choice::{Finish, Piece, StopCause, TokenOut};
use super::error::ApiError;
use super::generate::{Gateway, Prompt};
use super::http::Asked;
use super::logprobs::TextLogprobs;
use super::output::{Collected, Usage};
use super::params::{self, Fields};
use super::sse::Frames;
use super::structured::Structured;
use super::text::TextModel;
use super::work::Preparation;

/// OpenAI's, for requests that say nothing.
const MAX_TOKENS: u32 = 16;

#[derive(Debug, Deserialize)]
struct Body {
    prompt: Option<Prompts>,
    max_tokens: Option<u32>,
    logprobs: Option<u32>,
    echo: Option<bool>,
    suffix: Option<String>,
    best_of: Option<u32>,
    add_special_tokens: Option<bool>,
}

/// Text, texts, token ids, or lists of token ids.
#[derive(Debug, PartialEq)]
enum Prompts {
    Texts(Vec<String>),
    Ids(Vec<Vec<u32>>),
}

impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PromptsVisitor)
    }
}

struct PromptsVisitor;

/// An element of a list of prompts.
enum Item {
    Text(String),
    Id(u32),
    Ids(Vec<u32>),
}

impl<'de> Visitor<'de> for PromptsVisitor {
    type Value = Prompts;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a text, a list of texts, a list of token ids, or a list of lists of token ids")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Prompts, E> {
        Ok(Prompts::Texts(vec![text.to_owned()]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Prompts, A::Error> {
        let mixed = || de::Error::invalid_type(de::Unexpected::Other("a mixed list"), &PromptsVisitor);
        let Some(first) = seq.next_element()? else {
            return Err(de::Error::invalid_length(0, &"at least one prompt"));
        };
        match first {
            Item::Text(first) => {
                let mut texts = vec![first];
                while let Some(next) = seq.next_element()? {
                    let Item::Text(next) = next else { return Err(mixed()) };
                    texts.push(next);
                }
                Ok(Prompts::Texts(texts))
            }
            Item::Id(first) => {
                let mut ids = vec![first];
                while let Some(next) = seq.next_element()? {
                    let Item::Id(next) = next else { return Err(mixed()) };
                    ids.push(next);
                }
                Ok(Prompts::Ids(vec![ids]))
            }
            Item::Ids(first) => {
                let mut lists = vec![first];
                while let Some(next) = seq.next_element()? {
                    let Item::Ids(next) = next else { return Err(mixed()) };
                    lists.push(next);
                }
                Ok(Prompts::Ids(lists))
            }
        }
    }
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ItemVisitor)
    }
}

struct ItemVisitor;

impl<'de> Visitor<'de> for ItemVisitor {
    type Value = Item;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a text, a token id (an integer from 0 to 4294967295), or a list of token ids")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Item, E> {
        Ok(Item::Text(text.to_owned()))
    }

    fn visit_u64<E: de::Error>(self, id: u64) -> Result<Item, E> {
        u32::try_from(id).map(Item::Id).map_err(|_| E::invalid_value(de::Unexpected::Unsigned(id), &self))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Item, A::Error> {
        let mut ids = Vec::new();
        while let Some(id) = seq.next_element()? {
            ids.push(id);
        }
        Ok(Item::Ids(ids))
    }
}

#[derive(Serialize)]
struct Choice {
    index: usize,
    text: String,
    logprobs: Option<TextLogprobs>,
    finish_reason: Option<&'static str>,
    stop_reason: StopCause,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Arc<[u32]>>,
}

impl Choice {
    fn finish(&mut self, finish: Option<Finish>) {
        if let Some(finish) = finish {
            self.finish_reason = Some(finish.reason());
            self.stop_reason = finish.cause;
        }
    }
}

/// How this endpoint writes its answers.
struct Writer {
    head: Head,
    /// Choices of each prompt.
    n: usize,
    /// With `echo`: the text that each choice begins with, by prompt.
    echoes: Option<Vec<String>>,
    prompts: Vec<Arc<[u32]>>,
    /// Where the next token's text begins, by choice.
    offsets: Vec<usize>,
}

impl Writer {
    fn choice(&self, index: usize) -> Choice {
        Choice {
            index,
            text: String::new(),
            logprobs: None,
            finish_reason: None,
            stop_reason: StopCause::None(()),
            token_ids: None,
            prompt_token_ids: None,
        }
    }

    fn opening(&self, index: usize) -> Choice {
        let mut choice = self.choice(index);
        let prompt = index / self.n;
        if let Some(echoes) = &self.echoes {
            choice.text.clone_from(&echoes[prompt]);
        }
        if self.head.return_token_ids {
            choice.prompt_token_ids = Some(self.prompts[prompt].clone());
            choice.token_ids = Some(Vec::new());
        }
        choice
    }

    fn tokens<'a>(&mut self, choice: &mut Choice, tokens: impl Iterator<Item = &'a TokenOut> + Clone) {
        if self.head.return_token_ids {
            choice.token_ids = Some(tokens.clone().map(|token| token.id).collect());
        }
        if self.head.logprobs {
            let offset = &mut self.offsets[choice.index];
            let model: &dyn TextModel = &*self.head.gateway.text;
            let logprobs = choice.logprobs.get_or_insert_default();
            for token in tokens {
                if let Some(found) = token.logprobs.as_deref() {
                    logprobs.push(model, found, *offset);
                }
                *offset += token.chars;
            }
        }
    }

    fn event(&self, choices: Vec<Choice>, usage: Option<Usage>, out: &mut VecDeque<String>) {
        out.extend(serde_json::to_string(&self.head.event("text_completion", choices, usage)));
    }
}

impl Frames for Writer {
    fn begin(&mut self, out: &mut VecDeque<String>) {
        if self.echoes.is_some() || self.head.return_token_ids {
            for index in 0..self.offsets.len() {
                self.event(vec![self.opening(index)], None, out);
            }
        }
    }

    fn piece(&mut self, index: usize, piece: Piece, out: &mut VecDeque<String>) {
        let mut choice = self.choice(index);
        self.tokens(&mut choice, piece.token.iter());
        choice.text = piece.text;
        choice.finish(piece.finish);
        let said = !choice.text.is_empty() || choice.token_ids.as_ref().is_some_and(|ids| !ids.is_empty());
        if said || choice.logprobs.is_some() || choice.finish_reason.is_some() {
            self.event(vec![choice], None, out);
        }
    }

    fn end(&mut self, usage: Usage, out: &mut VecDeque<String>) {
        if self.head.include_usage {
            self.event(Vec::new(), Some(usage), out);
        }
    }

    fn whole(&mut self, collected: Vec<Collected>, usage: Usage) -> Response {
        let choices = collected
            .into_iter()
            .enumerate()
            .map(|(index, collected)| {
                let mut choice = self.opening(index);
                choice.text += &collected.text;
                self.tokens(&mut choice, collected.tokens.iter());
                choice.finish(collected.finish);
                choice
            })
            .collect();
        Json(self.head.whole("text_completion", choices, usage)).into_response()
    }
}

/// Answers a request.
pub(super) async fn answer(
    gateway: Arc<Gateway>,
    asked: Asked,
    read: body::Read,
) -> Result<Response, ApiError> {
    let fields: Fields = body::parse(&read.bytes)?;
    let structured: Structured = body::parse(&read.bytes)?;
    let body: Body = body::parse(&read.bytes)?;
    let params = Arc::new(fields.check(body.logprobs, &asked.rules(&gateway))?);
    let echo = body.echo.unwrap_or(false);
    if body.suffix.is_some_and(|suffix| !suffix.is_empty()) {
        return Err(ApiError::invalid("suffix", "suffix is not supported"));
    }
    if body.best_of.is_some_and(|best_of| best_of != u32::from(params.n)) {
        return Err(ApiError::invalid("best_of", "best_of is not supported; ask for n choices"));
    }
    if echo && body.logprobs.is_some() {
        let message = "logprobs of an echoed prompt are not supported";
        return Err(ApiError::invalid("logprobs", message));
    }
    let prompts = body.prompt.ok_or_else(|| ApiError::invalid("prompt", "prompt is missing"))?;
    let special = body.add_special_tokens.unwrap_or(true);
    let preparation = asked.preparation(read, params.deadline);
    let echo = echo.then_some(params.skip_special);
    let (ids, echoes) = encode(&gateway, &preparation, prompts, special, echo).await?;
    let asked_max = body.max_tokens.map(|max| ("max_tokens", max));
    let prompts = ids
        .into_iter()
        .map(|ids| {
            let max_tokens = params::max_tokens(
                asked_max,
                Some(MAX_TOKENS.max(params.min_tokens)),
                params.min_tokens,
                ids.len(),
                &gateway.model,
                &gateway.limits,
            )?;
            Ok(Prompt { ids: ids.into(), max_tokens })
        })
        .collect::<Result<Vec<_>, ApiError>>()?;
    let grammar = match structured.grammar()? {
        Some(grammar) => Some(gateway.compile(&preparation, grammar).await?),
        None => None,
    };
    let outputs = gateway.start(&prompts, &params, grammar.as_ref(), &asked.trace)?;
    drop(preparation);
    let writer = Writer {
        head: Head::new("cmpl", gateway.clone(), &asked, &params, &outputs),
        n: usize::from(params.n),
        offsets: vec![0; outputs.choices()],
        echoes,
        prompts: prompts.into_iter().map(|prompt| prompt.ids).collect(),
    };
    respond(outputs, writer, params.stream, &gateway, asked).await
}

type Encoded = (Vec<Vec<u32>>, Option<Vec<String>>);

/// Token ids of each prompt; with `echo` also their texts, in which special tokens are skipped or not.
async fn encode(
    gateway: &Gateway,
    preparation: &Preparation,
    prompts: Prompts,
    special: bool,
    echo: Option<bool>,
) -> Result<Encoded, ApiError> {
    let (count, size) = match &prompts {
        Prompts::Texts(texts) => (texts.len(), texts.iter().map(String::len).sum()),
        Prompts::Ids(lists) => (lists.len(), echo.map_or(0, |_| lists.iter().map(Vec::len).sum())),
    };
    if count > gateway.limits.prompts {
        let message = format!("at most {} prompts are allowed, got {count}", gateway.limits.prompts);
        return Err(ApiError::invalid("prompt", message));
    }
    gateway
        .with_text(preparation, size, move |model| match prompts {
            Prompts::Ids(lists) => {
                let echoes = echo
                    .map(|skip_special| lists.iter().map(|ids| model.decode(ids, skip_special)).collect());
                Ok((lists, echoes))
            }
            Prompts::Texts(texts) => {
                let ids = texts.iter().map(|text| model.encode(text, special));
                Ok((ids.collect::<Result<_, _>>()?, echo.map(|_| texts)))
            }
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompts(json: &str) -> Result<Prompts, ApiError> {
        body::parse::<Body>(format!("{{\"prompt\": {json}}}").as_bytes()).map(|body| body.prompt.unwrap())
    }

    #[test]
    fn a_prompt_has_four_forms() {
        assert_eq!(prompts("\"a\"").unwrap(), Prompts::Texts(vec!["a".into()]));
        assert_eq!(prompts("[\"a\", \"b\"]").unwrap(), Prompts::Texts(vec!["a".into(), "b".into()]));
        assert_eq!(prompts("[1, 2]").unwrap(), Prompts::Ids(vec![vec![1, 2]]));
        assert_eq!(prompts("[[1], [2, 3]]").unwrap(), Prompts::Ids(vec![vec![1], vec![2, 3]]));
    }

    #[test]
    fn another_form_is_refused_by_name() {
        for json in ["[]", "1", "[1, \"a\"]", "[[1], 2]", "[-1]", "[4294967296]", "[1.5]", "{}", "[[[1]]]"] {
            let error = prompts(json).unwrap_err();
            assert_eq!(
                (error.status.as_u16(), error.code),
                (400, Some("invalid_value")),
                "{json}: {}",
                error.message
            );
            assert!(
                error.param.as_deref().is_some_and(|param| param.starts_with("prompt")),
                "{json}: {error:?}"
            );
        }
    }
}
