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
use sluice_identity::Identity;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_io_timeout::TimeoutStream;

use super::greet::{GreetError, PATIENCE};
use super::stream::Stream;
use super::tls::{Accepted, Security};
use super::turns::Turns;
use crate::table::{LARGEST, PlacementSource, Why, render};

/// A request's head has to come within this.
const HEAD: Duration = Duration::from_secs(5);
/// A table has to come within this.
const BODY: Duration = Duration::from_secs(60);
/// A peer that takes nothing of what is written to it for so long is let go.
const WRITE: Duration = Duration::from_secs(60);

/// Connections that pages are shown on at a time, at most.
const CONNECTIONS: usize = 64;
/// As many more are the operator's alone.
const OPERATOR: usize = 4;
/// A listener that cannot accept tries again after so long.
const AGAIN: Duration = Duration::from_millis(20);

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
fn router(pages: Arc<Pages>) -> Router {
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

/// Serves the pages to who has a certificate of the deployment, on a listener of their own: gateways have no peers that
/// dial them.
pub async fn listen(listener: TcpListener, security: Arc<Security>, deployment: String, pages: Arc<Pages>) {
    let (shown, turns) = (Arc::new(Shown::new(pages)), Arc::<Turns>::default());
    loop {
        let (tcp, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(e) => {
                tracing::warn!("a connection for pages could not be accepted: {e}");
                sleep(AGAIN).await;
                continue;
            }
        };
        let turn = turns.take(Some(from.ip()));
        let (shown, security, deployment) = (Arc::clone(&shown), Arc::clone(&security), deployment.clone());
        tokio::spawn(async move {
            let met = tokio::select! {
                met = timeout(PATIENCE, accept(tcp, &security, &deployment)) => met,
                () = turn.over() => return,
            };
            drop(turn);
            match met.unwrap_or(Err(GreetError::Silent)) {
                Ok((stream, caller)) => shown.serve(stream, caller).await,
                Err(why) => tracing::warn!(%from, "no pages are shown to it: {why}"),
            }
        });
    }
}

async fn accept(
    tcp: TcpStream,
    security: &Security,
    ours: &str,
) -> Result<(Stream, Option<Identity>), GreetError> {
    tcp.set_nodelay(true)?;
    let Accepted { stream, identity, is_http } = security.accept(tcp).await.map_err(GreetError::Handshake)?;
    match &identity {
        Some(who) if who.deployment != ours => {
            Err(GreetError::Foreign { certificate: who.to_string(), ours: ours.into() })
        }
        _ if !is_http => Err(GreetError::Garbage("gateways speak HTTP here, and nothing else".into())),
        _ => Ok((stream, identity)),
    }
}

/// The pages, on so many connections at a time.
#[derive(Debug)]
pub(super) struct Shown {
    router: Router,
    places: Semaphore,
    operator: Semaphore,
}

impl Shown {
    pub(super) fn new(pages: Arc<Pages>) -> Self {
        Self {
            router: router(pages),
            places: Semaphore::new(CONNECTIONS),
            operator: Semaphore::new(OPERATOR),
        }
    }

    /// Serves one connection.
    pub(super) async fn serve<S>(&self, stream: S, caller: Option<Identity>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let is_operator = caller.as_ref().is_some_and(|who| who.role == Role::Operator);
        let own = is_operator.then(|| self.operator.try_acquire().ok()).flatten();
        let Some(_place) = own.or_else(|| self.places.try_acquire().ok()) else {
            let caller = caller.as_ref().map(tracing::field::display);
            return tracing::warn!(
                caller,
                "pages are shown on {CONNECTIONS} connections already: it is let go"
            );
        };
        let router = self.router.clone().layer(axum::Extension(Caller(caller)));
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(WRITE));
        let stream = TokioIo::new(Box::pin(stream));
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEAD);
        if let Err(e) = http.serve_connection(stream, TowerToHyperService::new(router)).await {
            tracing::debug!("a connection for pages broke: {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use tokio::sync::watch;
    use tower::ServiceExt as _;

    use super::*;
    use crate::table::{Engine, SourceError, Table, parse};

    /// A table that others write.
    #[derive(Debug)]
    struct Theirs(watch::Sender<Arc<Table>>);

    impl PlacementSource for Theirs {
        fn name(&self) -> String {
            "of others".into()
        }

        fn watch(&self) -> watch::Receiver<Arc<Table>> {
            self.0.subscribe()
        }

        fn hold(&self, _: Engine) -> Result<(), SourceError> {
            Ok(())
        }
    }

    fn pages() -> Arc<Pages> {
        let table = parse("generation: 7\nworkers: []\n").unwrap();
        let source = Arc::new(Theirs(watch::channel(Arc::new(table)).0));
        Arc::new(Pages { source, pressure: Arc::new(|| serde_json::json!({})) })
    }

    #[tokio::test]
    async fn so_many_connections_are_shown_pages_and_no_more() {
        let shown = Arc::new(Shown::new(pages()));
        let mut kept = vec![];
        for _ in 0..CONNECTIONS {
            let (here, there) = tokio::io::duplex(64);
            let serve = {
                let shown = Arc::clone(&shown);
                async move { shown.serve(there, None).await }
            };
            kept.push((here, tokio::spawn(serve)));
            tokio::task::yield_now().await;
        }
        let (_here, there) = tokio::io::duplex(64);
        assert!(timeout(HEAD / 2, shown.serve(there, None)).await.is_ok(), "it came last, so it goes");
        assert!(kept.iter().all(|(_, served)| !served.is_finished()));
        let operator = Identity { deployment: "d/m".into(), role: Role::Operator, worker: None };
        let (_here, there) = tokio::io::duplex(64);
        let served = timeout(Duration::from_millis(50), shown.serve(there, Some(operator))).await;
        assert!(served.is_err(), "there is always a place for the operator");
        let (here, served) = kept.remove(0);
        drop(here);
        served.await.unwrap();
        assert_eq!(shown.places.available_permits(), 1);
    }

    #[tokio::test]
    async fn a_table_that_others_write_is_shown_and_takes_no_push() {
        let pages = router(pages());
        let page = async |request: Request| {
            let answer = pages.clone().oneshot(request).await.unwrap();
            let status = answer.status();
            let body = axum::body::to_bytes(answer.into_body(), 1000).await.unwrap();
            (status, String::from_utf8(body.to_vec()).unwrap())
        };
        let get = Request::get("/v1/placement").body(Body::empty()).unwrap();
        assert_eq!(page(get).await.1, "generation: 7\nworkers: []\nslices: []\n");
        let put = Request::put("/v1/placement").body(Body::from("workers: []")).unwrap();
        let (status, said) = page(put).await;
        assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED, "{said}");
        assert!(said.contains("only read here"), "{said}");
    }
}
