//! Preparing a request: bounded whatever its client does.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;

use super::client::{Server, request};
use super::fake::{Fake, gateway};
use crate::gateway::Observer;

const PATH: &str = "/tokenize";

/// Connections that are open.
#[derive(Default)]
struct Open(AtomicI64);

impl Observer for Open {
    fn connections(&self, change: i64) {
        self.0.fetch_add(change, Ordering::Relaxed);
    }
}

async fn until(done: impl Fn() -> bool) {
    for _ in 0..2000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it never came");
}

#[tokio::test]
async fn work_keeps_its_places_though_its_client_left() {
    let fake = Fake::new();
    let (gate, closed) = mpsc::channel::<()>();
    fake.text.gates.lock().unwrap().push(closed);
    let mut gateway = gateway(&fake);
    gateway.work = Arc::new(Semaphore::new(1));
    let (requests, bodies) = (gateway.requests.clone(), gateway.bodies.clone());
    let (places, room) = (requests.available_permits(), bodies.available_permits());
    let open = Arc::new(Open::default());
    let server = Server::start(gateway, |config| config.observer = open.clone()).await;
    // Long enough not to be encoded where it is read.
    let long = json!({"prompt": "a".repeat(5000)}).to_string();
    let mut connection = server.connect().await;
    connection.write_all(request("POST", PATH, &[], &long).as_bytes()).await.unwrap();
    until(|| !fake.text.threads.lock().unwrap().is_empty()).await;
    drop(connection);
    until(|| open.0.load(Ordering::Relaxed) == 0).await;
    assert_eq!(requests.available_permits(), places - 1);
    assert!(bodies.available_permits() < room);
    // Nobody else's work begins, and who waits for that does so until its deadline.
    let late = server.send("POST", PATH, &[("x-request-timeout", "0.05")], &long).await;
    assert_eq!(late.error(), (504, "deadline_exceeded".into(), String::new()));
    assert_eq!(fake.text.threads.lock().unwrap().len(), 1);
    drop(gate);
    until(|| requests.available_permits() == places && bodies.available_permits() == room).await;
    assert_eq!(server.send("POST", PATH, &[], &long).await.status, 200);
}
