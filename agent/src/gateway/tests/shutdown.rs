//! A gateway that goes down in good order.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::client::{Server, read, read_until, request};
use super::fake::{Fake, gateway};
use crate::gateway::Timeouts;

const TEXT: &str = "/v1/completions";

#[tokio::test]
async fn what_runs_is_finished() {
    let fake = Fake::new();
    let server = Server::start(gateway(&fake), |_| {}).await;
    let address = server.address;
    let idle = server.connect().await;
    let mut running = Vec::new();
    for stream in [false, true] {
        let mut connection = server.connect().await;
        let body = json!({"prompt": "slow hello", "stream": stream}).to_string();
        connection.write_all(request("POST", TEXT, &[], &body).as_bytes()).await.unwrap();
        running.push(connection);
    }
    fake.until(|seen| seen.running == 2).await;
    let stopped = server.stop();
    for (mut connection, text) in running.into_iter().zip(["hello", "[DONE]"]) {
        let answer = read(&mut connection).await;
        assert_eq!(answer.status, 200);
        assert!(answer.body.contains(text));
    }
    assert_eq!(stopped.await.unwrap(), 0);
    assert!(TcpStream::connect(address).await.is_err());
    drop(idle);
}

#[tokio::test]
async fn a_kept_connection_is_answered_once_more() {
    let fake = Fake::new();
    let server = Server::start(gateway(&fake), |_| {}).await;
    let body = json!({"prompt": "say hello"}).to_string();
    let kept = request("POST", TEXT, &[], &body).replace("connection: close\r\n", "");
    let (mut asked, mut idle) = (server.connect().await, server.connect().await);
    for connection in [&mut asked, &mut idle] {
        connection.write_all(kept.as_bytes()).await.unwrap();
        read_until(connection, "usage").await;
    }
    let stopped = server.stop();
    // It does not close what a client may be asking on at this moment.
    tokio::time::sleep(Duration::from_millis(100)).await;
    asked.write_all(kept.as_bytes()).await.unwrap();
    let answer = read(&mut asked).await;
    assert_eq!((answer.status, answer.headers["connection"].as_str()), (200, "close"));
    assert!(read_rest(&mut idle).await.is_empty(), "it ends when nothing is asked");
    assert_eq!(stopped.await.unwrap(), 0);
}

/// What comes until the end of a connection.
async fn read_rest(connection: &mut TcpStream) -> String {
    let mut rest = String::new();
    let read = connection.read_to_string(&mut rest);
    tokio::time::timeout(Duration::from_secs(20), read).await.expect("it stays open").unwrap();
    rest
}

#[tokio::test]
async fn what_does_not_end_is_cut_after_a_while() {
    let fake = Fake::new();
    let timeouts = Timeouts { drain: Duration::from_millis(50), ..Timeouts::default() };
    let server = Server::start(gateway(&fake).with_timeouts(timeouts), |_| {}).await;
    let mut connection = server.connect().await;
    let body = json!({"prompt": "wait x", "stream": true}).to_string();
    connection.write_all(request("POST", TEXT, &[], &body).as_bytes()).await.unwrap();
    read_until(&mut connection, "\"text\":\"w\"").await;
    assert_eq!(server.stop().await.unwrap(), 1);
}
