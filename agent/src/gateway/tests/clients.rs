//! Clients that go, stall, or hold on to what they do not use.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use sluice_core::front::CancelCause;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};

use super::client::{Server, read, read_until, request};
use super::fake::{Fake, gateway, server};
use crate::gateway::{Limits, Observer, Timeouts};

const TEXT: &str = "/v1/completions";

#[tokio::test]
async fn a_client_that_goes_away_cancels_its_sequences() {
    let (fake, server) = server().await;
    for (stream, n) in [(true, 3), (false, 2)] {
        let mut connection = server.connect().await;
        let body = json!({"prompt": "wait x", "stream": stream, "n": n}).to_string();
        connection.write_all(request("POST", TEXT, &[], &body).as_bytes()).await.unwrap();
        if stream {
            read_until(&mut connection, "\"text\":\"w\"").await;
        }
        fake.until(|seen| seen.running == n).await;
        drop(connection);
        fake.until(|seen| seen.running == 0).await;
        let cancelled = std::mem::take(&mut fake.seen.lock().unwrap().cancelled);
        assert_eq!(cancelled.len(), n);
        assert!(cancelled.iter().all(|(_, cause)| *cause == CancelCause::Client));
    }
}

/// A client with little room asks for far more than it will read.
async fn flood(server: &Server) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut connection = socket.connect(server.address).await.unwrap();
    let body = json!({"prompt": "flood x", "stream": true, "max_tokens": 4_000_000}).to_string();
    connection.write_all(request("POST", TEXT, &[], &body).as_bytes()).await.unwrap();
    connection
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_let_go() {
    let fake = Fake::new();
    let limits = Limits { backlog: 64, ..Limits::default() };
    let timeouts = Timeouts { write: Duration::from_millis(200), ..Timeouts::default() };
    let mut gateway = gateway(&fake).with_limits(limits).with_timeouts(timeouts);
    gateway.model.context = 1 << 22;
    let server = Server::start(gateway, |_| {}).await;
    let mut connection = flood(&server).await;
    // First its sequence is given up, since tokens pile up; then its connection.
    fake.until(|seen| seen.gone == 1 && seen.running == 0).await;
    sleep(Duration::from_millis(300)).await;
    let mut rest = Vec::new();
    let end = timeout(Duration::from_secs(10), connection.read_to_end(&mut rest)).await.expect("still open");
    let whole = String::from_utf8_lossy(&rest).contains("[DONE]");
    assert!(end.is_err() || !whole, "the connection ended in good order");
}

/// Counts the requests that were given up.
#[derive(Default)]
struct Given(AtomicUsize);

