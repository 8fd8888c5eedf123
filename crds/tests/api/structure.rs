//! What the API server checks before any rule: types, bounds, patterns and required fields, and that nothing is unknown
//! (with `fieldValidation: Strict`, as kubectl asks for it).

use regex::Regex;
use serde_json::Value;

/// What is wrong with an object, each with its path.
pub fn complaints(schema: &Value, object: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for part in ["spec", "status"] {
        if !object[part].is_null() {
            look(&schema["properties"][part], &object[part], part, &mut found);
        }
    }
    found
}

fn look(schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    if value.is_null() && schema["nullable"] == true {
        return;
    }
    let mut wrong = |what: &str| found.push(format!("{at}: {what}"));
    let kind = match value {
        Value::String(_) => "string",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "integer",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
        Value::Null => "null",
    };
    let int_or_string = schema["x-kubernetes-int-or-string"] == true && ["string", "integer"].contains(&kind);
    if schema["type"] != kind && !int_or_string {
        wrong(&format!("{value} is no {}", schema["type"]));
    }
    if schema["enum"].as_array().is_some_and(|values| !values.contains(value)) {
        wrong(&format!("{value} is none of {}", schema["enum"]));
    }
    let size = match value {
        Value::String(text) => Some((text.chars().count() as f64, "minLength", "maxLength")),
        Value::Number(number) => number.as_f64().map(|number| (number, "minimum", "maximum")),
        Value::Array(items) => Some((items.len() as f64, "minItems", "maxItems")),
        Value::Object(fields) => Some((fields.len() as f64, "minProperties", "maxProperties")),
        _ => None,
    };
    if let Some((size, least, most)) = size {
        if schema[least].as_f64().is_some_and(|least| size < least) {
            wrong(&format!("{size} is less than {}", schema[least]));
        }
        if schema[most].as_f64().is_some_and(|most| size > most) {
            wrong(&format!("{size} is more than {}", schema[most]));
        }
    }
    if let (Some(text), Some(pattern)) = (value.as_str(), schema["pattern"].as_str())
        && !Regex::new(pattern).expect("a pattern").is_match(text)
    {
        wrong(&format!("{text:?} does not match {pattern}"));
    }
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if value.get(name).is_none() {
            wrong(&format!("{name} is required"));
        }
    }
    match value {
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                look(&schema["items"], item, &format!("{at}[{index}]"), found);
            }
        }
        Value::Object(fields) => {
            for (name, field) in fields {
                let at = format!("{at}.{name}");
                match (schema["properties"].get(name), &schema["additionalProperties"]) {
                    (Some(property), _) => look(property, field, &at, found),
                    (None, Value::Object(_)) => look(&schema["additionalProperties"], field, &at, found),
                    (None, _) => found.push(format!("{at}: no such field")),
                }
            }
        }
        _ => {}
    }
}
