//! From the messages of a conversation to the text a model was trained on, by the model's own Jinja template.
//!
//! The environment is that of transformers' `apply_chat_template`: its globals, its `tojson`, its white-space rules.

mod dumps;
mod sources;

use std::error::Error as _;
use std::fmt;
use std::path::PathBuf;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value as JinjaValue};
use minijinja::{AutoEscape, Environment, ErrorKind, context};
use serde_json::{Map, Value};

use super::files::{FileError, ModelFiles};

/// Work that one rendering may cost, in minijinja's units (an instruction, or 64 bytes): a second or so. Templates are
/// the model's and messages the client's; together they must not be able to hold a thread.
const FUEL: u64 = 10_000_000;

/// Stands at the end of a message that is to be continued. The blank tells whether the template trims messages.
const END: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// Fields in which clients send a model's reasoning. A template reads one of the first two.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// What is wrong with a chat template, or with a conversation for it.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// A file could not be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file is not what it should be.
    #[error("{}: {reason}", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A template is not Jinja.
    #[error("{}: the chat template `{name}` does not compile: {reason}", path.display())]
    Template {
        /// The file.
        path: PathBuf,
        /// The template's name.
        name: String,
        /// What the compiler says.
        reason: String,
    },
    /// The template refuses the conversation: the client's mistake, in the template's words.
    #[error("the model's chat template refuses the conversation: {0}")]
    Refused(String),
    /// The template fails on the conversation.
    #[error("the model's chat template fails on the conversation: {0}")]
    Render(String),
    /// There are several templates, and none for this.
    #[error("the model has no chat template for this; it has {0}")]
    NoDefault(String),
    /// The last message has no text, or the template does not show it as it is.
    #[error(
        "continue_final_message is set, but the model's chat template does not show the last message's text"
    )]
    NothingToContinue,
    /// There is nothing to render.
    #[error("the conversation is empty; send at least one message")]
    Empty,
}

/// A conversation to render.
#[derive(Clone, Copy, Debug, Default)]
pub struct Conversation<'a> {
    /// The messages, objects as the client sent them.
    pub messages: &'a [Value],
    /// Tools, as JSON schemas.
    pub tools: Option<&'a [Value]>,
    /// Documents to answer from.
    pub documents: Option<&'a [Value]>,
    /// The text ends where the assistant's answer begins.
    pub add_generation_prompt: bool,
    /// The text ends within the last message, for the model to go on with it.
    pub continue_final_message: bool,
    /// Further variables for the template, such as `enable_thinking`.
    pub variables: Option<&'a Map<String, Value>>,
}

/// The chat templates of a model.
#[derive(Debug)]
pub struct ChatTemplates {
    environment: Environment<'static>,
    names: Vec<String>,
    /// `bos_token` and its like, as text.
    special: Map<String, Value>,
}

impl ChatTemplates {
    /// Reads a model's templates; `None` if it has none.
    ///
    /// # Errors
    /// A file is broken, or a template does not compile.
    pub fn open(files: &ModelFiles) -> Result<Option<Self>, ChatError> {
        let sources = sources::read(files)?;
        if sources.templates.is_empty() {
            return Ok(None);
        }
        let mut environment = environment();
        let mut names = Vec::new();
        for (name, template) in sources.templates {
            let text = without_generation_marks(&template.text);
            environment.add_template_owned(name.clone(), text).map_err(|error| ChatError::Template {
                path: template.path,
                name: name.clone(),
                reason: error.to_string(),
            })?;
            names.push(name);
        }
        Ok(Some(Self { environment, names, special: sources.special }))
    }

    /// The text of a conversation. Encode it without adding special tokens: they are in it.
    ///
    /// # Errors
    /// The template refuses or fails, or there is no message.
    pub fn render(&self, conversation: &Conversation<'_>) -> Result<String, ChatError> {
        if conversation.messages.is_empty() {
            return Err(ChatError::Empty);
        }
        let has = |name: &str| self.names.iter().any(|known| known == name);
        let name = if conversation.tools.is_some() && has("tool_use") { "tool_use" } else { "default" };
        let template =
            self.environment.get_template(name).map_err(|_| ChatError::NoDefault(self.names.join(", ")))?;
        let mut variables = self.special.clone();
        if let Some(more) = conversation.variables {
            variables.extend(more.iter().map(|(name, value)| (name.clone(), value.clone())));
        }
        let mut messages: Vec<Value> = conversation.messages.iter().map(normalised).collect();
        let last = if conversation.continue_final_message { mark_end(&mut messages)? } else { String::new() };
        let own = context! {
            messages => JinjaValue::from(Serde(&messages)),
            tools => JinjaValue::from(Serde(conversation.tools)),
            documents => JinjaValue::from(Serde(conversation.documents)),
            add_generation_prompt => conversation.add_generation_prompt,
        };
        let text = template
            .render(context! { ..own, ..JinjaValue::from(Serde(&variables)) })
            .map_err(|error| failure(&error))?;
        if conversation.continue_final_message { cut_at_mark(&text, &last) } else { Ok(text) }
    }
}

