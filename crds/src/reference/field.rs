//! One field: a row of a table.

use super::anchor;
use serde_json::Value;

/// What a schema is for, on one line.
pub(super) fn text(schema: &Value) -> String {
    let text = schema["description"].as_str().unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What its rules say when they refuse.
pub(super) fn rules(schema: &Value) -> Vec<&str> {
    let rules = schema["x-kubernetes-validations"].as_array().into_iter().flatten();
    rules.filter_map(|rule| rule["message"].as_str()).collect()
}

/// The object that a field is, or is a list of, and what that adds to its path.
pub(super) fn nested(schema: &Value) -> Option<(&Value, &'static str)> {
    let is_object = |schema: &Value| schema["properties"].is_object();
    if is_object(schema) {
        Some((schema, ""))
    } else {
        Some((&schema["items"], "[]")).filter(|(items, _)| is_object(items))
    }
}

/// A row; `link` is the path of the table of the object that the field is or has.
pub(super) fn row(name: &str, schema: &Value, required: bool, link: Option<&str>) -> String {
    let default = match &schema["default"] {
        _ if required => "required".into(),
        Value::Null => String::new(),
        Value::Object(fields) if !fields.is_empty() => "see there".into(),
        value => format!("`{value}`"),
    };
    let mut meaning = text(schema);
    // Those of an object stand under its table.
    if link.is_none() {
        for rule in rules(schema) {
            meaning += &format!(" Rule: {rule}.");
        }
    }
    let kind = kind(schema, link);
    format!("| `{name}` | {kind} | {} | {} | {} |\n", cell(&default), cell(&limits(schema)), cell(&meaning))
}

fn kind(schema: &Value, link: Option<&str>) -> String {
    if schema["x-kubernetes-int-or-string"] == true {
        return "quantity".into();
    }
    let object = || link.map_or_else(|| "object".into(), |path| format!("[object](#{})", anchor(path)));
    match schema["type"].as_str().unwrap_or_default() {
        "array" => format!("list of {}", kind(&schema["items"], link)),
        "object" if schema["additionalProperties"].is_object() => {
            format!("map of {}", kind(&schema["additionalProperties"], None))
        }
        "object" => object(),
        "string" if schema["format"] == "date-time" => "time".into(),
        other => other.into(),
    }
}

fn limits(schema: &Value) -> String {
    let mut limits = own_limits(schema);
    for (key, of) in [("items", "each"), ("additionalProperties", "values")] {
        if schema[key].is_object() {
            limits.extend(own_limits(&schema[key]).into_iter().map(|limit| format!("{of} {limit}")));
        }
    }
    limits.join("; ")
}

fn own_limits(schema: &Value) -> Vec<String> {
    let mut limits = Vec::new();
    if let Some(values) = schema["enum"].as_array() {
        limits.push(values.iter().map(|value| format!("`{value}`")).collect::<Vec<_>>().join(", "));
    }
    let bounds = [
        ["minimum", "maximum"],
        ["minLength", "maxLength"],
        ["minItems", "maxItems"],
        ["minProperties", "maxProperties"],
    ];
    for [least, most] in bounds {
        let number = |key: &str| schema[key].as_f64().map(|number| number.to_string());
        match (number(least), number(most)) {
            (Some(least), Some(most)) if least == most => limits.push(format!("exactly {least}")),
            (Some(least), Some(most)) => limits.push(format!("{least} to {most}")),
            (Some(least), None) => limits.push(format!("at least {least}")),
            (None, Some(most)) => limits.push(format!("at most {most}")),
            (None, None) => {}
        }
    }
    if let Some(pattern) = schema["pattern"].as_str() {
        limits.push(format!("`{pattern}`"));
    }
    limits
}

/// Text as a table can have it.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}
