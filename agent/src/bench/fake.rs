//! A server whose answers are known, to test the client against.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::options::{BenchOptions, End, Endpoint, Load, PromptSpec, Slo};
use super::{Progress, Report, run};

/// Small options: a closed loop of two clients, four requests.
pub(super) fn options(url: &str) -> BenchOptions {
    BenchOptions {
        url: url.into(),
        model: Some("m".into()),
        api_key: None,
        endpoint: Endpoint::Completions,
        stream: true,
        load: Load::Closed { concurrency: 2 },
        end: End::Requests(4),
        warmup: 0,
        prompts: PromptSpec::Random { lengths: "8".parse().unwrap(), vocabulary: 100 },
        output: Some("5".parse().unwrap()),
        max_total: None,
        bytes_per_token: 4.0,
        allow_eos: false,
        temperature: 0.0,
        extra: serde_json::Map::new(),
        timeout: Duration::from_secs(20),
        wait: Duration::ZERO,
        slo: Slo::default(),
        seed: 1,
    }
}

/// How the fake answers.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    /// Tokens in events of so many, with ids and usage.
    Good { per_event: usize },
    /// Text and usage, no ids.
    NoIds,
    /// Text only.
    NoCount,
    /// 429 for every second request.
    Half429,
    /// 503.
    Busy,
    /// 400.
    Bad,
    /// Ends after two tokens.
    Cut,
    /// An error after two tokens.
    Error,
    /// Never ends.
    Hang,
    /// A usage that contradicts the ids.
    Lie,
    /// Asks for the key `secret`.
    Locked,
}

#[derive(Debug)]
struct Fake {
    way: Way,
    seen: AtomicU64,
    bodies: Mutex<Vec<Value>>,
}

async fn serve(way: Way) -> (String, Arc<Fake>) {
    let fake = Arc::new(Fake { way, seen: AtomicU64::new(0), bodies: Mutex::default() });
    let app = Router::new()
        .route("/v1/models", get(|| async { Json(json!({"data": [{"id": "listed"}]})) }))
        .route("/v1/completions", post(answer))
        .route("/v1/chat/completions", post(answer))
        .with_state(fake.clone());
    let listener = tokio::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    (url, fake)
}

fn error(status: StatusCode, message: &str) -> Response {
    (status, Json(json!({"error": {"message": message}}))).into_response()
}

async fn answer(State(fake): State<Arc<Fake>>, headers: HeaderMap, Json(body): Json<Value>) -> Response {
    let n = fake.seen.fetch_add(1, Ordering::Relaxed);
    fake.bodies.lock().await.push(body.clone());
    match fake.way {
        Way::Busy => return error(StatusCode::SERVICE_UNAVAILABLE, "full"),
        Way::Half429 if n % 2 == 1 => return error(StatusCode::TOO_MANY_REQUESTS, "full"),
        Way::Bad => return error(StatusCode::BAD_REQUEST, "no such thing"),
        Way::Locked if headers.get("authorization").is_none_or(|v| v != "Bearer secret") => {
            return error(StatusCode::UNAUTHORIZED, "who are you");
        }
        _ => {}
    }
    let asked = body["max_tokens"].as_u64().or(body["max_completion_tokens"].as_u64()).unwrap() as usize;
    let input = body["prompt"].as_array().map_or(1, Vec::len);
    let usage = json!({"prompt_tokens": input, "completion_tokens": asked});
    if body["stream"] != true {
        return Json(json!({"choices": [{"text": "x", "finish_reason": "length"}], "usage": usage}))
            .into_response();
    }
    let events = events(fake.way, asked, &usage);
    let hang = fake.way == Way::Hang;
    let stream = futures_util::stream::unfold(events.into_iter(), move |mut events| async move {
        match events.next() {
            Some(e) => Some((Ok::<_, Infallible>(Bytes::from(format!("data: {e}\n\n"))), events)),
            None if hang => std::future::pending().await,
            None => None,
        }
    });
    ([("content-type", "text/event-stream")], Body::from_stream(stream)).into_response()
}

