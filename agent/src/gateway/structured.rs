//! What an output must look like: `response_format`, and vLLM's `guided_*` and `structured_outputs`.

use serde::Deserialize;
use serde_json::Value;

use super::error::ApiError;
use crate::sampling::Grammar;

/// The fields of a request that constrain its output.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Structured {
    response_format: Option<ResponseFormat>,
    structured_outputs: Option<Guided>,
    guided_json: Option<Value>,
    guided_regex: Option<String>,
    guided_choice: Option<Vec<String>>,
    guided_grammar: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Guided {
    json: Option<Value>,
    json_object: Option<bool>,
    regex: Option<String>,
    choice: Option<Vec<String>>,
    grammar: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct ResponseFormat {
    #[serde(rename = "type")]
    kind: String,
    json_schema: Option<JsonSchema>,
}

#[derive(Clone, Debug, Deserialize)]
struct JsonSchema {
    schema: Option<Value>,
}

impl Structured {
    /// The grammar asked for; at most one way of asking may be used.
    pub(super) fn grammar(self) -> Result<Option<Grammar>, ApiError> {
        let guided = self.structured_outputs.unwrap_or_default();
        let mut asked = Vec::new();
        if let Some(format) = self.response_format {
            asked.extend(format.grammar()?);
        }
        for schema in [self.guided_json, guided.json].into_iter().flatten() {
            asked.push(Grammar::JsonSchema(schema_value(schema)?));
        }
        asked.extend(guided.json_object.filter(|on| *on).map(|_| Grammar::JsonObject));
        asked.extend(self.guided_regex.into_iter().chain(guided.regex).map(Grammar::Regex));
        asked.extend(self.guided_choice.into_iter().chain(guided.choice).map(Grammar::Choice));
        asked.extend(self.guided_grammar.into_iter().chain(guided.grammar).map(Grammar::Lark));
        if asked.len() > 1 {
            let message = "at most one of response_format, guided_json, guided_regex, guided_choice, guided_grammar \
                           and structured_outputs may constrain the output";
            return Err(ApiError::invalid("response_format", message));
        }
        Ok(asked.pop())
    }
}

impl ResponseFormat {
    fn grammar(self) -> Result<Option<Grammar>, ApiError> {
        match self.kind.as_str() {
            "text" => Ok(None),
            "json_object" => Ok(Some(Grammar::JsonObject)),
            "json_schema" => match self.json_schema.and_then(|named| named.schema) {
                Some(schema) => Ok(Some(Grammar::JsonSchema(schema))),
                None => {
                    Err(ApiError::invalid("response_format", "response_format.json_schema.schema is missing"))
                }
            },
            other => {
                let message =
                    format!("response_format.type must be text, json_object or json_schema, got {other}");
                Err(ApiError::invalid("response_format", message))
            }
        }
    }
}

/// vLLM takes a schema as a string too.
fn schema_value(schema: Value) -> Result<Value, ApiError> {
    match schema {
        Value::String(text) => serde_json::from_str(&text)
            .map_err(|error| ApiError::invalid("guided_json", format!("guided_json is not JSON: {error}"))),
        schema => Ok(schema),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn grammar(body: Value) -> Result<Option<Grammar>, ApiError> {
        serde_json::from_value::<Structured>(body).unwrap().grammar()
    }

    #[test]
    fn every_way_of_asking() {
        let schema = json!({"type": "object"});
        let is = |body, expected| assert_eq!(grammar(body).unwrap(), expected);
        is(json!({}), None);
        is(json!({"response_format": {"type": "text"}}), None);
        is(json!({"response_format": {"type": "json_object"}}), Some(Grammar::JsonObject));
        is(
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}),
            Some(Grammar::JsonSchema(schema.clone())),
        );
        is(json!({"guided_json": schema}), Some(Grammar::JsonSchema(schema.clone())));
        is(json!({"guided_json": "{\"type\": \"object\"}"}), Some(Grammar::JsonSchema(schema.clone())));
        is(json!({"guided_regex": "a+"}), Some(Grammar::Regex("a+".into())));
        is(json!({"guided_choice": ["a"]}), Some(Grammar::Choice(vec!["a".into()])));
        is(
            json!({"structured_outputs": {"grammar": "start: \"a\""}}),
            Some(Grammar::Lark("start: \"a\"".into())),
        );
    }

    #[test]
    fn wrong_ways_are_refused() {
        for body in [
            json!({"response_format": {"type": "yaml"}}),
            json!({"response_format": {"type": "json_schema"}}),
            json!({"guided_json": "{"}),
            json!({"guided_regex": "a", "guided_choice": ["b"]}),
            json!({"response_format": {"type": "json_object"}, "guided_regex": "a"}),
        ] {
            assert_eq!(grammar(body).unwrap_err().status, 400);
        }
    }
}
