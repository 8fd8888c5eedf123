//! Where a model directory keeps its chat templates and the texts of its special tokens.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::ChatError;
use crate::model::files::ModelFiles;

/// The template for conversations without a better one.
const DEFAULT: &str = "default";
const ADDITIONAL: &str = "additional_chat_templates";

/// A template as it is written.
pub struct Template {
    /// The file it is written in.
    pub path: PathBuf,
    pub text: String,
}

/// What was found.
#[derive(Default)]
pub struct Sources {
    pub templates: BTreeMap<String, Template>,
    pub special: Map<String, Value>,
}

/// Looks in the places of transformers, in its order: files of their own first, then `tokenizer_config.json`.
pub fn read(files: &ModelFiles) -> Result<Sources, ChatError> {
    let mut sources = Sources::default();
    let map = object(files, "special_tokens_map.json")?;
    let config = object(files, "tokenizer_config.json")?;
    for (path, source) in [&map, &config].into_iter().flatten() {
        special_tokens(path, source, &mut sources.special)?;
    }

    if let Some((path, text)) = text(files, "chat_template.jinja")? {
        sources.templates.insert(DEFAULT.to_owned(), Template { path, text });
    }
    for file in files.list(ADDITIONAL, ".jinja")? {
        let name = file.trim_end_matches(".jinja").to_owned();
        if let Some((path, text)) = text(files, &format!("{ADDITIONAL}/{file}"))? {
            sources.templates.insert(name, Template { path, text });
        }
    }
    let json = object(files, "chat_template.json")?;
    for (path, source) in [json, config].into_iter().flatten() {
        if sources.templates.is_empty()
            && let Some(value) = source.get("chat_template")
        {
            sources.templates = templates(&path, value)?;
        }
    }
    Ok(sources)
}

/// One template, or several with names: a list of objects, or an object.
fn templates(path: &Path, value: &Value) -> Result<BTreeMap<String, Template>, ChatError> {
    let named: Option<Vec<(&str, &str)>> = match value {
        Value::Null => Some(Vec::new()),
        Value::String(text) => Some(vec![(DEFAULT, text)]),
        Value::Array(list) => {
            list.iter().map(|entry| Some((entry["name"].as_str()?, entry["template"].as_str()?))).collect()
        }
        Value::Object(map) => map.iter().map(|(name, text)| Some((name.as_str(), text.as_str()?))).collect(),
        Value::Bool(_) | Value::Number(_) => None,
    };
    let named = named.ok_or_else(|| ChatError::Broken {
        path: path.to_owned(),
        reason: "`chat_template` is neither a text nor a list of `name` and `template`".to_owned(),
    })?;
    Ok(named
        .into_iter()
        .map(|(name, text)| (name.to_owned(), Template { path: path.to_owned(), text: text.to_owned() }))
        .collect())
}

/// The tokens that have a role, as templates see them: `bos_token` and so on.
fn special_tokens(
    path: &Path,
    source: &Map<String, Value>,
    special: &mut Map<String, Value>,
) -> Result<(), ChatError> {
    let token = |name: &str, value: &Value| match value {
        Value::String(_) => Ok(Some(value.clone())),
        Value::Object(token) if token.get("content").is_some_and(Value::is_string) => {
            Ok(Some(token["content"].clone()))
        }
        Value::Null => Ok(None),
        _ => Err(ChatError::Broken { path: path.to_owned(), reason: format!("`{name}` is no token") }),
    };
    for role in ["bos", "eos", "unk", "sep", "pad", "cls", "mask"] {
        let name = format!("{role}_token");
        if let Some(value) = source.get(&name)
            && let Some(text) = token(&name, value)?
        {
            special.insert(name, text);
        }
    }
    let name = "additional_special_tokens";
    if let Some(Value::Array(tokens)) = source.get(name) {
        let texts: Result<Vec<_>, _> = tokens.iter().map(|value| token(name, value)).collect();
        special.insert(name.to_owned(), texts?.into_iter().flatten().collect());
    }
    if let Some(Value::Object(tokens)) = source.get("extra_special_tokens") {
        for (name, value) in tokens {
            if let Some(text) = token(name, value)? {
                special.insert(name.clone(), text);
            }
        }
    }
    Ok(())
}

fn text(files: &ModelFiles, file: &str) -> Result<Option<(PathBuf, String)>, ChatError> {
    let path = files.path(file);
    let Some(bytes) = files.read(file)? else { return Ok(None) };
    match String::from_utf8(bytes.into_owned()) {
        Ok(text) => Ok(Some((path, text))),
        Err(error) => Err(ChatError::Broken { path, reason: error.to_string() }),
    }
}

/// An object and the file it is in.
type Object = (PathBuf, Map<String, Value>);

fn object(files: &ModelFiles, file: &str) -> Result<Option<Object>, ChatError> {
    let path = files.path(file);
    let Some(bytes) = files.read(file)? else { return Ok(None) };
    match serde_json::from_slice(&bytes) {
        Ok(object) => Ok(Some((path, object))),
        Err(error) => Err(ChatError::Broken { path, reason: error.to_string() }),
    }
}
