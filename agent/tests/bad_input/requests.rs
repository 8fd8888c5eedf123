//! Requests with something wrong in them, against one server.

use serde_json::{Value, json};

use super::http::{Client, Reply};
use super::server::Server;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
/// The model's.
const CONTEXT: usize = 1024;
const VOCAB: u32 = 4096;

/// What a bad request is answered with.
struct Refusal {
    status: u16,
    param: Option<&'static str>,
    code: &'static str,
    says: &'static [&'static str],
}

const fn bad(param: Option<&'static str>, code: &'static str, says: &'static [&'static str]) -> Refusal {
    Refusal { status: 400, param, code, says }
}

/// A chat, with these fields beside its message.
fn chat(fields: &Value) -> Vec<u8> {
    let mut body = json!({ "messages": [{ "role": "user", "content": "hello" }], "max_tokens": 4 });
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body.to_string().into()
}

fn completion(fields: &Value) -> Vec<u8> {
    fields.to_string().into()
}

fn schema(schema: &Value) -> Value {
    json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "s", "schema": schema } } })
}

/// Small to write, 2^24 alternatives to compile.
fn product() -> Value {
    let one = |i: usize| {
        json!({ "anyOf": [
            { "properties": { format!("x{i}"): { "type": "string" } } },
            { "properties": { format!("y{i}"): { "type": "integer" } } },
        ] })
    };
    json!({ "type": "object", "allOf": (0..24).map(one).collect::<Vec<_>>() })
}

/// Each definition uses the one before twice, under combinations: 2^30 parts.
fn doubling() -> Value {
    let mut definitions = json!({ "d0": { "type": "string" } });
    for i in 1..30 {
        let before = json!({ "$ref": format!("#/$defs/d{}", i - 1) });
        definitions[format!("d{i}")] = json!({ "allOf": [{ "anyOf": [before.clone(), before] }] });
    }
    json!({ "$defs": definitions, "allOf": [{ "$ref": "#/$defs/d29" }] })
}

