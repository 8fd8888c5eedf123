//! `POST /v1/chat/completions`.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::answer::{Head, respond};
use super::body;
use super::choice::{Finish, Piece, StopCause, TokenOut};
use super::error::ApiError;
use super::generate::{Gateway, Prompt};
use super::http::Asked;
use super::logprobs::{ChatLogprobs, ChatToken};
use super::output::{Collected, Usage};
use super::params::{self, Fields};
use super::sse::Frames;
use super::structured::Structured;
use super::text::Conversation;
use super::tools::{ToolFields, ToolParser, ToolPiece};

#[derive(Debug, Deserialize)]
pub(super) struct Body {
    messages: Option<Vec<Map<String, Value>>>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    logprobs: Option<bool>,
    top_logprobs: Option<u32>,
    add_generation_prompt: Option<bool>,
    continue_final_message: Option<bool>,
    chat_template_kwargs: Option<Map<String, Value>>,
    add_special_tokens: Option<bool>,
}

impl Body {
    /// The conversation as the template wants it, and whether the tokenizer adds its special tokens.
    pub(super) fn conversation(
        &mut self,
        tools: Option<Vec<Value>>,
    ) -> Result<(Conversation, bool), ApiError> {
        let messages = self.messages.take().unwrap_or_default();
        if messages.is_empty() {
            return Err(ApiError::invalid("messages", "messages must hold at least one message"));
        }
        let messages = messages
            .into_iter()
            .enumerate()
            .map(|(index, message)| normal(index, message).map(Value::Object))
            .collect::<Result<Vec<_>, _>>()?;
        let continue_final_message = self.continue_final_message.unwrap_or(false);
        let add_generation_prompt = self.add_generation_prompt.unwrap_or(!continue_final_message);
        if continue_final_message && add_generation_prompt {
            let message = "continue_final_message and add_generation_prompt exclude each other";
            return Err(ApiError::invalid("continue_final_message", message));
        }
        let kwargs = self.chat_template_kwargs.take().unwrap_or_default();
        let chat = Conversation { messages, tools, add_generation_prompt, continue_final_message, kwargs };
        Ok((chat, self.add_special_tokens.unwrap_or(false)))
    }
}

/// One message in the form chat templates expect: content is text, arguments of tool calls are objects.
fn normal(index: usize, mut message: Map<String, Value>) -> Result<Map<String, Value>, ApiError> {
    let wrong = |field: &str, what: &str| {
        ApiError::invalid(format!("messages[{index}].{field}"), format!("messages[{index}].{field} {what}"))
    };
    let role = match message.get("role").and_then(Value::as_str) {
        // Templates know the older name.
        Some("developer") => "system",
        Some(role @ ("system" | "user" | "assistant" | "tool" | "function")) => role,
        Some(_) => return Err(wrong("role", "must be system, developer, user, assistant or tool")),
        None => return Err(wrong("role", "is missing")),
    }
    .to_owned();
    let content = match message.remove("content") {
        None | Some(Value::Null) => {
            let called =
                message.get("tool_calls").and_then(Value::as_array).is_some_and(|calls| !calls.is_empty());
            if role != "assistant" || !called {
                return Err(wrong("content", "is missing"));
            }
            String::new()
        }
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => {
            let texts = parts.iter().map(|part| match part.get("type").and_then(Value::as_str) {
                Some("text") => part
                    .get("text")
                    .and_then(Value::as_str)
                    .ok_or_else(|| wrong("content", "has a part without text")),
                _ => Err(wrong("content", "may hold parts of the type text only")),
            });
            texts.collect::<Result<Vec<_>, _>>()?.join("\n")
        }
        Some(_) => return Err(wrong("content", "must be a text or a list of parts")),
    };
    if let Some(calls) = message.get_mut("tool_calls").and_then(Value::as_array_mut) {
        for call in calls {
            let Some(arguments) = call.pointer_mut("/function/arguments") else {
                return Err(wrong("tool_calls", "has a call without function.arguments"));
            };
            if let Some(text) = arguments.as_str()
                && let Ok(object @ Value::Object(_)) = serde_json::from_str(text)
            {
                *arguments = object;
            }
        }
    }
    message.insert("role".to_owned(), Value::String(role));
    message.insert("content".to_owned(), Value::String(content));
    Ok(message)
}