fn failure(error: &minijinja::Error) -> ChatError {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(Refusal(message)) = cause.downcast_ref() {
            return ChatError::Refused(message.clone());
        }
        source = cause.source();
    }
    ChatError::Render(error.to_string())
}

/// Marks the end of the last message's text, so that the rendered text can be cut there; gives the text.
fn mark_end(messages: &mut [Value]) -> Result<String, ChatError> {
    let content = messages.last_mut().and_then(|message| message.get_mut("content"));
    let text = match content {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => {
            let last = parts.iter_mut().rev().find_map(|part| part.get_mut("text"));
            let Some(Value::String(text)) = last else { return Err(ChatError::NothingToContinue) };
            text
        }
        _ => return Err(ChatError::NothingToContinue),
    };
    let whole = text.clone();
    text.push_str(END);
    Ok(whole)
}

/// The text up to the mark. Where the template trims messages, the blanks before it go as well.
fn cut_at_mark(text: &str, last: &str) -> Result<String, ChatError> {
    let at = text.rfind(END.trim_end()).filter(|_| text.contains(last.trim()));
    let (before, after) = text.split_at(at.ok_or(ChatError::NothingToContinue)?);
    Ok(if after.starts_with(END) { before } else { before.trim_end() }.to_owned())
}

/// As transformers: keys that are null are left out, for templates take a key that is there for text; and reasoning
/// gets the names that templates know. Beyond it, an assistant's content is never absent: clients send none with tool
/// calls, and many templates fail on that.
fn normalised(message: &Value) -> Value {
    let Value::Object(message) = message else { return message.clone() };
    let mut message: Map<String, Value> =
        message.iter().filter(|(_, value)| !value.is_null()).map(|(k, v)| (k.clone(), v.clone())).collect();
    if let Some(reasoning) = REASONING.iter().find_map(|name| message.get(*name)).cloned() {
        message.entry("thinking").or_insert_with(|| reasoning.clone());
        message.insert("reasoning_content".to_owned(), reasoning);
    }
    if message.get("role").is_some_and(|role| role == "assistant") {
        message.entry("content").or_insert_with(|| Value::String(String::new()));
    }
    Value::Object(message)
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
        environment.set_syntax(syntax);
    }
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", tojson);
    environment.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Refusal(message)))
    });
    environment.add_function("strftime_now", |format: String| -> Result<String, minijinja::Error> {
        jiff::fmt::strtime::format(&format, &jiff::ZonedDateTime::now()).map_err(|error| {
            minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {error}"))
        })
    });
    environment
}

/// What a template passed to `raise_exception`.
#[derive(Debug)]
struct Refusal(String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

/// Python's `json.dumps`, which transformers puts in the place of Jinja's own filter: no escapes for HTML, blanks
/// behind commas and colons, the options of `dumps`.
#[expect(clippy::needless_pass_by_value, reason = "the form that minijinja calls")]
fn tojson(value: &JinjaValue, options: Kwargs) -> Result<String, minijinja::Error> {
    let invalid = |reason: String| minijinja::Error::new(ErrorKind::InvalidOperation, reason);
    if value.is_undefined() {
        return Err(invalid("tojson of an undefined value".to_owned()));
    }
    let json = serde_json::to_value(value).map_err(|error| invalid(error.to_string()))?;
    let mut style = dumps::Style::default();
    if let Some(ascii) = options.get::<Option<bool>>("ensure_ascii")? {
        style.ascii = ascii;
    }
    if let Some(sort) = options.get::<Option<bool>>("sort_keys")? {
        style.sort = sort;
    }
    let indent = options.get::<Option<JinjaValue>>("indent")?.filter(|indent| !indent.is_none());
    if let Some(indent) = indent {
        let text = match (indent.as_str(), indent.as_usize()) {
            (Some(text), _) => text.to_owned(),
            (None, Some(width)) if width <= 64 => " ".repeat(width),
            _ => return Err(invalid(format!("tojson with indent={indent}"))),
        };
        style.indent = Some(text);
        style.item = ",".to_owned();
    }
    if let Some(separators) = options.get::<Option<Vec<String>>>("separators")? {
        let [item, key] = <[String; 2]>::try_from(separators)
            .map_err(|_| invalid("tojson with separators that are not two".to_owned()))?;
        (style.item, style.key) = (item, key);
    }
    options.assert_all_used()?;
    Ok(style.dumps(&json))
}

/// Replaces `{% generation %}` … `{% endgeneration %}`, by which a template marks what the assistant says for training,
/// by a block that has no effect. White-space control stays as it is.
fn without_generation_marks(template: &str) -> String {
    let mut text = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        text.push_str(before);
        rest = tag;
        let inner = tag.strip_prefix(['-', '+']).unwrap_or(tag);
        let word = inner.trim_start();
        for (mark, replacement) in [("generation", "if true"), ("endgeneration", "endif")] {
            let Some(after) = word.strip_prefix(mark) else { continue };
            let end = after.trim_start();
            if end.starts_with("%}") || end.starts_with("-%}") || end.starts_with("+%}") {
                text.push_str(&tag[..tag.len() - word.len()]);
                text.push_str(replacement);
                rest = after;
            }
        }
    }
    text + rest
}

#[cfg(test)]
mod tests;