fn events(way: Way, asked: usize, usage: &Value) -> Vec<String> {
    let per_event = if let Way::Good { per_event } = way { per_event } else { 1 };
    let ids: Vec<usize> = (0..asked).collect();
    let mut events: Vec<String> = ids
        .chunks(per_event)
        .map(|ids| match way {
            Way::NoIds | Way::NoCount => json!({"choices": [{"text": "ab"}]}),
            _ => json!({"choices": [{"text": "ab", "token_ids": ids, "finish_reason": null}], "usage": null}),
        })
        .map(|v| v.to_string())
        .collect();
    match way {
        Way::Cut | Way::Hang => events.truncate(2),
        Way::Error => {
            events.truncate(2);
            events.push(json!({"error": {"message": "the deadline passed"}}).to_string());
        }
        _ => {
            events.push(json!({"choices": [{"text": "", "finish_reason": "length"}]}).to_string());
            match way {
                Way::NoCount => {}
                Way::Lie => events.push(
                    json!({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 99}})
                        .to_string(),
                ),
                _ => events.push(json!({"choices": [], "usage": usage}).to_string()),
            }
            events.push("[DONE]".into());
        }
    }
    events
}

async fn bench(way: Way, change: impl FnOnce(&mut BenchOptions)) -> (Report, Arc<Fake>) {
    let (url, fake) = serve(way).await;
    let mut o = options(&url);
    change(&mut o);
    let report = run(o, Arc::new(Progress::default())).await.unwrap();
    (report, fake)
}

#[tokio::test]
async fn tokens_are_counted_from_ids_not_from_events() {
    for per_event in [1, 2, 5] {
        let (r, _) = bench(Way::Good { per_event }, |_| {}).await;
        assert_eq!((r.requests.served, r.requests.short), (4, 0));
        assert_eq!((r.tokens.input, r.tokens.output), (32, 20));
        assert_eq!(r.inter_token.unwrap().count, 16, "{per_event} per event: four gaps of each five tokens");
        assert_eq!(r.ttft.unwrap().count, 4);
        assert!(!r.tokens.by_usage);
    }
}

#[tokio::test]
async fn without_ids_the_usage_counts() {
    let (r, _) = bench(Way::NoIds, |o| o.output = Some("7".parse().unwrap())).await;
    assert_eq!((r.requests.served, r.tokens.output), (4, 28));
    assert!(r.tokens.by_usage && r.to_string().contains("between events"));
}

#[tokio::test]
async fn what_cannot_be_counted_has_failed() {
    for way in [Way::NoCount, Way::Lie] {
        let (r, _) = bench(way, |_| {}).await;
        assert_eq!((r.requests.served, r.requests.failures.get("protocol")), (0, Some(&4)), "{way:?}");
        assert_eq!(r.tokens.output, 0);
    }
}

#[tokio::test]
async fn refused_and_failed_are_counted_apart_and_never_as_served() {
    let (r, _) = bench(Way::Half429, |_| {}).await;
    assert_eq!((r.requests.served, r.requests.refused, r.requests.failed), (2, 2, 0));
    assert_eq!((r.tokens.output, r.latency.unwrap().count), (10, 2));
    let (r, _) = bench(Way::Busy, |_| {}).await;
    assert_eq!((r.requests.served, r.requests.refused, r.requests.failed), (0, 4, 0));
    for (way, label) in [(Way::Bad, "status 400"), (Way::Cut, "cut"), (Way::Error, "error in stream")] {
        let (r, _) = bench(way, |_| {}).await;
        assert_eq!(
            (r.requests.served, r.requests.refused, r.requests.failures.get(label)),
            (0, 0, Some(&4)),
            "{way:?}"
        );
        assert_eq!((r.tokens.output, r.tokens.output_per_second), (0, 0.0));
    }
    let (r, _) = bench(Way::Bad, |_| {}).await;
    assert_eq!(r.requests.first_failure.as_deref(), Some("status 400: no such thing"));
}