#[derive(Serialize)]
struct Choice {
    index: usize,
    message: Message,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    stop_reason: StopCause,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

#[derive(Serialize)]
struct Message {
    role: &'static str,
    content: Option<String>,
    refusal: Option<()>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
}

#[derive(Serialize)]
struct ChunkChoice {
    index: usize,
    delta: Delta,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<StopCause>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

#[derive(Default, Serialize)]
struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
}

#[derive(Serialize)]
struct ToolCall {
    /// Only in a stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    function: FunctionCall,
}

#[derive(Serialize)]
struct FunctionCall {
    name: String,
    arguments: String,
}

impl ToolCall {
    fn new(index: Option<usize>, name: String, arguments: String) -> Self {
        let id = format!("call_{:016x}", rand::random::<u64>());
        Self { index, id, kind: "function", function: FunctionCall { name, arguments } }
    }
}

/// How this endpoint writes its answers.
struct Writer {
    head: Head,
    prompt: Arc<[u32]>,
    /// By choice, where tool calls are looked for.
    parsers: Vec<Option<ToolParser>>,
}

impl Writer {
    fn logprobs(&self, tokens: &[TokenOut]) -> Option<ChatLogprobs> {
        self.head.logprobs.then(|| {
            let found = tokens.iter().filter_map(|token| token.logprobs.as_deref());
            let mut all = ChatLogprobs::default();
            all.content.extend(found.map(|logprobs| ChatToken::new(&*self.head.gateway.text, logprobs)));
            all
        })
    }

    fn prompt(&self) -> Option<&[u32]> {
        self.head.return_token_ids.then_some(&*self.prompt)
    }

    fn event(
        &self,
        choice: Option<ChunkChoice>,
        usage: Option<Usage>,
        prompt: bool,
        out: &mut VecDeque<String>,
    ) {
        let mut answer = self.head.event("chat.completion.chunk", choice.into_iter().collect(), usage);
        answer.prompt_token_ids = self.prompt().filter(|_| prompt);
        out.extend(serde_json::to_string(&answer));
    }

    /// Text and tool calls of a choice's text; with `end` all that was held back too.
    fn pieces(&mut self, index: usize, text: String, end: bool) -> Vec<ToolPiece> {
        let Some(parser) = &mut self.parsers[index] else {
            return vec![ToolPiece::Text(text)];
        };
        let mut pieces = parser.push(&text);
        if end {
            pieces.extend(parser.finish());
        }
        pieces
    }

    fn reason(&self, index: usize, finish: &Finish) -> &'static str {
        match finish.reason() {
            "stop" if self.parsers[index].as_ref().is_some_and(|parser| parser.calls() > 0) => "tool_calls",
            reason => reason,
        }
    }

    fn choice(&mut self, index: usize, collected: Collected) -> Choice {
        let token_ids = self.head.return_token_ids.then(|| collected.ids());
        let logprobs = self.logprobs(&collected.tokens);
        let (mut text, mut tool_calls) = (String::new(), Vec::new());
        for piece in self.pieces(index, collected.text, true) {
            match piece {
                ToolPiece::Text(more) => text += &more,
                ToolPiece::Call { name, arguments } => tool_calls.push(ToolCall::new(None, name, arguments)),
            }
        }
        let finish_reason = collected.finish.as_ref().map(|finish| self.reason(index, finish));
        Choice {
            index,
            message: Message {
                role: "assistant",
                content: Some(text).filter(|text| !text.is_empty() || tool_calls.is_empty()),
                refusal: None,
                tool_calls,
            },
            logprobs,
            finish_reason,
            stop_reason: collected.finish.map_or(StopCause::None(()), |finish| finish.cause),
            token_ids,
        }
    }
}

impl Frames for Writer {
    fn begin(&mut self, out: &mut VecDeque<String>) {
        for index in 0..self.parsers.len() {
            let delta = Delta { role: Some("assistant"), content: Some(String::new()), ..Delta::default() };
            let choice = ChunkChoice {
                index,
                delta,
                logprobs: None,
                finish_reason: None,
                stop_reason: None,
                token_ids: None,
            };
            self.event(Some(choice), None, true, out);
        }
    }

    fn piece(&mut self, index: usize, piece: Piece, out: &mut VecDeque<String>) {
        let end = piece.finish.is_some();
        let mut delta = Delta::default();
        let before = self.parsers[index].as_ref().map_or(0, ToolParser::calls);
        let mut text = String::new();
        for piece in self.pieces(index, piece.text, end) {
            match piece {
                ToolPiece::Text(more) => text += &more,
                ToolPiece::Call { name, arguments } => {
                    let at = Some(before + delta.tool_calls.len());
                    delta.tool_calls.push(ToolCall::new(at, name, arguments));
                }
            }
        }
        delta.content = Some(text).filter(|text| !text.is_empty());
        let tokens: Vec<TokenOut> = piece.token.into_iter().collect();
        let choice = ChunkChoice {
            index,
            logprobs: self.logprobs(&tokens).filter(|logprobs| !logprobs.content.is_empty()),
            finish_reason: piece.finish.as_ref().map(|finish| self.reason(index, finish)),
            stop_reason: piece.finish.map(|finish| finish.cause),
            token_ids: Some(tokens.iter().map(|token| token.id).collect::<Vec<_>>())
                .filter(|ids| self.head.return_token_ids && !ids.is_empty()),
            delta,
        };
        let said = choice.delta.content.is_some() || !choice.delta.tool_calls.is_empty();
        if said || end || choice.logprobs.is_some() || choice.token_ids.is_some() {
            self.event(Some(choice), None, false, out);
        }
    }

