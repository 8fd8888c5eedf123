//! Routes, and what every request passes: its id, its key, its place among all requests.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::{MatchedPath, Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::{get, post};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tracing::Instrument;

use super::auth::Caller;
use super::body::{self, Read};
use super::error::ApiError;
use super::generate::Gateway;
use super::observe::TRACED;
use super::params::Rules;
use super::sse::Pace;
use super::work::Preparation;
use super::{chat, completions, models, tokenize};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const REQUEST_TIMEOUT: HeaderName = HeaderName::from_static("x-request-timeout");

/// What is known of a request before its body is read.
pub(super) struct Asked {
    /// The client's request id, or one drawn here.
    pub(super) trace: Arc<str>,
    /// Seconds since 1970.
    pub(super) created: u64,
    caller: Caller,
    entered: Instant,
    timeout: Option<f64>,
    /// Its place among all requests.
    place: Arc<OwnedSemaphorePermit>,
}

impl Asked {
    pub(super) fn rules<'a>(&self, gateway: &'a Gateway) -> Rules<'a> {
        Rules {
            model: &gateway.model,
            limits: &gateway.limits,
            timeouts: &gateway.timeouts,
            caller: self.caller,
            entered: self.entered,
            header_timeout: self.timeout,
        }
    }

    /// What a stream keeps until it is over.
    pub(super) fn hold(&self) -> Box<dyn Send> {
        Box::new(self.place.clone())
    }

    /// What preparing the request keeps until it is over.
    pub(super) fn preparation(&self, read: Read, deadline: Instant) -> Preparation {
        Preparation::new(self.place.clone(), read, deadline)
    }
}

impl Gateway {
    pub(super) fn pace(&self) -> Pace {
        Pace { first: self.timeouts.first, heartbeat: self.timeouts.heartbeat }
    }

    /// Lets a request in, or says why not.
    fn enter(&self, headers: &HeaderMap, trace: Arc<str>) -> Result<Asked, ApiError> {
        let entered = Instant::now();
        let caller = self.keys.caller(headers)?;
        let timeout = match headers.get(REQUEST_TIMEOUT) {
            None => None,
            Some(value) => {
                Some(value.to_str().ok().and_then(|text| text.trim().parse().ok()).ok_or_else(|| {
                    ApiError::invalid("timeout", "the x-request-timeout header must be a number of seconds")
                })?)
            }
        };
        let place = Arc::clone(&self.requests)
            .try_acquire_owned()
            .map_err(|_| ApiError::busy("too many requests at one time", Duration::from_secs(1)))?;
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Ok(Asked { trace, created, caller, entered, timeout, place: Arc::new(place) })
    }
}

/// The id of a request, put there by [`identify`].
#[derive(Clone)]
struct Trace(Arc<str>);

fn given_id(headers: &HeaderMap) -> Option<Arc<str>> {
    let id = headers.get(REQUEST_ID)?.to_str().ok()?;
    let plain = !id.is_empty() && id.len() <= 128 && id.bytes().all(|byte| byte.is_ascii_graphic());
    plain.then(|| id.into())
}

/// Gives every request an id, every answer that id, and logs both.
async fn identify(State(gateway): State<Arc<Gateway>>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let trace =
        given_id(request.headers()).unwrap_or_else(|| format!("{:032x}", rand::random::<u128>()).into());
    request.extensions_mut().insert(Trace(trace.clone()));
    let route =
        request.extensions().get::<MatchedPath>().map_or("unknown".into(), |path| path.as_str().to_owned());
    let span = if rand::random::<f64>() < gateway.traced {
        tracing::info_span!(target: TRACED, "request", id = %trace, route)
    } else {
        // For the lines that are logged within it.
        tracing::info_span!("request", id = %trace, route)
    };
    let mut response = next.run(request).instrument(span.clone()).await;
    if let Ok(value) = HeaderValue::from_str(&trace) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    let (status, took) = (response.status(), started.elapsed());
    gateway.observer.answered(&route, status);
    // It quotes the client: a line of the log, whatever is in it.
    let said = response.extensions().get::<ApiError>().map(|error| clipped(&error.message));
    span.in_scope(|| match said {
        Some(error) if status.is_server_error() => tracing::warn!(%status, ?took, error),
        Some(error) => tracing::info!(%status, ?took, error),
        None => tracing::info!(%status, ?took),
    });
    response
}

/// The beginning of a text.
fn clipped(text: &str) -> &str {
    const SHOWN: usize = 500;
    text.char_indices().nth(SHOWN).map_or(text, |(end, _)| &text[..end])
}

/// Who asks, and the whole body.
async fn receive(gateway: &Gateway, request: Request) -> Result<(Asked, Read), ApiError> {
    let trace = request.extensions().get::<Trace>().map_or_else(|| "".into(), |trace| trace.0.clone());
    let asked = gateway.enter(request.headers(), trace)?;
    let read = body::read(gateway, request.into_body()).await?;
    Ok((asked, read))
}

type Shared = State<Arc<Gateway>>;

async fn chat_page(State(gateway): Shared, request: Request) -> Result<Response, ApiError> {
    let (asked, read) = receive(&gateway, request).await?;
    chat::answer(gateway, asked, read).await
}

async fn completions_page(State(gateway): Shared, request: Request) -> Result<Response, ApiError> {
    let (asked, read) = receive(&gateway, request).await?;
    completions::answer(gateway, asked, read).await
}

async fn tokenize_page(State(gateway): Shared, request: Request) -> Result<Response, ApiError> {
    let (asked, read) = receive(&gateway, request).await?;
    tokenize::tokenize(gateway, asked, read).await
}

async fn detokenize_page(State(gateway): Shared, request: Request) -> Result<Response, ApiError> {
    let (asked, read) = receive(&gateway, request).await?;
    tokenize::detokenize(gateway, asked, read).await
}

async fn models_page(State(gateway): Shared, headers: HeaderMap) -> Result<Response, ApiError> {
    gateway.keys.caller(&headers)?;
    Ok(models::list(&gateway.model))
}

async fn model_page(
    State(gateway): Shared,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    gateway.keys.caller(&headers)?;
    models::one(&gateway.model, &name)
}

/// The public pages.
pub fn router(gateway: Arc<Gateway>) -> Router {
    let missing = |method: Method, uri: Uri| async move { ApiError::route(method.as_str(), uri.path()) };
    let wrong = |method: Method, uri: Uri| async move { ApiError::method(method.as_str(), uri.path()) };
    Router::new()
        .route("/v1/chat/completions", post(chat_page))
        .route("/v1/completions", post(completions_page))
        .route("/v1/models", get(models_page))
        // Names may have slashes: `owner/model`.
        .route("/v1/models/{*name}", get(model_page))
        .route("/tokenize", post(tokenize_page))
        .route("/detokenize", post(detokenize_page))
        .fallback(missing)
        .method_not_allowed_fallback(wrong)
        .layer(from_fn_with_state(gateway.clone(), identify))
        .with_state(gateway)
}
