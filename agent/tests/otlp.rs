//! Traces reach a collector: those of the requests that were chosen, and no others.

#![allow(clippy::unwrap_used, reason = "a test's own sockets")]

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use sluice_agent::cli::{Command, LogFormat, ServeOptions, parse};
use sluice_agent::node::serve;
use sluice_agent::telemetry::start_logs;
use tokio::sync::oneshot;

/// The bodies that were posted to `/v1/traces` of a collector.
fn collector() -> (SocketAddr, Receiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (post, posted) = channel();
    std::thread::spawn(move || {
        for connection in listener.incoming().map_while(Result::ok) {
            let post = post.clone();
            std::thread::spawn(move || while take(&connection, &post).is_some() {});
        }
    });
    (address, posted)
}

/// One request of a connection.
fn take(mut connection: &TcpStream, post: &Sender<Vec<u8>>) -> Option<()> {
    let mut reader = BufReader::new(connection);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    assert!(head.starts_with("POST /v1/traces "), "{head}");
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("content-length").then(|| value.parse().unwrap())
    });
    let mut body = vec![0; length.unwrap()];
    reader.read_exact(&mut body).ok()?;
    connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").ok()?;
    post.send(body).ok()
}

fn options(collector: SocketAddr, share: &str) -> ServeOptions {
    let line = format!(
        "sluice-agent serve --listen 127.0.0.1:0 --admin-listen off --threads 1 --otlp-endpoint http://{collector} \
         --trace-sample {share}"
    );
    let args: Vec<OsString> = line.split_whitespace().map(Into::into).collect();
    let Command::Serve(args) = parse(&args).unwrap().command else { panic!("not serve") };
    args.check().unwrap()
}

/// Serves one request with an id.
fn served(options: ServeOptions, id: &'static str) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let (ready, address) = oneshot::channel();
    let (stop, stopped) = oneshot::channel();
    runtime.block_on(async {
        let server =
            serve(options, Arc::new(|_, _| {}), move |serving| ready.send(serving.listen).unwrap(), async {
                stopped.await.unwrap();
            });
        let client = async {
            let address = address.await.unwrap();
            tokio::task::spawn_blocking(move || ask(address, id)).await.unwrap();
            stop.send(()).unwrap();
        };
        let (served, ()) = tokio::join!(server, client);
        served.unwrap();
    });
}

fn ask(address: SocketAddr, id: &str) {
    let body = r#"{"prompt": "Once upon a time", "max_tokens": 3, "ignore_eos": true}"#;
    let length = body.len();
    let mut connection = TcpStream::connect(address).unwrap();
    let request = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-request-id: {id}\r\n\
         content-length: {length}\r\n\r\n{body}"
    );
    connection.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn spans_of_the_chosen_requests_are_posted() {
    let (address, posted) = collector();
    let all = options(address, "1");
    let logs = start_logs(LogFormat::Text, &all.traces).unwrap();
    served(options(address, "0"), "passed-over");
    served(all, "chosen");
    // What was not sent yet is sent now.
    drop(logs);
    let bodies: Vec<u8> = posted.try_iter().flatten().collect();
    // The names are plain text in the protocol's buffers.
    let has = |name: &str| bodies.windows(name.len()).any(|bytes| bytes == name.as_bytes());
    for name in ["sluice-agent", "chosen", "request", "attention", "head"] {
        assert!(has(name), "{name} is missing");
    }
    assert!(!has("passed-over"), "a request that was not chosen was exported");
}