    fn end(&mut self, usage: Usage, out: &mut VecDeque<String>) {
        if self.head.include_usage {
            self.event(None, Some(usage), false, out);
        }
    }

    fn whole(&mut self, collected: Vec<Collected>, usage: Usage) -> Response {
        let choices = collected
            .into_iter()
            .enumerate()
            .map(|(index, collected)| self.choice(index, collected))
            .collect();
        let mut answer = self.head.whole("chat.completion", choices, usage);
        answer.prompt_token_ids = self.prompt();
        Json(answer).into_response()
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
    let tools: ToolFields = body::parse(&read.bytes)?;
    let mut body: Body = body::parse(&read.bytes)?;
    let wanted = body.logprobs.unwrap_or(false);
    if body.top_logprobs.is_some_and(|top| top > 0) && !wanted {
        return Err(ApiError::invalid("top_logprobs", "top_logprobs needs logprobs to be true"));
    }
    let logprobs = wanted.then(|| body.top_logprobs.unwrap_or(0));
    let params = Arc::new(fields.check(logprobs, &asked.rules(&gateway))?);
    let tools = tools.check(&gateway.limits)?;
    let (chat, special) = body.conversation(tools.offered)?;
    let size = read.bytes.len();
    let preparation = asked.preparation(read, params.deadline);
    let ids = gateway
        .with_text(&preparation, size, move |model| Ok(model.encode(&model.render(&chat)?, special)?))
        .await?;
    let asked_max = match (body.max_completion_tokens, body.max_tokens) {
        (Some(max), _) => Some(("max_completion_tokens", max)),
        (None, Some(max)) => Some(("max_tokens", max)),
        (None, None) => None,
    };
    let max_tokens =
        params::max_tokens(asked_max, None, params.min_tokens, ids.len(), &gateway.model, &gateway.limits)
            .map_err(|error| {
                if error.param.as_deref() == Some("prompt") {
                    ApiError { param: Some("messages".into()), ..error }
                } else {
                    error
                }
            })?;
    let grammar = match (structured.grammar()?, tools.forced) {
        (Some(_), Some(_)) => {
            let message = "a forced tool call and a response format exclude each other";
            return Err(ApiError::invalid("tool_choice", message));
        }
        (Some(grammar), None) => Some(gateway.compile(&preparation, grammar).await?),
        (None, Some(forced)) => Some(
            gateway
                .compile(&preparation, forced)
                .await
                .map_err(|error| ApiError { param: Some("tools".into()), ..error })?,
        ),
        (None, None) => None,
    };
    let prompt = Prompt { ids: ids.into(), max_tokens };
    let outputs = gateway.start(std::slice::from_ref(&prompt), &params, grammar.as_ref(), &asked.trace)?;
    drop(preparation);
    let writer = Writer {
        head: Head::new("chatcmpl", gateway.clone(), &asked, &params, &outputs),
        prompt: prompt.ids,
        parsers: (0..outputs.choices()).map(|_| tools.parse.then(|| ToolParser::new(tools.single))).collect(),
    };
    respond(outputs, writer, params.stream, &gateway, asked).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn one(message: Value) -> Result<Value, ApiError> {
        let Value::Object(message) = message else { panic!() };
        normal(2, message).map(Value::Object)
    }

    #[test]
    fn messages_take_the_form_templates_expect() {
        assert_eq!(
            one(json!({"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]})).unwrap(),
            json!({"role": "system", "content": "a\nb"})
        );
        let call = |arguments| json!({"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}});
        assert_eq!(
            one(json!({"role": "assistant", "content": null, "tool_calls": [call(json!("{\"x\": 1}"))]}))
                .unwrap(),
            json!({"role": "assistant", "content": "", "tool_calls": [call(json!({"x": 1}))]})
        );
    }

    #[test]
    fn messages_that_are_none_are_named() {
        for (message, param) in [
            (json!({"content": "a"}), "messages[2].role"),
            (json!({"role": "robot", "content": "a"}), "messages[2].role"),
            (json!({"role": "user"}), "messages[2].content"),
            (json!({"role": "assistant", "content": null}), "messages[2].content"),
            (json!({"role": "user", "content": 3}), "messages[2].content"),
            (json!({"role": "user", "content": [{"type": "image_url"}]}), "messages[2].content"),
            (json!({"role": "assistant", "content": "", "tool_calls": [{}]}), "messages[2].tool_calls"),
        ] {
            assert_eq!(one(message).unwrap_err().param.as_deref(), Some(param));
        }
    }
}
