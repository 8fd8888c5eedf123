//! Before a hub that cuts, lies and sends elsewhere.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path as Route, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use serde_json::{Value, json};

use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const PATIENCE: Patience =
    Patience { tries: 3, pause: Duration::from_millis(10), silence: Duration::from_secs(10) };

#[derive(Default)]
struct Store {
    files: BTreeMap<&'static str, Vec<u8>>,
    /// What is said of a file instead of its checksum.
    lies: BTreeMap<&'static str, &'static str>,
    /// Answers that are cut in the middle.
    cuts: u32,
    /// What was asked for: the file, from where, and whether with a token.
    asked: Vec<(String, String, bool)>,
    at: Option<SocketAddr>,
    refuses: bool,
}

type Shared = State<Arc<Mutex<Store>>>;

struct Server {
    store: Arc<Mutex<Store>>,
    at: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

fn sha256(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

async fn start() -> Server {
    let shard =
        |seed: u8| (0..300_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8 ^ seed).collect();
    let index = json!({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}});
    let files = [
        ("config.json", b"{}".to_vec()),
        ("tokenizer.json", b"{\"model\": {}}".to_vec()),
        ("chat_template.jinja", b"hello".to_vec()),
        ("additional_chat_templates/tools.jinja", b"tools".to_vec()),
        ("README.md", b"# No".to_vec()),
        (INDEX, index.to_string().into_bytes()),
        ("model-1.safetensors", shard(1)),
        ("model-2.safetensors", shard(2)),
        ("model-9.safetensors", shard(9)),
        ("../evil.json", b"evil".to_vec()),
    ];
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let store = Store { files: files.into(), at: Some(at), ..Store::default() };
    let store = Arc::new(Mutex::new(store));
    let router = Router::new()
        .route("/api/models/o/m/revision/{revision}", get(info))
        .route("/o/m/resolve/{commit}/{*file}", get(resolve))
        .route("/kept/{file}", get(kept))
        .with_state(Arc::clone(&store));
    let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    Server { store, at, task }
}

async fn info(
    State(store): Shared,
    Route(revision): Route<String>,
    query: Query<BTreeMap<String, String>>,
) -> Response {
    let store = store.lock().unwrap();
    if store.refuses {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    assert_eq!((revision.as_str(), query["blobs"].as_str()), ("release/1", "true"));
    let sibling = |(name, bytes): (&&str, &Vec<u8>)| {
        let mut said = json!({ "rfilename": name, "size": bytes.len() });
        if name.ends_with(".safetensors") {
            let lie = store.lies.get(name).map(ToString::to_string);
            said["lfs"] = json!({ "sha256": lie.unwrap_or_else(|| sha256(bytes)), "size": bytes.len(), "pointerSize": 1 });
        }
        said
    };
    let siblings: Vec<Value> = store.files.iter().map(sibling).collect();
    axum::Json(json!({ "id": "o/m", "sha": COMMIT, "siblings": siblings })).into_response()
}

async fn resolve(
    state: Shared,
    Route((commit, file)): Route<(String, String)>,
    headers: HeaderMap,
) -> Response {
    assert_eq!(commit, COMMIT);
    assert_eq!(headers[header::AUTHORIZATION], "Bearer secret");
    if file.ends_with(".safetensors") {
        // The same server under another name.
        let at = state.lock().unwrap().at.unwrap();
        return Redirect::temporary(&format!("http://localhost:{}/kept/{file}", at.port())).into_response();
    }
    kept(state, Route(file), headers).await
}

async fn kept(State(store): Shared, Route(file): Route<String>, headers: HeaderMap) -> Response {
    let mut store = store.lock().unwrap();
    let range = headers.get(header::RANGE).map(|r| r.to_str().unwrap().to_owned()).unwrap_or_default();
    let has_token = headers.contains_key(header::AUTHORIZATION);
    store.asked.push((file.clone(), range.clone(), has_token));
    let bytes = store.files[file.as_str()].clone();
    let from: usize =
        range.strip_prefix("bytes=").map_or(0, |r| r.strip_suffix('-').unwrap().parse().unwrap());
    let rest = bytes[from..].to_vec();
    let is_cut = store.cuts > 0 && file.ends_with(".safetensors");
    let body = if is_cut {
        store.cuts -= 1;
        let half = Bytes::copy_from_slice(&rest[..rest.len() / 2]);
        let parts = stream::iter([Ok(half)]).chain(stream::once(async {
            // What was sent before is to come out.
            tokio::time::sleep(Duration::from_millis(100)).await;
            Err(std::io::Error::other("cut"))
        }));
        Body::from_stream(parts)
    } else {
        Body::from(rest)
    };
    let mut answer = Response::new(body);
    if from > 0 {
        *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
        let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
        answer.headers_mut().insert(header::CONTENT_RANGE, range.parse().unwrap());
    }
    answer
}

impl Server {
    fn options(&self, dir: &Path) -> FetchOptions {
        let token = dir.join("token");
        std::fs::write(&token, "secret\n").unwrap();
        FetchOptions {
            repository: "o/m".into(),
            revision: "release/1".into(),
            endpoint: format!("http://{}/", self.at),
            token_file: Some(token),
            out: dir.join("model"),
        }
    }

    fn with<T>(&self, change: impl FnOnce(&mut Store) -> T) -> T {
        change(&mut self.store.lock().unwrap())
    }

    fn asked(&self) -> Vec<(String, String, bool)> {
        self.with(|s| std::mem::take(&mut s.asked))
    }
}

fn there(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_model_is_fetched_whole_though_it_is_cut_and_only_once() {
    let dir = tempfile::tempdir().unwrap();
    let server = start().await;
    server.with(|s| s.cuts = 2);
    let options = server.options(dir.path());
    let both = tokio::join!(fetch_with(&options, PATIENCE), fetch_with(&options, PATIENCE));
    let (fetched, again) = (both.0.unwrap(), both.1.unwrap());
    assert_eq!(fetched, again);
    assert_eq!((fetched.commit.as_str(), fetched.files.len()), (COMMIT, 7));
    let due = [
        DONE,
        LOCK,
        "additional_chat_templates",
        "chat_template.jinja",
        "config.json",
        "model-1.safetensors",
        "model-2.safetensors",
        INDEX,
        "tokenizer.json",
    ];
    assert_eq!(there(&options.out), due);
    for (name, bytes) in server.with(|s| s.files.clone()) {
        if due.contains(&name) {
            assert!(std::fs::read(options.out.join(name)).unwrap() == bytes, "{name}");
        }
    }
    let asked = server.asked();
    assert_eq!(asked.iter().filter(|(_, range, _)| !range.is_empty()).count(), 2, "{asked:?}");
    assert_eq!(asked.len(), 9, "each once, and the two that were cut twice: {asked:?}");
    let kept_elsewhere =
        |(file, _, has_token): &(String, String, bool)| file.ends_with(".safetensors") != *has_token;
    assert!(asked.iter().all(kept_elsewhere), "the token is the hub's alone: {asked:?}");

    // All of it is there: nobody is asked.
    server.task.abort();
    assert_eq!(fetch_with(&options, PATIENCE).await.unwrap(), fetched);
    let other = FetchOptions { revision: "main".into(), ..options };
    assert!(matches!(fetch_with(&other, PATIENCE).await, Err(FetchError::Cut { .. })), "another revision");
}

#[tokio::test]
async fn a_run_that_ends_is_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let server = start().await;
    let options = server.options(dir.path());
    server.with(|s| s.cuts = 2);
    let once = Patience { tries: 1, ..PATIENCE };
    let why = fetch_with(&options, once).await.unwrap_err().to_string();
    assert!(why.contains("it was cut after"), "{why}");
    let left = there(&options.out);
    assert!(left.iter().any(|name| name.starts_with(".model-") && name.ends_with(".part")), "{left:?}");
    server.with(|s| s.cuts = 0);
    // One of the parts is not what it was.
    let part = options.out.join(left.iter().find(|name| name.ends_with(".part")).unwrap());
    let len = std::fs::metadata(&part).unwrap().len() as usize;
    std::fs::write(&part, vec![0; len.max(1)]).unwrap();
    server.asked();
    fetch_with(&options, PATIENCE).await.unwrap();
    let asked = server.asked();
    assert!(!asked.iter().any(|(file, ..)| file == "tokenizer.json"), "that was there: {asked:?}");
    assert!(asked.iter().any(|(_, range, _)| !range.is_empty()), "{asked:?}");
    assert!(!there(&options.out).iter().any(|name| name.ends_with(".part")));
}

#[tokio::test]
async fn what_is_not_as_the_hub_says_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let server = start().await;
    let options = server.options(dir.path());
    server.with(|s| s.lies.insert("model-2.safetensors", "00ff"));
    let why = fetch_with(&options, PATIENCE).await.unwrap_err().to_string();
    assert!(why.starts_with("model-2.safetensors has the SHA-256 "), "{why}");
    assert!(why.ends_with("and the hub says 00ff: it is not kept"), "{why}");
    let left = there(&options.out);
    assert!(!left.iter().any(|name| name.contains("model-2") || name == DONE), "{left:?}");

    server.with(|s| s.files.remove("model-2.safetensors"));
    let why = fetch_with(&options, PATIENCE).await.unwrap_err().to_string();
    assert!(why.contains("the repository has no model-2.safetensors"), "{why}");
    server.with(|s| s.refuses = true);
    let why = fetch_with(&options, PATIENCE).await.unwrap_err().to_string();
    assert!(why.contains("the hub answers 401: give --token-file"), "{why}");
    assert!(!dir.path().join("evil.json").exists());
    for wrong in ["huggingface.co", "ftp://hub", ""] {
        let why = fetch_with(&FetchOptions { endpoint: wrong.into(), ..options.clone() }, PATIENCE).await;
        assert!(matches!(why, Err(FetchError::Endpoint { .. })), "{wrong}");
    }
}
