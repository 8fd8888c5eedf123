//! Tools: what a request offers, and the calls in an output.
//!
//! Calls are in the form of the Hermes models, which most chat templates ask for:
//! `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`.

use std::fmt::Write as _;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::config::Limits;
use super::error::ApiError;
use super::stops::held_back;
use crate::sampling::Grammar;

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// The fields of a request about tools.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ToolFields {
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
}

/// What the model may and must call.
#[derive(Clone, Debug, Default)]
pub(super) struct Tools {
    /// As the client gave them, for the chat template.
    pub(super) offered: Option<Vec<Value>>,
    /// Look for calls in the output.
    pub(super) parse: bool,
    /// At most one call.
    pub(super) single: bool,
    /// Calls the output must consist of.
    pub(super) forced: Option<Grammar>,
}

impl ToolFields {
    pub(super) fn check(self, limits: &Limits) -> Result<Tools, ApiError> {
        let tools = self.tools.unwrap_or_default();
        if tools.len() > limits.tools {
            let message = format!("at most {} tools are allowed, got {}", limits.tools, tools.len());
            return Err(ApiError::invalid("tools", message));
        }
        let functions =
            tools.iter().enumerate().map(|(i, tool)| function(i, tool)).collect::<Result<Vec<_>, _>>()?;
        let single = !self.parallel_tool_calls.unwrap_or(true);
        let offered = |tools| Tools { offered: Some(tools), parse: true, single, forced: None };
        let choice = self.tool_choice.unwrap_or(Value::Null);
        let named = choice.pointer("/function/name").and_then(Value::as_str);
        match (choice.as_str(), named) {
            (Some("none"), _) => {
                Ok(Tools { offered: Some(tools).filter(|tools| !tools.is_empty()), ..Tools::default() })
            }
            _ if tools.is_empty() && choice.is_null() => Ok(Tools::default()),
            (Some("auto"), _) if tools.is_empty() => Ok(Tools::default()),
            (Some("auto"), _) => Ok(offered(tools)),
            _ if choice.is_null() => Ok(offered(tools)),
            _ if tools.is_empty() => Err(ApiError::invalid("tool_choice", "tool_choice needs tools")),
            (Some("required"), _) => {
                let forced = Some(forced(&functions, single));
                Ok(Tools { forced, ..offered(tools) })
            }
            (_, Some(name)) => {
                let Some(function) = functions.iter().find(|function| function.name == name) else {
                    let message =
                        format!("tool_choice names the function `{name}`, which is not among the tools");
                    return Err(ApiError::invalid("tool_choice", message));
                };
                let forced = Some(forced(std::slice::from_ref(function), true));
                Ok(Tools { forced, single: true, ..offered(tools) })
            }
            _ => {
                let message = "tool_choice must be auto, none, required or {\"type\": \"function\", \"function\": {\"name\": ...}}";
                Err(ApiError::invalid("tool_choice", message))
            }
        }
    }
}

#[derive(Clone, Debug)]
struct Function {
    name: String,
    parameters: Value,
}

fn function(index: usize, tool: &Value) -> Result<Function, ApiError> {
    let wrong = |what: &str| ApiError::invalid(format!("tools[{index}]"), format!("tools[{index}] {what}"));
    if tool.get("type").and_then(Value::as_str) != Some("function") {
        return Err(wrong("must have the type \"function\""));
    }
    let name = tool
        .pointer("/function/name")
        .and_then(Value::as_str)
        .ok_or_else(|| wrong("has no function.name"))?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
        return Err(wrong(
            "has a function.name that is not 1 to 64 letters, digits, underscores, dots and dashes",
        ));
    }
    let parameters = match tool.pointer("/function/parameters") {
        None | Some(Value::Null) => serde_json::json!({"type": "object"}),
        Some(schema @ Value::Object(_)) => schema.clone(),
        Some(_) => return Err(wrong("has function.parameters that are not a JSON schema")),
    };
    Ok(Function { name: name.to_owned(), parameters })
}