impl Observer for Given {
    fn overflowed(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn a_client_that_reads_too_slowly_is_told_so() {
    let fake = Fake::new();
    let given = Arc::new(Given::default());
    let mut gateway = gateway(&fake).with_limits(Limits { backlog: 64, ..Limits::default() });
    gateway.model.context = 1 << 22;
    gateway.observer = given.clone();
    let server = Server::start(gateway, |_| {}).await;
    let mut connection = flood(&server).await;
    fake.until(|seen| seen.gone == 1 && seen.running == 0).await;
    let answer = read(&mut connection).await;
    let last = answer.events().pop().unwrap();
    assert_eq!((&last["error"]["code"], given.0.load(Ordering::Relaxed)), (&json!("client_too_slow"), 1));
}

#[tokio::test]
async fn a_connection_without_a_request_is_closed() {
    let fake = Fake::new();
    let brief = Duration::from_millis(100);
    let timeouts = Timeouts { header: brief, idle: brief, ..Timeouts::default() };
    let server = Server::start(gateway(&fake).with_timeouts(timeouts), |_| {}).await;
    for sent in [
        "",
        "P",
        "PRI * HTTP/2.0\r\n",
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let mut connection = server.connect().await;
        connection.write_all(sent.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        let closed = timeout(Duration::from_secs(10), connection.read_to_end(&mut rest)).await;
        assert!(closed.is_ok(), "{sent:?} held a connection");
    }
    // One that was used is closed as well, and one in use is not.
    let mut connection = server.connect().await;
    let body = json!({"prompt": "slow hi"}).to_string();
    let keep = request("POST", TEXT, &[], &body).replace("connection: close\r\n", "");
    connection.write_all(keep.as_bytes()).await.unwrap();
    assert_eq!(read(&mut connection).await.status, 200);
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_their_turn() {
    let fake = Fake::new();
    let server = Server::start(gateway(&fake), |config| config.connections = 2).await;
    let held = [server.connect().await, server.connect().await];
    sleep(Duration::from_millis(50)).await;
    let mut third = server.connect().await;
    third.write_all(request("GET", "/v1/models", &[], "").as_bytes()).await.unwrap();
    let mut byte = [0];
    assert!(
        timeout(Duration::from_millis(100), third.peek(&mut byte)).await.is_err(),
        "it was served beyond the limit"
    );
    drop(held);
    assert_eq!(read(&mut third).await.status, 200);
}

#[tokio::test]
async fn http_2_without_tls() {
    let (_, server) = server().await;
    let sender = http2(&server).await;
    let asks = (0..20).map(|i| {
        let mut sender = sender.clone();
        async move {
            let body = json!({"prompt": format!("say {i}"), "stream": i % 2 == 0}).to_string();
            let response = sender.send_request(post(body)).await.unwrap();
            assert_eq!(response.status(), 200);
            let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
            assert!(String::from_utf8_lossy(&body).contains("\"finish_reason\":\"stop\""));
        }
    });
    futures_util::future::join_all(asks).await;
}

/// Many requests of one HTTP/2 client: those it does not want any more end alone.
#[tokio::test]
async fn an_answer_that_is_dropped_ends_its_sequence_alone() {
    let (fake, server) = server().await;
    let mut sender = http2(&server).await;
    let first = sender.send_request(wait()).await.unwrap();
    let second = sender.send_request(wait()).await.unwrap();
    fake.until(|seen| seen.running == 2).await;
    drop(first);
    fake.until(|seen| seen.running == 1).await;
    drop(second);
    fake.until(|seen| seen.running == 0).await;
}

/// It reads its connection, but opens no window for its answer: only the answer stalls.
#[tokio::test]
async fn an_answer_that_is_not_taken_is_let_go() {
    let fake = Fake::new();
    let brief = Duration::from_millis(100);
    let timeouts = Timeouts { write: brief, heartbeat: brief, ..Timeouts::default() };
    let limits = Limits { backlog: 64, ..Limits::default() };
    let mut gateway = gateway(&fake).with_limits(limits).with_timeouts(timeouts);
    gateway.model.context = 1 << 22;
    let server = Server::start(gateway, |_| {}).await;
    let mut sender = http2(&server).await;
    let flood = json!({"prompt": "flood x", "stream": true, "max_tokens": 4_000_000}).to_string();
    let answer = sender.send_request(post(flood)).await.unwrap();
    fake.until(|seen| seen.gone == 1 && seen.running == 0).await;
    // The connection, and with it the request's place, is given back.
    let closed = async {
        while !sender.is_closed() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(20), closed).await.expect("the connection is still held");
    drop(answer);
}

type Http2 = hyper::client::conn::http2::SendRequest<http_body_util::Full<bytes::Bytes>>;

async fn http2(server: &Server) -> Http2 {
    let io = hyper_util::rt::TokioIo::new(server.connect().await);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn post(body: String) -> hyper::Request<http_body_util::Full<bytes::Bytes>> {
    hyper::Request::post(format!("http://x{TEXT}"))
        .body(http_body_util::Full::new(bytes::Bytes::from(body)))
        .unwrap()
}

fn wait() -> hyper::Request<http_body_util::Full<bytes::Bytes>> {
    post(json!({"prompt": "wait x", "stream": true}).to_string())
}
