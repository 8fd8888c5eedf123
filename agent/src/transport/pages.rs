//! HTTP on the peer listener, for who has a certificate of the deployment: pressure for gateways and the operator, the
//! placement for the operator.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRequest as _, Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use sluice_core::hello::Role;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_io_timeout::TimeoutStream;

use super::identity::Identity;
use crate::table::{LARGEST, PlacementSource, Why, render};

/// A request's head has to come within this.
const HEAD: Duration = Duration::from_secs(5);
/// A table has to come within this.
const BODY: Duration = Duration::from_secs(60);
/// A peer that takes nothing of what is written to it for so long is let go.
const WRITE: Duration = Duration::from_secs(60);

/// What is shown to peers.
pub struct Pages {
    /// Where the placement is kept.
    pub source: Arc<dyn PlacementSource>,
    /// The page of pressure.
    pub pressure: Arc<dyn Fn() -> serde_json::Value + Send + Sync>,
}

impl std::fmt::Debug for Pages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pages").field("source", &self.source).finish_non_exhaustive()
    }
}

/// The pages, for whom they are meant.
pub(super) fn router(pages: Arc<Pages>) -> Router {
    let operator = Router::new()
        .route("/v1/placement", put(place))
        .route_layer(axum::middleware::from_fn(|r, n| only(&[Role::Operator], r, n)));
    let both = Router::new()
        .route("/v1/placement", get(placement))
        .route("/v1/pressure", get(pressure))
        .route_layer(axum::middleware::from_fn(|r, n| only(&[Role::Operator, Role::Gateway], r, n)));
    operator.merge(both).layer(DefaultBodyLimit::max(LARGEST)).with_state(pages)
}

/// Whom the certificate is for; nobody without TLS.
#[derive(Clone)]
struct Caller(Option<Identity>);

async fn only(roles: &'static [Role], request: Request, next: Next) -> Response {
    match request.extensions().get::<Caller>().and_then(|c| c.0.as_ref()) {
        Some(who) if !roles.contains(&who.role) => {
            (StatusCode::FORBIDDEN, format!("this is not for {who}\n")).into_response()
        }
        _ => next.run(request).await,
    }
}

async fn place(State(pages): State<Arc<Pages>>, request: Request) -> Response {
    let text = match timeout(BODY, String::from_request(request, &())).await {
        Ok(Ok(text)) => text,
        Ok(Err(rejected)) => return rejected.into_response(),
        Err(_) => {
            let said = format!("the table did not come within {} s\n", BODY.as_secs());
            return (StatusCode::REQUEST_TIMEOUT, said).into_response();
        }
    };
    let source = Arc::clone(&pages.source);
    match tokio::task::spawn_blocking(move || source.replace(text)).await {
        Ok(Ok(())) => StatusCode::NO_CONTENT.into_response(),
        Ok(Err(e)) => {
            let status = match e.why {
                Why::Stale(_) => StatusCode::CONFLICT,
                Why::Table(_) | Why::Large(_) => StatusCode::BAD_REQUEST,
                Why::Misfit(_) => StatusCode::UNPROCESSABLE_ENTITY,
                Why::ReadOnly => StatusCode::METHOD_NOT_ALLOWED,
                Why::Read(_) | Why::Write(_) => StatusCode::INTERNAL_SERVER_ERROR,
            };
            (status, format!("{e}\n")).into_response()
        }
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{e}\n")).into_response(),
    }
}

async fn placement(State(pages): State<Arc<Pages>>) -> String {
    let table = Arc::clone(&pages.source.watch().borrow());
    render(&table)
}

async fn pressure(State(pages): State<Arc<Pages>>) -> Response {
    match tokio::task::spawn_blocking(move || (pages.pressure)()).await {
        Ok(page) => axum::Json(page).into_response(),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{e}\n")).into_response(),
    }
}

/// Serves one connection.
pub(super) async fn serve<S>(router: Router, stream: S, caller: Option<Identity>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let router = router.layer(axum::Extension(Caller(caller)));
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE));
    let stream = TokioIo::new(Box::pin(stream));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD);
    if let Err(e) = http.serve_connection(stream, TowerToHyperService::new(router)).await {
        tracing::debug!("a connection for pages broke: {e}");
    }
}
