//! Which requests are traced.

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
