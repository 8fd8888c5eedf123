//! What a good client sees.

use std::time::Duration;

use serde_json::{Value, json};
use sluice_core::front::CancelCause;

use super::client::Server;
use super::fake::{BOS, EOS, Fake, STOP, gateway, server};
use crate::gateway::{Keys, Limits, Timeouts};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

fn chat(content: &str) -> Value {
    json!({"model": "bytes", "messages": [{"role": "user", "content": content}]})
}

fn with(mut body: Value, mut more: Value) -> Value {
    body.as_object_mut().unwrap().append(more.as_object_mut().unwrap());
    body
}

#[tokio::test]
async fn a_completion() {
    let (fake, server) = server().await;
    let answer = server
        .send(
            "POST",
            TEXT,
            &[("x-request-id", "mine-1")],
            &json!({"model": "bytes", "prompt": "say grüß", "unknown": {}}).to_string(),
        )
        .await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers["x-request-id"], "mine-1");
    let body = answer.json();
    assert_eq!((&body["id"], &body["object"]), (&json!("cmpl-mine-1"), &json!("text_completion")));
    assert_eq!((&body["model"], &body["system_fingerprint"]), (&json!("bytes"), &json!("fp_test")));
    assert_eq!(
        body["choices"],
        json!([{"index": 0, "text": "grüß", "logprobs": null, "finish_reason": "stop", "stop_reason": null}])
    );
    assert_eq!(body["usage"], json!({"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}));
    let seen = fake.seen.lock().unwrap();
    let asked = &seen.asked[0];
    assert_eq!(asked.prompt[..2], [BOS, u32::from(b's')]);
    assert_eq!((asked.stop.max_tokens, &asked.stop.ids[..], &*asked.trace), (16, &[EOS][..], "mine-1"));
    assert_eq!(body["seed"], json!(asked.sampling.seed));
    assert!(seen.cancelled.is_empty());
}

#[tokio::test]
async fn prompts_come_as_texts_and_as_token_ids() {
    let (_, server) = server().await;
    let ids: Vec<u32> = "say hi".bytes().map(u32::from).collect();
    for (prompt, count) in
        [(json!("say hi"), 1), (json!(ids), 1), (json!(["say hi", "say hi"]), 2), (json!([ids, ids, ids]), 3)]
    {
        let body = json!({"prompt": prompt, "n": 2, "echo": true, "return_token_ids": true, "max_tokens": 2});
        let body = server.post(TEXT, body).await.json();
        let choices = body["choices"].as_array().unwrap();
        assert_eq!(choices.len(), 2 * count);
        for (index, choice) in choices.iter().enumerate() {
            assert_eq!((&choice["index"], &choice["text"]), (&json!(index), &json!("say hihi")));
            assert_eq!(
                (&choice["finish_reason"], &choice["token_ids"]),
                (&json!("length"), &json!([104, 105]))
            );
            assert!(choice["prompt_token_ids"].as_array().unwrap().len() >= 6);
        }
        assert_eq!(body["usage"]["completion_tokens"], json!(4 * count));
    }
}

#[tokio::test]
async fn prompts_of_one_request_are_drawn_apart() {
    let (fake, server) = server().await;
    for _ in 0..2 {
        server.post(TEXT, json!({"prompt": ["say hi", "say hi", "say hi"], "seed": 7})).await.json();
    }
    let seeds: Vec<u64> = fake.seen.lock().unwrap().asked.iter().map(|a| a.sampling.seed).collect();
    assert_eq!((seeds[0], &seeds[..3]), (7, &seeds[3..]), "the same again, and the first by the seed itself");
    assert!(seeds[0] != seeds[1] && seeds[1] != seeds[2] && seeds[0] != seeds[2], "{seeds:?}");
}

#[tokio::test]
async fn a_completion_streams() {
    let (_, server) = server().await;
    let body =
        json!({"prompt": "say grüß", "stream": true, "stream_options": {"include_usage": true}, "n": 2});
    let answer = server.post(TEXT, body).await;
    assert_eq!(answer.headers["content-type"], "text/event-stream");
    let events = answer.events();
    let (usage, events) = events.split_last().unwrap();
    for index in 0..2 {
        let of: Vec<&Value> = events
            .iter()
            .map(|event| &event["choices"][0])
            .filter(|choice| choice["index"] == index)
            .collect();
        let text: String = of.iter().map(|choice| choice["text"].as_str().unwrap()).collect();
        assert_eq!(text, "grüß");
        let finishes: Vec<&Value> =
            of.iter().map(|choice| &choice["finish_reason"]).filter(|reason| !reason.is_null()).collect();
        assert_eq!(finishes, [&json!("stop")]);
    }
    assert!(events.iter().all(|event| event["usage"].is_null() && event.get("usage").is_some()));
    assert!(events.iter().all(|event| event["id"] == usage["id"] && event["seed"] == usage["seed"]));
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"], json!({"prompt_tokens": 11, "completion_tokens": 14, "total_tokens": 25}));
}

#[tokio::test]
async fn a_chat() {
    let (fake, server) = server().await;
    let body = with(
        chat("say hello"),
        json!({"max_completion_tokens": 3, "max_tokens": 99, "temperature": 0, "seed": 5, "return_token_ids": true}),
    );
    let body = server.post(CHAT, body).await.json();
    assert_eq!(body["object"], "chat.completion");
    assert!(body["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(
        body["choices"][0],
        json!({"index": 0, "message": {"role": "assistant", "content": "hel", "refusal": null}, "logprobs": null,
               "finish_reason": "length", "stop_reason": null, "token_ids": [104, 101, 108]})
    );
    assert_eq!((&body["seed"], &body["prompt_token_ids"][0]), (&json!(5), &json!(115)));
    let asked = fake.seen.lock().unwrap().asked[0].clone();
    assert_eq!((asked.sampling.temperature, asked.sampling.seed), (0.0, 5));
}

#[tokio::test]
async fn a_chat_streams() {
    let (_, server) = server().await;
    let answer = server
        .post(CHAT, with(chat("say hi"), json!({"stream": true, "logprobs": true, "top_logprobs": 1})))
        .await;
    let events = answer.events();
    assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert!(
        events.iter().all(|event| event["object"] == "chat.completion.chunk" && event.get("usage").is_none())
    );
    let contents: Vec<&str> =
        events[1..].iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(contents, ["h", "i"]);
    assert_eq!(events[1]["choices"][0]["logprobs"]["content"][0]["token"], "h");
    let last = events.last().unwrap();
    assert_eq!(
        (&last["choices"][0]["finish_reason"], &last["choices"][0]["delta"]),
        (&json!("stop"), &json!({}))
    );
}

#[tokio::test]
async fn logprobs_have_every_digit() {
    let (_, server) = server().await;
    let body = json!({"prompt": "say hi", "logprobs": 2, "max_tokens": 2});
    let raw = server.post(TEXT, body).await;
    let value = -(b'h' as f32) / 7.0;
    assert!(raw.body.contains(&format!("\"token_logprobs\":[{value},")), "{}", raw.body);
    assert_eq!(value.to_string().parse::<f32>().unwrap().to_bits(), value.to_bits());
    let logprobs = &raw.json()["choices"][0]["logprobs"];
    assert_eq!((&logprobs["tokens"], &logprobs["text_offset"]), (&json!(["h", "i"]), &json!([0, 1])));
    let top: Vec<&String> = logprobs["top_logprobs"][0].as_object().unwrap().keys().collect();
    assert_eq!(top, ["a", "b", "h"]);
    // A character of two tokens is one of the text, and a special token that is skipped is none.
    for stream in [false, true] {
        let body = json!({"prompt": "say é#h", "logprobs": 0, "max_tokens": 5, "stream": stream});
        let answer = server.post(TEXT, body).await;
        let all = if stream { answer.events() } else { vec![answer.json()] };
        let offsets: Vec<&Value> = all
            .iter()
            .filter_map(|part| part["choices"][0]["logprobs"]["text_offset"].as_array())
            .flatten()
            .collect();
        assert_eq!(offsets, [0, 0, 1, 1, 2]);
    }

    let body = with(chat("say h"), json!({"logprobs": true, "top_logprobs": 2}));
    let raw = server.post(CHAT, body).await;
    assert!(raw.body.contains(&format!("\"logprob\":{value},")), "{}", raw.body);
    let content = &raw.json()["choices"][0]["logprobs"]["content"];
    assert_eq!((&content[0]["token"], &content[0]["bytes"]), (&json!("h"), &json!([104])));
    assert_eq!(content[0]["top_logprobs"].as_array().unwrap().len(), 2);
    assert_eq!(content[1]["token"], "<256>");
}

#[tokio::test]
async fn stop_strings_end_a_choice() {
    let (fake, server) = server().await;
    for (include, text) in [(false, "hello "), (true, "hello wor")] {
        let body = json!({"prompt": "say hello world", "stop": ["xyz", "wor"], "include_stop_str_in_output": include});
        let body = server.post(TEXT, body).await.json();
        let choice = &body["choices"][0];
        assert_eq!(
            (&choice["text"], &choice["finish_reason"], &choice["stop_reason"]),
            (&json!(text), &json!("stop"), &json!("wor"))
        );
        assert_eq!(body["usage"]["completion_tokens"], 9);
    }
    let streamed = json!({"prompt": "say hello world", "stop": "wor", "stream": true});
    let text: String = server
        .post(TEXT, streamed)
        .await
        .events()
        .iter()
        .map(|event| event["choices"][0]["text"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(text, "hello ");
    assert!(fake.seen.lock().unwrap().cancelled.iter().all(|(_, cause)| *cause == CancelCause::StopString));
    // Below min_tokens no stop string counts.
    let body = json!({"prompt": "say hello hello", "stop": "ll", "min_tokens": 4});
    assert_eq!(server.post(TEXT, body).await.json()["choices"][0]["text"], "hello he");
}

#[tokio::test]
async fn stop_tokens_end_a_choice_and_are_hidden() {
    let (_, server) = server().await;
    let ask = async |more: Value| {
        let body = with(json!({"prompt": "say a#b", "max_tokens": 6, "return_token_ids": true}), more);
        let choice = server.post(TEXT, body).await.json()["choices"][0].clone();
        (choice["text"].clone(), choice["stop_reason"].clone(), choice["token_ids"].as_array().unwrap().len())
    };
    assert_eq!(ask(json!({})).await, (json!("ab"), Value::Null, 4));
    assert_eq!(ask(json!({"stop_token_ids": [STOP]})).await, (json!("a"), json!(STOP), 2));
    let shown =
        json!({"stop_token_ids": [STOP], "include_stop_str_in_output": true, "skip_special_tokens": false});
    assert_eq!(ask(shown).await, (json!("a<258>"), json!(STOP), 2));
    assert_eq!(ask(json!({"ignore_eos": true})).await, (json!("ab"), Value::Null, 6));
}

#[tokio::test]
async fn keys_models_and_tokens() {
    let fake = Fake::new();
    let server = Server::start(gateway(&fake).with_keys(Keys::new(["sesame"])), |_| {}).await;
    assert_eq!(server.get("/v1/models").await.error(), (401, "invalid_api_key".into(), String::new()));
    let key = [("authorization", "Bearer sesame")];
    let body = json!({"prompt": "say a"}).to_string();
    assert_eq!(server.send("POST", TEXT, &[], &body).await.status, 401);
    assert_eq!(server.send("POST", TEXT, &key, &body).await.status, 200);
    assert_ne!(fake.seen.lock().unwrap().asked[0].salt, 0);
    let models = server.send("GET", "/v1/models", &key, "").await.json();
    assert_eq!(models["data"][0]["id"], "bytes");
    assert_eq!(server.send("GET", "/v1/models/owner/bytes", &key, "").await.json()["max_model_len"], 512);
    assert_eq!(server.send("GET", "/v1/models/other", &key, "").await.error().1, "model_not_found");

    let (_, server) = super::fake::server().await;
    let tokens = server.post("/tokenize", json!({"prompt": "hé", "return_token_strs": true})).await.json();
    assert_eq!((&tokens["tokens"], &tokens["count"]), (&json!([BOS, 104, 195, 169]), &json!(4)));
    assert_eq!(server.post("/tokenize", chat("ab")).await.json()["tokens"], json!([97, 98]));
    assert_eq!(server.post("/detokenize", json!({"tokens": [104, 195, 169]})).await.json()["prompt"], "hé");
}

/// The test's own thread is the one that serves sockets here.
#[tokio::test]
async fn long_texts_are_not_worked_on_where_sockets_are_served() {
    let (fake, server) = server().await;
    let sockets = std::thread::current().id();
    let ids = vec![vec![97; 400]; 12];
    let long = "a".repeat(450);
    for (path, body, calls) in [
        (TEXT, json!({"prompt": vec![long.clone(); 12]}), 12),
        (TEXT, json!({"prompt": ids, "echo": true}), 12),
        (CHAT, json!({"messages": vec![json!({"role": "user", "content": long}); 12]}), 2),
        ("/tokenize", json!({"prompt": "a".repeat(5000)}), 1),
        ("/tokenize", json!({"messages": [{"role": "user", "content": "a".repeat(5000)}]}), 2),
        ("/detokenize", json!({"tokens": vec![97; 5000]}), 1),
    ] {
        assert_eq!(server.post(path, body).await.status, 200, "{path}");
        let threads = std::mem::take(&mut *fake.text.threads.lock().unwrap());
        assert_eq!(threads.len(), calls, "{path}");
        assert!(threads.iter().all(|thread| *thread != sockets && *thread == threads[0]), "one job: {path}");
    }
    // Where the way to another thread takes longer than the work.
    assert_eq!(server.post(TEXT, json!({"prompt": "say a"})).await.status, 200);
    assert_eq!(*fake.text.threads.lock().unwrap(), [sockets]);
}

#[tokio::test]
async fn a_slow_start_is_kept_alive_with_comments() {
    let fake = Fake::new();
    let timeouts = Timeouts {
        first: Duration::from_millis(1),
        heartbeat: Duration::from_millis(20),
        ..Timeouts::default()
    };
    let server = Server::start(gateway(&fake).with_timeouts(timeouts), |_| {}).await;
    let answer = server.post(TEXT, json!({"prompt": "slow hi", "stream": true})).await;
    assert!(answer.body.contains(": waiting"), "{}", answer.body);
    assert_eq!(answer.events().last().unwrap()["choices"][0]["finish_reason"], "stop");
    // A refusal that comes after the status is an event.
    let answer = server.post(TEXT, json!({"prompt": "late x", "stream": true})).await;
    assert_eq!((answer.status, &answer.events()[0]["error"]["code"]), (200, &json!("rate_limit_exceeded")));
}

#[tokio::test]
async fn a_prompt_may_be_shorter_than_the_context_only() {
    let fake = Fake::new();
    let limits = Limits { prompt_tokens: Some(20), ..Limits::default() };
    let server = Server::start(gateway(&fake).with_limits(limits), |_| {}).await;
    let ask = async |len: usize| server.post(TEXT, json!({"prompt": vec![97; len]})).await.status;
    assert_eq!((ask(20).await, ask(21).await), (200, 400));
}
