//! As much of an API server as a watch of ExpertPlacements sees: lists, watches, and what goes wrong with both.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

const PATH: &str = "/apis/sluice.dev/v1alpha1/namespaces/ns/expertplacements";

/// What there is, which outlives the process that serves it.
#[derive(Debug, Default)]
struct Store {
    version: u64,
    objects: BTreeMap<String, Value>,
    events: Vec<(u64, Value)>,
    /// Versions up to this are not remembered.
    forgotten: u64,
    /// What is answered instead of anything.
    refuses: Option<u16>,
    /// Watches before this one are cut.
    cuts: u64,
    lists: u64,
}

/// The API server.
#[derive(Debug)]
pub(super) struct Api {
    store: Arc<Mutex<Store>>,
    changes: watch::Sender<()>,
    pub at: SocketAddr,
    process: Option<Runtime>,
}

impl Api {
    /// It is not there yet.
    pub fn new() -> Self {
        let at = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        Self { store: Arc::default(), changes: watch::channel(()).0, at, process: None }
    }

    pub fn start(&mut self) {
        let process = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let served = (Arc::clone(&self.store), self.changes.subscribe());
        let router = Router::new().route(PATH, get(answer)).with_state(served);
        let at = self.at;
        process.spawn(async move {
            let listener = tokio::net::TcpListener::bind(at).await.unwrap();
            axum::serve(listener, router).await.unwrap();
        });
        self.process = Some(process);
    }

    /// With all its connections.
    pub fn stop(&mut self) {
        if let Some(process) = self.process.take() {
            process.shutdown_background();
        }
    }

    fn with<T>(&self, change: impl FnOnce(&mut Store) -> T) -> T {
        let done = change(&mut self.store.lock().unwrap());
        self.changes.send_replace(());
        done
    }

    pub fn put(&self, object: &Value) {
        self.with(|s| {
            s.version += 1;
            let mut object = object.clone();
            object["metadata"]["resourceVersion"] = s.version.to_string().into();
            let name = object["metadata"]["name"].as_str().unwrap().to_owned();
            let kind = if s.objects.contains_key(&name) { "MODIFIED" } else { "ADDED" };
            s.events.push((s.version, json!({ "type": kind, "object": object })));
            s.objects.insert(name, object);
        });
    }

    pub fn delete(&self, name: &str) {
        self.with(|s| {
            s.version += 1;
            let mut object = s.objects.remove(name).unwrap();
            object["metadata"]["resourceVersion"] = s.version.to_string().into();
            s.events.push((s.version, json!({ "type": "DELETED", "object": object })));
        });
    }

    /// Answers nothing but this from now on, and cuts the watches.
    pub fn refuse(&self, code: Option<u16>) {
        self.with(|s| {
            s.refuses = code;
            s.cuts += 1;
        });
    }

    pub fn cut(&self) {
        self.with(|s| s.cuts += 1);
    }

    /// Remembers nothing of what was.
    pub fn forget(&self) {
        self.with(|s| s.forgotten = s.version);
    }

    pub fn lists(&self) -> u64 {
        self.store.lock().unwrap().lists
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.stop();
    }
}

type Served = (Arc<Mutex<Store>>, watch::Receiver<()>);

fn status(code: u16, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message, "reason": "",
    })
}

async fn answer(State(served): State<Served>, Query(query): Query<HashMap<String, String>>) -> Response {
    assert_eq!(query["labelSelector"], "sluice.dev/deployment=m,sluice.dev/cohort=c1");
    let mut store = served.0.lock().unwrap();
    if let Some(code) = store.refuses {
        let code = StatusCode::from_u16(code).unwrap();
        return (code, axum::Json(status(code.as_u16(), "not now"))).into_response();
    }
    if query.get("watch").is_some_and(|w| w == "true") {
        let since = query["resourceVersion"].parse().unwrap();
        let cuts = store.cuts;
        drop(store);
        return Body::from_stream(watched(served, since, cuts)).into_response();
    }
    store.lists += 1;
    let items: Vec<&Value> = store.objects.values().collect();
    let version = store.version.to_string();
    axum::Json(json!({
        "kind": "ExpertPlacementList",
        "apiVersion": "sluice.dev/v1alpha1",
        "metadata": { "resourceVersion": version },
        "items": items,
    }))
    .into_response()
}

/// The events after a version, as they come, until they are cut.
fn watched(
    served: Served,
    since: u64,
    cuts: u64,
) -> impl futures_util::Stream<Item = Result<Bytes, Infallible>> + Send {
    futures_util::stream::unfold((served, since), move |((store, mut changes), since)| async move {
        let again = Arc::clone(&store);
        loop {
            {
                let store = store.lock().unwrap();
                if store.cuts != cuts {
                    return None;
                }
                let next = store.events.iter().find(|(version, _)| *version > since);
                let line = match next {
                    _ if since < store.forgotten => {
                        Some((since, json!({ "type": "ERROR", "object": status(410, "too old") })))
                    }
                    next => next.cloned(),
                };
                if let Some((version, event)) = line {
                    drop(store);
                    let is_over = event["type"] == "ERROR";
                    let after = if is_over { u64::MAX } else { version };
                    return Some((Ok(Bytes::from(format!("{event}\n"))), ((again, changes), after)));
                }
            }
            if changes.changed().await.is_err() {
                return None;
            }
        }
    })
}
