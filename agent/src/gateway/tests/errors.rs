//! What a client that asks for the impossible is told.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use super::client::{Server, read, read_until, request};
use super::fake::{EOS, Fake, gateway, server};
use crate::gateway::{Limits, Timeouts};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

#[tokio::test]
async fn bad_requests_are_named() {
    let (fake, server) = server().await;
    let message = |content: &str| json!([{"role": "user", "content": content}]);
    let text = |more: Value| {
        let mut body = json!({"prompt": "say a"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let cases: Vec<(&str, Value, u16, &str, &str)> = vec![
        (TEXT, json!({}), 400, "invalid_value", "prompt"),
        (TEXT, json!({"prompt": []}), 400, "invalid_value", "prompt"),
        (TEXT, json!({"prompt": [[]]}), 400, "invalid_value", "prompt"),
        (TEXT, json!({"prompt": vec![97; 512]}), 400, "context_length_exceeded", "prompt"),
        (TEXT, json!({"prompt": [97, 260]}), 400, "invalid_value", "prompt"),
        (TEXT, json!({"prompt": [97, -1]}), 400, "invalid_value", "prompt[1]"),
        (TEXT, text(json!({"max_tokens": 507})), 400, "context_length_exceeded", "max_tokens"),
        (TEXT, text(json!({"max_tokens": -1})), 400, "invalid_value", "max_tokens"),
        (TEXT, text(json!({"max_tokens": 4, "min_tokens": 5})), 400, "invalid_value", "min_tokens"),
        (TEXT, text(json!({"temperature": -1})), 400, "invalid_value", "temperature"),
        (TEXT, text(json!({"temperature": "NaN"})), 400, "invalid_value", "temperature"),
        (TEXT, text(json!({"model": "gpt"})), 404, "model_not_found", "model"),
        (TEXT, text(json!({"logprobs": 21})), 400, "invalid_value", "logprobs"),
        (TEXT, text(json!({"logprobs": 1, "echo": true})), 400, "invalid_value", "logprobs"),
        (TEXT, text(json!({"n": 1000})), 400, "invalid_value", "n"),
        (TEXT, json!({"prompt": vec!["say a"; 200], "n": 2}), 400, "invalid_value", "n"),
        (TEXT, text(json!({"best_of": 3})), 400, "invalid_value", "best_of"),
        (TEXT, text(json!({"suffix": "x"})), 400, "invalid_value", "suffix"),
        (TEXT, text(json!({"stop": [1]})), 400, "invalid_value", "stop"),
        (TEXT, text(json!({"logit_bias": {"300": 1}})), 400, "invalid_value", "logit_bias"),
        (TEXT, text(json!({"guided_regex": "("})), 400, "invalid_grammar", "response_format"),
        (TEXT, text(json!({"guided_choice": []})), 400, "invalid_grammar", "response_format"),
        (
            TEXT,
            text(json!({"allowed_token_ids": [EOS], "min_tokens": 1})),
            400,
            "constraint_unsatisfiable",
            "allowed_token_ids",
        ),
        (CHAT, json!({}), 400, "invalid_value", "messages"),
        (CHAT, json!({"messages": []}), 400, "invalid_value", "messages"),
        (CHAT, json!({"messages": [3]}), 400, "invalid_value", "messages[0]"),
        (CHAT, json!({"messages": [{"role": "x", "content": ""}]}), 400, "invalid_value", "messages[0].role"),
        (CHAT, json!({"messages": message("refuse")}), 400, "invalid_value", "messages"),
        (CHAT, json!({"messages": message(&"a".repeat(600))}), 400, "context_length_exceeded", "messages"),
        (
            CHAT,
            json!({"messages": message("a"), "max_completion_tokens": 512}),
            400,
            "context_length_exceeded",
            "max_completion_tokens",
        ),
        (CHAT, json!({"messages": message("a"), "top_logprobs": 2}), 400, "invalid_value", "top_logprobs"),
        (CHAT, json!({"messages": message("a"), "tools": [{"type": "x"}]}), 400, "invalid_value", "tools[0]"),
        (
            CHAT,
            json!({"messages": message("a"), "tool_choice": "required"}),
            400,
            "invalid_value",
            "tool_choice",
        ),
        ("/tokenize", json!({}), 400, "invalid_value", "prompt"),
        ("/detokenize", json!({"tokens": [9999]}), 400, "invalid_value", "tokens"),
        ("/v1/embeddings", json!({}), 404, "unknown_url", ""),
    ];
    for (path, body, status, code, param) in cases {
        let answer = server.post(path, body.clone()).await;
        assert_eq!(answer.error(), (status, code.to_owned(), param.to_owned()), "{body}: {}", answer.body);
    }
    assert!(fake.seen.lock().unwrap().asked.is_empty());
}

#[tokio::test]
async fn a_body_that_is_not_json() {
    let (_, server) = server().await;
    let deep = format!("{{\"prompt\": {}", "[".repeat(100_000));
    for body in [
        "",
        "{",
        "nonsense",
        "{\"prompt\": \"a\"} x",
        "{\"prompt\": \"a\", \"temperature\": NaN}",
        "{\"temperature\": 1e999}",
        &deep,
    ] {
        let error = server.send("POST", TEXT, &[], body).await.error();
        assert_eq!((error.0, error.1.as_str()), (400, "invalid_json"), "{body:.40}");
    }
    let error = server.send("POST", TEXT, &[], "[1]").await.error();
    assert_eq!(error.0, 400);
    assert_eq!(server.send("POST", TEXT, &[], "{\"prompt\": \"\\ud800\"}").await.error().0, 400);
    assert_eq!(server.get(TEXT).await.error(), (405, "method_not_allowed".into(), String::new()));
    assert_eq!(server.send("POST", TEXT, &[("x-request-timeout", "soon")], "{}").await.error().2, "timeout");
}

#[tokio::test]
async fn a_body_over_the_limit() {
    let fake = Fake::new();
    let limits = Limits { body_bytes: 1000, ..Limits::default() };
    let server = Server::start(gateway(&fake).with_limits(limits), |_| {}).await;
    let body = json!({"prompt": "x".repeat(2000)}).to_string();
    assert_eq!(server.send("POST", TEXT, &[], &body).await.error().0, 413);
    // Without a length it is noticed on the way.
    let mut stream = server.connect().await;
    let head =
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(format!("{:x}\r\n{body}\r\n", body.len()).as_bytes()).await.unwrap();
    let answer = read_until(&mut stream, "request_too_large").await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

#[tokio::test]
async fn a_body_that_does_not_come() {
    let fake = Fake::new();
    let timeouts = Timeouts { body: Duration::from_millis(50), ..Timeouts::default() };
    let server = Server::start(gateway(&fake).with_timeouts(timeouts), |_| {}).await;
    let mut stream = server.connect().await;
    let whole = request("POST", TEXT, &[], "{\"prompt\": \"say a\"}");
    stream.write_all(&whole.as_bytes()[..whole.len() - 3]).await.unwrap();
    assert_eq!(read(&mut stream).await.error().0, 408);
}

#[tokio::test]
async fn endings_that_are_errors() {
    let (_, server) = server().await;
    for (command, status, code) in [
        ("busy", 429, "rate_limit_exceeded"),
        ("late", 429, "rate_limit_exceeded"),
        ("huge", 400, "context_length_exceeded"),
        ("dead", 504, "deadline_exceeded"),
        ("cut", 503, "service_unavailable"),
    ] {
        for stream in [false, true] {
            let answer = server.post(TEXT, json!({"prompt": format!("{command} x"), "stream": stream})).await;
            let error = answer.error();
            assert_eq!((error.0, error.1.as_str()), (status, code), "{command}");
            assert_eq!(answer.headers.contains_key("retry-after"), status == 429 || status == 503);
            if command == "busy" {
                assert_eq!(answer.headers["retry-after"], "2");
            }
        }
    }
    // What a client's constraints leave is the client's; a fault is ours, whatever the client restricts.
    for (command, status, code) in
        [("abort x", 400, "constraint_unsatisfiable"), ("fault x", 500, "internal_error")]
    {
        let error = server.post(TEXT, json!({"prompt": command, "min_tokens": 1})).await.error();
        assert_eq!((error.0, error.1.as_str()), (status, code));
    }
    // One choice's end is the whole request's.
    let answer = server.post(TEXT, json!({"prompt": ["wait x", "busy x"]})).await;
    assert_eq!(answer.error().0, 429);
    let deadline = json!({"prompt": "wait x", "timeout": 0.01});
    assert_eq!(server.post(TEXT, deadline).await.error().0, 504);
    let body = json!({"prompt": "wait x"}).to_string();
    assert_eq!(server.send("POST", TEXT, &[("x-request-timeout", "0.01")], &body).await.error().0, 504);
}

#[tokio::test]
async fn too_many_requests_at_one_time() {
    let fake = Fake::new();
    let limits = Limits { requests: 2, ..Limits::default() };
    let server = Server::start(gateway(&fake).with_limits(limits), |_| {}).await;
    let mut waiting = Vec::new();
    for stream in [false, true] {
        let mut connection = server.connect().await;
        let body = json!({"prompt": "wait x", "stream": stream}).to_string();
        connection.write_all(request("POST", TEXT, &[], &body).as_bytes()).await.unwrap();
        waiting.push(connection);
    }
    fake.until(|seen| seen.running == 2).await;
    let answer = server.post(TEXT, json!({"prompt": "say a"})).await;
    assert_eq!(answer.error().0, 429);
    assert_eq!(answer.headers["retry-after"], "1");
    // The places come back with the clients' going, of a stream too.
    drop(waiting);
    fake.until(|seen| seen.running == 0).await;
    for _ in 0..3 {
        assert_eq!(server.post(TEXT, json!({"prompt": "say a"})).await.status, 200);
    }
}

/// Bodies with values of the wrong kind in every place: an answer or a refusal, never a failure.
#[tokio::test]
async fn whatever_is_sent_is_answered() {
    let (_, server) = server().await;
    let whole = json!({
        "model": "bytes", "prompt": "say abc", "messages": [{"role": "user", "content": "say abc", "tool_calls": []}],
        "max_tokens": 5, "max_completion_tokens": 6, "temperature": 0.5, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "n": 2,
        "stop": ["b"], "stop_token_ids": [3], "seed": 4, "logprobs": 1, "top_logprobs": 1, "logit_bias": {"3": 1.0},
        "stream": false, "stream_options": {"include_usage": true}, "tools": [{"type": "function", "function": {"name": "f"}}],
        "tool_choice": "auto", "response_format": {"type": "text"}, "guided_choice": null, "ignore_eos": false,
        "min_tokens": 1, "return_token_ids": true, "echo": false, "cache_salt": "x", "timeout": 5.0,
    });
    let values = [
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(1e300),
        json!(u64::MAX),
        json!(""),
        json!("a\u{0}\u{1F600}"),
        json!([]),
        json!({}),
        json!([null]),
        json!([[[]]]),
        json!({"type": "json_schema"}),
        json!([1, "a"]),
        json!({"a": {"b": []}}),
    ];
    let mut seen = std::collections::BTreeSet::new();
    for path in [CHAT, TEXT, "/tokenize", "/detokenize"] {
        for name in whole.as_object().unwrap().keys() {
            for value in &values {
                let mut body = whole.clone();
                body[name] = value.clone();
                if path == CHAT {
                    body["logprobs"] = json!(true);
                }
                let answer = server.post(path, body).await;
                assert!(answer.status < 500, "{path} with {name} = {value}: {}", answer.body);
                if answer.status >= 400 {
                    answer.error();
                }
                seen.insert(answer.status);
            }
        }
    }
    assert!(seen.contains(&200) && seen.contains(&400), "{seen:?}");
}
