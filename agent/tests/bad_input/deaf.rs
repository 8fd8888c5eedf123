//! A client that reads nothing of a long stream.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::http::Client;
use super::server::Server;

const CHOICES: u32 = 16;
const TOKENS: u32 = 400;

/// A stream whose events are long: 20 log-probabilities with each token.
fn asks() -> Value {
    json!({
        "messages": [{ "role": "user", "content": "Tell me a story." }],
        "stream": true, "n": CHOICES, "max_tokens": TOKENS, "ignore_eos": true, "seed": 1, "temperature": 1.0,
        "logprobs": true, "top_logprobs": 20,
    })
}

/// A connection with the smallest buffer there is for what comes.
fn connect(address: SocketAddr) -> Client {
    let tokio = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    let stream = tokio.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(1).unwrap();
        socket.connect(address).await.unwrap().into_std().unwrap()
    });
    stream.set_nonblocking(false).unwrap();
    Client::over(stream)
}

#[test]
fn a_client_that_reads_nothing_is_let_go() {
    // Room for what it asks for, no more: so that the pool is all in use once, and its memory counts before.
    let mut server =
        Server::start(4096, &["--kv-tokens", "8192", "--prefix-cache", "off", "--write-timeout", "2s"]);
    let path = "/v1/chat/completions";
    let whole = Client::connect(server.listen).post(path, &asks());
    assert_eq!(whole.status, 200);
    assert!(whole.body.ends_with("data: [DONE]\n\n"));
    server.rests();
    let before = server.metrics();

    let mut deaf = connect(server.listen);
    deaf.send("POST", path, asks().to_string().as_bytes());
    let (mut others, mut memory) = (0, 0.0_f64);
    server.until("rid of the client", |server| {
        server.serves();
        others += 1;
        let metrics = server.metrics();
        memory = memory.max(metrics.sum("process_resident_memory_bytes"));
        let ended = "sluice_sequences_ended_total";
        let over = metrics.sum(ended) - before.sum(ended) == f64::from(CHOICES + others);
        over && metrics.sum("sluice_http_connections") == 0.0
    });
    let series = "sluice_sequences_ended_total{outcome=\"cancelled\"}";
    let cancelled = server.metrics().one(series) - before.one(series);
    let grown = memory - before.sum("process_resident_memory_bytes");
    // What was written before it was let go waits in the buffers of the two sockets. The end of the stream does not.
    let got = deaf.rest();
    println!(
        "a client that reads nothing: a stream of {} bytes ends after {} that were written and {cancelled} of \
         {CHOICES} sequences cancelled; the server grew by {grown} bytes; {others} others were served meanwhile",
        whole.body.len(),
        got.len(),
    );
    assert!(got.starts_with(b"HTTP/1.1 200"));
    assert!(got.len() < whole.body.len() && !got.ends_with(b"data: [DONE]\n\n\r\n0\r\n\r\n"));
    assert!(grown < whole.body.len() as f64 / 2.0, "buffers of {grown} bytes");
    drop(deaf);
    server.rests();
    server.stop();
}
