//! A gateway that goes down in good order.

use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncWriteExt;
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
