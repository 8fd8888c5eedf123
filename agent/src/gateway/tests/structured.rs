//! Outputs that are held to a form, and tool calls.

use serde_json::{Value, json};

use super::client::Server;
use super::fake::server;

const CHAT: &str = "/v1/chat/completions";

async fn ask(server: &Server, content: &str, more: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": content}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let answer = server.post(CHAT, body).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()["choices"][0].clone()
}

fn tools() -> Value {
    let tool = |name: &str, property: &str| {
        json!({"type": "function", "function": {"name": name, "parameters": {"type": "object",
               "properties": {property: {"enum": [7, 8]}}, "required": [property], "additionalProperties": false}}})
    };
    json!([tool("look", "at"), tool("go", "to")])
}

#[tokio::test]
async fn grammars_hold_the_output() {
    let (_, server) = server().await;
    let schema = json!({"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": schema}});
    let choice =
        ask(&server, "say nothing of the kind", json!({"response_format": format, "max_tokens": 200})).await;
    let content: Value = serde_json::from_str(choice["message"]["content"].as_str().unwrap()).unwrap();
    assert!(content["a"] == "x" || content["a"] == "y", "{content}");
    assert_eq!(choice["finish_reason"], "stop");
    let choice = ask(&server, "say x", json!({"guided_regex": "[0-9]{3}"})).await;
    assert_eq!(choice["message"]["content"], "999");
    let choice = ask(&server, "say red", json!({"guided_choice": ["blue", "red", "green"]})).await;
    assert_eq!(choice["message"]["content"], "red");
}

#[tokio::test]
async fn a_schema_that_explodes_is_refused() {
    let (fake, server) = server().await;
    let mut defs = serde_json::Map::new();
    for i in 0..40 {
        let next = json!({"$ref": format!("#/$defs/d{}", i + 1)});
        defs.insert(format!("d{i}"), json!({"allOf": [next, next], "anyOf": [next, next]}));
    }
    defs.insert("d40".into(), json!({"type": "string"}));
    let schema = json!({"$defs": defs, "allOf": [{"$ref": "#/$defs/d0"}], "type": "object"});
    let messages = json!([{"role": "user", "content": "say a"}]);
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": schema}});
    for (body, param) in [
        (json!({"messages": messages, "guided_json": schema}), "response_format"),
        (json!({"messages": messages, "tools": [tool], "tool_choice": "required"}), "tools"),
    ] {
        let error = server.post(CHAT, body).await.error();
        assert_eq!(error, (400, "invalid_grammar".into(), param.into()));
    }
    assert!(fake.seen.lock().unwrap().asked.is_empty());
}

#[tokio::test]
async fn a_chain_of_references_is_refused_wherever_it_is() {
    let (fake, server) = server().await;
    let defs: serde_json::Map<String, Value> =
        (0..5000).map(|i| (format!("d{i}"), json!({"$ref": format!("#/$defs/d{}", i + 1)}))).collect();
    let schema = json!({"$defs": defs, "$ref": "#/$defs/d0"});
    let messages = json!([{"role": "user", "content": "say a"}]);
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": schema}});
    let lark = format!("start: \"a\" %json {schema}");
    for (body, param) in [
        (json!({"messages": messages, "guided_json": schema}), "response_format"),
        (json!({"messages": messages, "guided_json": schema.to_string()}), "response_format"),
        (json!({"messages": messages, "guided_grammar": lark}), "response_format"),
        (json!({"messages": messages, "tools": [tool], "tool_choice": "required"}), "tools"),
    ] {
        let error = server.post(CHAT, body).await.error();
        assert_eq!(error, (400, "invalid_grammar".into(), param.into()));
    }
    assert!(fake.seen.lock().unwrap().asked.is_empty());
}

#[tokio::test]
async fn tool_calls_are_found() {
    let (_, server) = server().await;
    let said = "say I look. <tool_call>{\"name\": \"look\", \"arguments\": {\"at\": 7}}</tool_call>";
    let choice = ask(&server, said, json!({"tools": tools()})).await;
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(choice["message"]["content"], "I look.");
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!(
        (&call["type"], &call["function"]),
        (&json!("function"), &json!({"name": "look", "arguments": "{\"at\": 7}"}))
    );
    assert!(call["id"].as_str().unwrap().starts_with("call_"));
    let choice = ask(&server, said, json!({"tools": tools(), "tool_choice": "none"})).await;
    assert_eq!((&choice["finish_reason"], choice["message"].get("tool_calls")), (&json!("stop"), None));

    let body = json!({"messages": [{"role": "user", "content": said}], "tools": tools(), "stream": true});
    let events = server.post(CHAT, body).await.events();
    let text: String =
        events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, "I look.");
    let calls: Vec<&Value> = events
        .iter()
        .map(|event| &event["choices"][0]["delta"]["tool_calls"][0])
        .filter(|call| !call.is_null())
        .collect();
    assert_eq!(
        (calls.len(), &calls[0]["index"], &calls[0]["function"]["name"]),
        (1, &json!(0), &json!("look"))
    );
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
}

#[tokio::test]
async fn tool_calls_are_forced() {
    let (_, server) = server().await;
    let go = json!({"type": "function", "function": {"name": "go"}});
    for choice in [json!("required"), go.clone()] {
        let out = ask(
            &server,
            "say no",
            json!({"tools": tools(), "tool_choice": choice, "parallel_tool_calls": false, "max_tokens": 300}),
        )
        .await;
        let call = &out["message"]["tool_calls"][0]["function"];
        let name = call["name"].as_str().unwrap();
        assert!(name == "go" || (name == "look" && choice == "required"), "{out}");
        let text = call["arguments"].as_str().unwrap();
        assert!(text == "{\"to\": 8}" || text.contains("\": ") && !text.contains("  "), "{text}");
        let arguments: Value = serde_json::from_str(text).unwrap();
        assert!(
            [7, 8].contains(&arguments[if name == "go" { "to" } else { "at" }].as_i64().unwrap()),
            "{out}"
        );
        assert_eq!((&out["finish_reason"], &out["message"]["content"]), (&json!("tool_calls"), &Value::Null));
    }
}