/// A Lark grammar: calls of these functions and nothing else.
fn forced(functions: &[Function], single: bool) -> Grammar {
    let any: Vec<String> = (0..functions.len()).map(|i| format!("call_{i}")).collect();
    let more = if single { "" } else { " (\"\\n\" call)*" };
    let mut grammar = format!("start: call{more}\ncall: {}\n", any.join(" | "));
    for (i, function) in functions.iter().enumerate() {
        let before = format!("{OPEN}\n{{\"name\": \"{}\", \"arguments\": ", function.name);
        // A Rust string literal of this ASCII text is a Lark one too.
        let _ = writeln!(grammar, "call_{i}: {before:?} args_{i} {:?}", format!("}}\n{CLOSE}"));
        let _ = writeln!(grammar, "args_{i}: %json {}", compact(&function.parameters));
    }
    Grammar::Lark(grammar)
}

/// The schema for arguments in one line, as models of this form write calls: a weak model can otherwise fill the answer
/// with white space.
fn compact(schema: &Value) -> Value {
    let mut schema = schema.clone();
    if let Value::Object(fields) = &mut schema {
        let form =
            serde_json::json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "});
        fields.insert("x-guidance".to_owned(), form);
    }
    schema
}

/// A piece of an output that may hold tool calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ToolPiece {
    /// Text for the reader.
    Text(String),
    /// A call.
    Call {
        /// Of which function.
        name: String,
        /// JSON, as the model wrote it.
        arguments: String,
    },
}

#[derive(Deserialize)]
struct Call {
    name: String,
    #[serde(alias = "parameters")]
    arguments: Option<Box<RawValue>>,
}

/// Finds tool calls in a text that comes in pieces.
#[derive(Debug)]
pub(super) struct ToolParser {
    held: String,
    /// Blanks before a call: they belong to its form, and to the text only if it is no call.
    gap: String,
    inside: bool,
    calls: usize,
    single: bool,
}

impl ToolParser {
    pub(super) fn new(single: bool) -> Self {
        Self { held: String::new(), gap: String::new(), inside: false, calls: 0, single }
    }

    /// Calls found so far.
    pub(super) fn calls(&self) -> usize {
        self.calls
    }

    pub(super) fn push(&mut self, text: &str) -> Vec<ToolPiece> {
        self.held.push_str(text);
        let mut out = Vec::new();
        loop {
            let tag = if self.inside { CLOSE } else { OPEN };
            let Some(at) = self.held.find(tag) else { break };
            let rest = self.held.split_off(at + tag.len());
            self.held.truncate(at);
            let mut before = std::mem::replace(&mut self.held, rest);
            if self.inside {
                self.call(&before, CLOSE, &mut out);
            } else {
                self.gap = before.split_off(before.trim_end().len());
                self.text(before, &mut out);
            }
            self.inside = !self.inside;
        }
        if !self.inside {
            let keep = held_back(&self.held, OPEN);
            let blank = self.held[..self.held.len() - keep].trim_end().len();
            let rest = self.held.split_off(blank);
            let before = std::mem::replace(&mut self.held, rest);
            self.text(before, &mut out);
        }
        out
    }

    /// The end of the output: a call that was not closed counts if it is whole.
    pub(super) fn finish(&mut self) -> Vec<ToolPiece> {
        let mut out = Vec::new();
        let rest = std::mem::take(&mut self.held);
        if std::mem::take(&mut self.inside) {
            self.call(&rest, "", &mut out);
        } else {
            self.text(rest, &mut out);
        }
        out
    }

    fn text(&self, text: String, out: &mut Vec<ToolPiece>) {
        let between_calls = self.calls > 0 && text.chars().all(char::is_whitespace);
        if !text.is_empty() && !between_calls {
            out.push(ToolPiece::Text(text));
        }
    }