#[tokio::test]
async fn a_server_that_hangs_or_is_not_there_is_not_waited_for() {
    let (r, _) = bench(Way::Hang, |o| o.timeout = Duration::from_millis(50)).await;
    assert_eq!(r.requests.failures.get("timeout"), Some(&4));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let r = run(options(&nobody), Arc::default()).await.unwrap();
    assert_eq!(r.requests.failures.get("connection"), Some(&4));
    let e = run(BenchOptions { model: None, ..options(&nobody) }, Arc::default()).await.unwrap_err();
    assert!(e.to_string().contains("does not answer"), "{e}");
}

#[tokio::test]
async fn the_key_and_the_listed_model_are_used() {
    let (r, _) = bench(Way::Locked, |_| {}).await;
    assert_eq!(r.requests.failures.get("status 401"), Some(&4));
    let (r, fake) = bench(Way::Locked, |o| {
        o.api_key = Some("secret".into());
        o.model = None;
    })
    .await;
    assert_eq!(r.requests.served, 4);
    assert!(fake.bodies.lock().await.iter().all(|b| b["model"] == "listed"));
}

#[tokio::test]
async fn the_open_loop_sends_what_the_seed_says() {
    let open = |o: &mut BenchOptions| {
        o.load = Load::Open { rate: 2000.0, limit: None };
        o.end = End::Requests(40);
        o.output = Some("uniform:1,9".parse().unwrap());
    };
    let (r, fake) = bench(Way::Good { per_event: 1 }, open).await;
    assert_eq!((r.requests.sent, r.requests.served), (40, 40));
    let asked = |bodies: &[Value]| {
        let mut v: Vec<String> = bodies.iter().map(Value::to_string).collect();
        v.sort();
        v
    };
    let (closed, other) = bench(Way::Good { per_event: 1 }, |o| {
        open(o);
        o.load = Load::Closed { concurrency: 3 };
    })
    .await;
    assert_eq!(asked(&fake.bodies.lock().await), asked(&other.bodies.lock().await));
    assert_eq!(r.tokens.output, closed.tokens.output);
    let limited = |o: &mut BenchOptions| {
        open(o);
        o.load = Load::Open { rate: 2000.0, limit: Some(1) };
    };
    assert_eq!(bench(Way::Good { per_event: 1 }, limited).await.0.requests.served, 40);
}

#[tokio::test]
async fn the_warm_up_is_not_counted_and_its_prompts_are_others() {
    let (r, fake) = bench(Way::Good { per_event: 1 }, |o| o.warmup = 3).await;
    assert_eq!((r.requests.sent, fake.seen.load(Ordering::Relaxed)), (4, 7));
    let bodies = fake.bodies.lock().await;
    let distinct: std::collections::BTreeSet<String> =
        bodies.iter().map(|b| b["prompt"].to_string()).collect();
    assert_eq!(distinct.len(), 7);
    let (url, _) = serve(Way::Bad).await;
    let e = run(BenchOptions { warmup: 1, ..options(&url) }, Arc::default()).await.unwrap_err();
    assert!(e.to_string().contains("no such thing"), "{e}");
}

#[tokio::test]
async fn without_a_stream_there_is_no_first_token() {
    let (r, _) = bench(Way::Good { per_event: 1 }, |o| {
        o.stream = false;
        o.endpoint = Endpoint::Chat;
        o.slo = Slo { ttft: Some(Duration::from_secs(9)), itl: None };
    })
    .await;
    assert_eq!((r.requests.served, r.tokens.output, r.ttft), (4, 20, None));
    assert_eq!(r.goodput.unwrap().good, 0);
}

#[tokio::test]
async fn a_run_can_be_stopped() {
    let (url, _) = serve(Way::Good { per_event: 1 }).await;
    let progress = Arc::new(Progress::default());
    progress.stop.store(true, Ordering::Relaxed);
    let r = run(BenchOptions { end: End::After(Duration::from_secs(600)), ..options(&url) }, progress)
        .await
        .unwrap();
    assert_eq!(r.requests.sent, 0);
}
