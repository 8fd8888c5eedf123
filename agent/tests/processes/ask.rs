//! Requests of every kind, and what they are answered.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

use crate::deployment::{Deployment, until};

/// Requests that are asked at the same time.
pub struct Asked(Vec<Value>);

impl Asked {
    /// A quarter each: greedy, drawn with penalties, two choices, and JSON that fits a schema.
    pub fn mix(count: usize, tokens: u32) -> Self {
        let body = |i: usize| {
            let mut body = json!({
                "prompt": format!("{} Once upon a time, in {i} places at once, there", "word ".repeat(i * 30)),
                "max_tokens": tokens, "logprobs": 2, "return_token_ids": true,
            });
            let more = match i % 4 {
                0 => json!({"temperature": 0, "seed": i, "ignore_eos": true}),
                1 => {
                    json!({"temperature": 0.9, "seed": i, "presence_penalty": 0.5, "frequency_penalty": 0.3, "ignore_eos": true})
                }
                2 => json!({"temperature": 1.0, "seed": 77 + i, "n": 2, "ignore_eos": true}),
                _ => json!({"temperature": 0.7, "seed": i, "structured_outputs": {"json": {
                    "type": "object", "properties": {"name": {"type": "string", "maxLength": 40}, "age": {"type": "integer"}},
                    "required": ["name", "age"], "additionalProperties": false,
                }}}),
            };
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            body
        };
        Self((0..count).map(body).collect())
    }

    pub fn run(&self, d: &Deployment) -> Vec<Value> {
        let listen = d.listen();
        std::thread::scope(|scope| {
            let all: Vec<_> = self.0.iter().map(|body| scope.spawn(move || post(listen, body))).collect();
            all.into_iter().map(|a| a.join().unwrap()).collect()
        })
    }

    /// Asks, and does something meanwhile.
    pub fn run_while(&self, d: &mut Deployment, act: impl FnOnce(&mut Deployment)) -> Vec<Value> {
        let listen = d.listen();
        let tokens = |d: &Deployment| metric(d, "g0", "sluice_generated_tokens_total");
        let before = tokens(d);
        std::thread::scope(|scope| {
            let all: Vec<_> = self.0.iter().map(|body| scope.spawn(move || post(listen, body))).collect();
            // Not before all of it flows.
            until("tokens flow", Duration::from_secs(60), || tokens(d) > before + 10.0);
            act(d);
            all.into_iter().map(|a| a.join().unwrap()).collect()
        })
    }
}

/// Whether two runs were answered the same; if not, the first difference.
pub fn same(what: &str, is: &[Value], due: &[Value]) {
    for (i, (is, due)) in is.iter().zip(due).enumerate() {
        assert!(is == due, "{what}: request {i} was answered\n{is}\nand should have been\n{due}");
    }
}

/// What of an answer does not depend on when it was given.
fn post(listen: SocketAddr, body: &Value) -> Value {
    let body = body.to_string();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: g0\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let (status, text) = exchange(listen, &(head + &body)).unwrap();
    let mut answer: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{status} {text}: {e}"));
    assert_eq!(status, 200, "{answer}");
    for own in ["id", "created"] {
        answer.as_object_mut().unwrap().remove(own);
    }
    answer
}

/// A page: its status and its text.
pub fn get(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    exchange(address, &format!("GET {path} HTTP/1.1\r\nhost: it\r\nconnection: close\r\n\r\n"))
}

fn exchange(address: SocketAddr, request: &str) -> std::io::Result<(u16, String)> {
    let mut tcp = TcpStream::connect(address)?;
    tcp.set_read_timeout(Some(Duration::from_secs(120)))?;
    tcp.write_all(request.as_bytes())?;
    let mut text = vec![];
    tcp.read_to_end(&mut text)?;
    answer(&text)
}

/// Takes an HTTP answer apart.
pub fn answer(bytes: &[u8]) -> std::io::Result<(u16, String)> {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let status =
        head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or(std::io::ErrorKind::InvalidData)?;
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    Ok((status, if chunked { unchunked(body) } else { body.to_owned() }))
}

fn unchunked(mut rest: &str) -> String {
    let mut out = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap_or(0);
        out += after.get(..size).unwrap_or_default();
        rest = after.get(size + 2..).unwrap_or_default();
    }
    out
}

/// A series' sum over its labels.
pub fn metric(d: &Deployment, name: &str, series: &str) -> f64 {
    let (_, page) = get(d.admin(name), "/metrics").unwrap();
    page.lines()
        .filter(|l| l.strip_prefix(series).is_some_and(|r| r.starts_with([' ', '{'])))
        .filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}