    fn call(&mut self, json: &str, close: &str, out: &mut Vec<ToolPiece>) {
        let Ok(Call { name, arguments }) = serde_json::from_str(json.trim()) else {
            out.push(ToolPiece::Text(format!("{}{OPEN}{json}{close}", self.gap)));
            return;
        };
        self.calls += 1;
        if self.single && self.calls > 1 {
            return;
        }
        let raw = arguments.as_ref().map_or("{}", |raw| raw.get());
        // Some models quote the object.
        let arguments = serde_json::from_str::<String>(raw).unwrap_or_else(|_| raw.to_owned());
        out.push(ToolPiece::Call { name, arguments });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(pieces: &[&str]) -> (String, Vec<(String, String)>) {
        let mut parser = ToolParser::new(false);
        let mut out: Vec<ToolPiece> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
        out.extend(parser.finish());
        let (mut text, mut calls) = (String::new(), Vec::new());
        for piece in out {
            match piece {
                ToolPiece::Text(more) => text += &more,
                ToolPiece::Call { name, arguments } => calls.push((name, arguments)),
            }
        }
        assert_eq!(parser.calls(), calls.len());
        (text, calls)
    }

    fn call(name: &str, arguments: &str) -> (String, String) {
        (name.to_owned(), arguments.to_owned())
    }

    #[test]
    fn calls_are_found_however_the_text_is_cut() {
        let text = "I look.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"b\": 1, \"a\": [2.50]}}\n</tool_call>\n<tool_call>{\"name\":\"g\"}</tool_call>\n";
        let expected = ("I look.".to_owned(), vec![call("f", "{\"b\": 1, \"a\": [2.50]}"), call("g", "{}")]);
        assert_eq!(parse(&[text]), expected);
        let chars: Vec<String> = text.chars().map(String::from).collect();
        assert_eq!(parse(&chars.iter().map(String::as_str).collect::<Vec<_>>()), expected);
    }

    #[test]
    fn what_is_no_call_stays_text() {
        assert_eq!(parse(&["a <tool", "_box> b \n"]), ("a <tool_box> b \n".into(), vec![]));
        assert_eq!(
            parse(&["x \n<tool_call>no</tool_call> y"]),
            ("x \n<tool_call>no</tool_call> y".into(), vec![])
        );
        assert_eq!(parse(&["x<tool_call>{\"name\""]), ("x<tool_call>{\"name\"".into(), vec![]));
        let after = parse(&["<tool_call>{\"name\": \"f\"}</tool_call> x <"]);
        assert_eq!(after, (" x <".into(), vec![call("f", "{}")]));
        assert_eq!(parse(&["<tool_call>{\"name\": \"f\"}"]).1, [call("f", "{}")]);
        assert_eq!(
            parse(&["<tool_call>{\"name\": \"f\", \"arguments\": \"{\\\"a\\\": 1}\"}"]).1,
            [call("f", "{\"a\": 1}")]
        );
    }

    fn check(body: Value) -> Result<Tools, ApiError> {
        serde_json::from_value::<ToolFields>(body).unwrap().check(&Limits::default())
    }

    #[test]
    fn choices() {
        let tool = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}});
        let tools = json!([tool("f"), tool("g")]);
        let with = |choice: Value| check(json!({"tools": tools, "tool_choice": choice}));
        assert!(check(json!({})).unwrap().offered.is_none());
        assert!(with(Value::Null).unwrap().parse && with(json!("auto")).unwrap().forced.is_none());
        let none = with(json!("none")).unwrap();
        assert!(none.offered.is_some() && !none.parse);
        let Some(Grammar::Lark(any)) = with(json!("required")).unwrap().forced else { panic!() };
        assert_eq!(any.matches("%json").count(), 2);
        let named = with(json!({"type": "function", "function": {"name": "g"}})).unwrap();
        let Some(Grammar::Lark(lark)) = &named.forced else { panic!() };
        assert!(
            lark.contains(r#""<tool_call>\n{\"name\": \"g\", \"arguments\": ""#)
                && !lark.contains("\\\"f\\\""),
            "{lark}"
        );
        assert!(named.single);
        for bad in [json!("sometimes"), json!({"type": "function", "function": {"name": "h"}}), json!(3)] {
            assert_eq!(with(bad).unwrap_err().param.as_deref(), Some("tool_choice"));
        }
        assert!(check(json!({"tool_choice": "required"})).is_err());
        for bad in
            [json!({}), json!({"type": "function"}), json!({"type": "function", "function": {"name": "a b"}})]
        {
            assert_eq!(check(json!({"tools": [bad]})).unwrap_err().param.as_deref(), Some("tools[0]"));
        }
    }
}
