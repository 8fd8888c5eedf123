//! Which requests are traced, and what is logged of them.

use std::io::Write;
use std::sync::{Arc, Mutex};

use serde_json::json;
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt as _};

use super::client::Server;
use super::fake::{Fake, gateway};
use crate::gateway::TRACED;

/// The targets of the spans of requests.
#[derive(Clone, Default)]
struct Requests(Arc<Mutex<Vec<&'static str>>>);

impl<S: tracing::Subscriber> Layer<S> for Requests {
    fn on_new_span(&self, span: &tracing::span::Attributes<'_>, _: &tracing::span::Id, _: Context<'_, S>) {
        if span.metadata().name() == "request" {
            self.0.lock().unwrap().push(span.metadata().target());
        }
    }
}

#[tokio::test]
async fn the_share_of_the_requests_that_was_asked_for() {
    let requests = Requests::default();
    let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(requests.clone()));
    let mut traced = Vec::new();
    for share in [0.0, 0.5, 1.0] {
        let server = Server::start(gateway(&Fake::new()).with_traces(share), |_| {}).await;
        for _ in 0..64 {
            assert_eq!(server.post("/detokenize", json!({"tokens": [97]})).await.status, 200);
        }
        let targets = std::mem::take(&mut *requests.0.lock().unwrap());
        assert_eq!(targets.len(), 64, "every request has a span: what is logged in it names it");
        traced.push(targets.iter().filter(|target| **target == TRACED).count());
    }
    // By chance none or all of the half are chosen once in 2^63.
    assert!(traced[0] == 0 && (1..64).contains(&traced[1]) && traced[2] == 64, "{traced:?}");
}

/// What is logged.
#[derive(Clone, Default)]
struct Page(Arc<Mutex<Vec<u8>>>);

impl Write for Page {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn what_a_client_writes_is_a_part_of_one_line_of_the_log() {
    let page = Page::default();
    let made = page.clone();
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(move || made.clone());
    let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(lines));
    let server = Server::start(gateway(&Fake::new()), |_| {}).await;
    let forged = format!("x\n2026-01-01T00:00:00Z ERROR all is lost {}", "y".repeat(100_000));
    let body = json!({"model": forged, "prompt": "say a"});
    assert_eq!(server.post("/v1/completions", body).await.status, 404);
    let log = String::from_utf8(page.0.lock().unwrap().clone()).unwrap();
    let said: Vec<&str> = log.lines().filter(|line| line.contains("all is lost")).collect();
    assert!(said.len() == 1 && said[0].contains("`x\\n2026") && said[0].len() < 1000, "{log}");
}