/// `not` in `not` in `not`, so deep.
fn nested(depth: usize) -> Vec<u8> {
    let body = String::from_utf8(chat(&schema(&json!("HERE")))).unwrap();
    let (before, after) = body.split_once("\"HERE\"").unwrap();
    let deep = format!("{}{{}}{}", r#"{"not": "#.repeat(depth), "}".repeat(depth));
    [before, &deep, after].concat().into()
}

fn cases() -> Vec<(&'static str, &'static str, Vec<u8>, Refusal)> {
    let ids = |count: usize| vec![5_u32; count];
    let words = "word ".repeat(2 * CONTEXT);
    vec![
        (
            "a prompt over the context, in ids",
            COMPLETIONS,
            completion(&json!({ "prompt": ids(CONTEXT), "max_tokens": 1 })),
            bad(Some("prompt"), "context_length_exceeded", &["1024 tokens", "at most 1023"]),
        ),
        (
            "a prompt over the context, in text",
            COMPLETIONS,
            completion(&json!({ "prompt": words.clone(), "max_tokens": 1 })),
            bad(Some("prompt"), "context_length_exceeded", &["at most 1023"]),
        ),
        (
            "a conversation over the context",
            CHAT,
            chat(&json!({ "messages": [{ "role": "user", "content": words }] })),
            bad(Some("messages"), "context_length_exceeded", &["at most 1023"]),
        ),
        (
            "a token id outside the vocabulary",
            COMPLETIONS,
            completion(&json!({ "prompt": [1, VOCAB] })),
            bad(Some("prompt"), "invalid_value", &["token id 4096", "outside the vocabulary of 4096"]),
        ),
        (
            "a stop token outside the vocabulary",
            COMPLETIONS,
            completion(&json!({ "prompt": [1], "stop_token_ids": [VOCAB] })),
            bad(Some("stop_token_ids"), "invalid_value", &["4096", "outside the vocabulary"]),
        ),
        (
            "max_tokens over the room",
            COMPLETIONS,
            completion(&json!({ "prompt": ids(100), "max_tokens": CONTEXT - 99 })),
            bad(Some("max_tokens"), "context_length_exceeded", &["100 in the prompt", "at most 924"]),
        ),
        (
            "max_completion_tokens over the room",
            CHAT,
            chat(&json!({ "max_tokens": null, "max_completion_tokens": 4_000_000_000_u32 })),
            bad(Some("max_completion_tokens"), "context_length_exceeded", &["at most"]),
        ),
        (
            "invalid JSON",
            CHAT,
            br#"{"messages": [{"role": "user", "content": "hello"}"#.to_vec(),
            bad(None, "invalid_json", &["not JSON", "line 1 column"]),
        ),
        ("no JSON at all", CHAT, vec![0xff, 0, 7], bad(None, "invalid_json", &["not JSON"])),
        ("no body", COMPLETIONS, vec![], bad(None, "invalid_json", &["not JSON", "EOF"])),
        (
            "a schema nested 100,000 deep",
            CHAT,
            nested(100_000),
            bad(None, "invalid_json", &["not JSON", "recursion limit"]),
        ),
        (
            "temperature NaN",
            CHAT,
            br#"{"messages": [{"role": "user", "content": "hello"}], "temperature": NaN}"#.to_vec(),
            bad(None, "invalid_json", &["not JSON", "column"]),
        ),
        (
            "temperature \"NaN\"",
            CHAT,
            chat(&json!({ "temperature": "NaN" })),
            bad(Some("temperature"), "invalid_value", &["temperature", "string", "f32"]),
        ),
        (
            "temperature 1e999",
            COMPLETIONS,
            br#"{"prompt": "a", "temperature": 1e999}"#.to_vec(),
            bad(None, "invalid_json", &["number out of range"]),
        ),
        (
            "temperature 1e39, infinite in single precision",
            COMPLETIONS,
            br#"{"prompt": "a", "temperature": 1e39}"#.to_vec(),
            bad(Some("temperature"), "invalid_value", &["from 0 to 2", "inf"]),
        ),
        (
            "a schema that explodes",
            CHAT,
            chat(&schema(&product())),
            bad(Some("response_format"), "invalid_grammar", &["JSON schema"]),
        ),
        (
            "a schema that explodes through its references",
            CHAT,
            chat(&schema(&doubling())),
            bad(Some("response_format"), "invalid_grammar", &["expands to over", "reduce"]),
        ),
        (
            "an unknown model name",
            CHAT,
            chat(&json!({ "model": "gpt-5" })),
            Refusal {
                status: 404,
                param: Some("model"),
                code: "model_not_found",
                says: &["`gpt-5` does not exist", "/v1/models"],
            },
        ),
    ]
}

/// Over the limit of 4 MiB.
const TOO_LARGE: Refusal =
    Refusal { status: 413, param: None, code: "request_too_large", says: &["over 4194304 bytes"] };

/// An error in OpenAI's form, as it should be; in a line.
fn check(item: &str, reply: &Reply, refusal: &Refusal) -> String {
    assert_eq!(reply.status, refusal.status, "{item}: {reply:?}");
    let json = reply.json();
    let error = json["error"].as_object().unwrap_or_else(|| panic!("{item}: {reply:?}"));
    let keys: Vec<&str> = error.keys().map(String::as_str).collect();
    assert_eq!(keys, ["message", "type", "param", "code"], "{item}");
    assert_eq!(error["type"], "invalid_request_error", "{item}: {reply:?}");
    assert_eq!(error["param"], json!(refusal.param), "{item}: {reply:?}");
    assert_eq!(error["code"], refusal.code, "{item}: {reply:?}");
    let message = error["message"].as_str().unwrap();
    for word in refusal.says {
        assert!(message.contains(word), "{item}: no {word:?} in {message:?}");
    }
    format!("{item}: {} {}: {message}", reply.status, refusal.code)
}

#[test]
fn a_bad_request_is_refused_with_its_reason() {
    let mut server = Server::start(4096, &[]);
    let (mut kept, mut asked) = (Client::connect(server.listen), 0);
    for (item, path, body, refusal) in cases() {
        // On a connection of its own, on one that goes on afterwards, and as a stream where that could be asked for.
        let mut bodies = vec![body.clone()];
        if let Ok(Value::Object(mut fields)) = serde_json::from_slice(&body) {
            fields.insert("stream".into(), true.into());
            bodies.push(Value::Object(fields).to_string().into());
        }
        let mut line = String::new();
        for body in bodies {
            let mut own = Client::connect(server.listen);
            own.send("POST", path, &body);
            let reply = own.reply();
            kept.send("POST", path, &body);
            assert_eq!(kept.reply().body, reply.body, "{item}");
            line = check(item, &reply, &refusal);
            asked += 2;
        }
        println!("{line}");
    }
    let mut large = Client::connect(server.listen);
    large.send("POST", CHAT, &chat(&json!({ "user": "x".repeat(5 << 20) })));
    println!("{}", check("a body over the limit, by its length", &large.reply(), &TOO_LARGE));
    let mut large = Client::connect(server.listen);
    let _ = large
        .write(format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n").as_bytes());
    for _ in 0..80 {
        // The answer comes before the last of them.
        let _ = large.write(&[b"10000\r\n", &b"[".repeat(0x10000)[..], b"\r\n"].concat());
    }
    println!("{}", check("a body over the limit, in chunks", &large.reply(), &TOO_LARGE));
    drop((kept, large));

    server.serves();
    server.rests();
    let refused = server.metrics().refused();
    println!(
        "{asked} refusals and 2 large bodies later: nothing is held, {refused} answers with a 4xx counted"
    );
    assert_eq!(refused, f64::from(asked + 2));
    server.stop();
}
