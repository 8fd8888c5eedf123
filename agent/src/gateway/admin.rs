//! The admin listener's pages: `/healthz`, `/readyz`, `/metrics`, and `/v1/pressure` where that needs no certificate.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};

use super::error::ApiError;

type Admins = State<Arc<dyn Admin>>;

/// What the pages show. Called per page view; what says whether all is well must not block.
pub trait Admin: Send + Sync + 'static {
    /// Whether the process works; if not, why.
    ///
    /// # Errors
    /// The reason a supervisor should restart it.
    fn healthy(&self) -> Result<(), String> {
        Ok(())
    }

    /// Whether requests should be sent here; if not, why.
    ///
    /// # Errors
    /// What it waits for.
    fn ready(&self) -> Result<(), String>;

    /// Metrics in Prometheus' text format. May wait for other threads.
    fn metrics(&self) -> String;

    /// What the design calls pressure. May wait for other threads.
    fn pressure(&self) -> serde_json::Value;
}

fn verdict(verdict: Result<(), String>) -> Response {
    match verdict {
        Ok(()) => "ok\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

/// What a page shows that may wait: not on the threads that serve sockets, which it would hold up.
async fn aside<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(job)
        .await
        .map_err(|error| ApiError::internal(format!("the page could not be made: {error}")))
}

async fn metrics(State(admin): Admins) -> Result<impl IntoResponse, ApiError> {
    const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, METRICS)], aside(move || admin.metrics()).await?))
}

async fn pressure(State(admin): Admins) -> Result<impl IntoResponse, ApiError> {
    Ok(Json(aside(move || admin.pressure()).await?))
}

/// The pages. `open`: with that of pressure, for whoever reaches the listener.
pub fn admin_router(admin: Arc<dyn Admin>, open: bool) -> Router {
    let pressure = if open { Router::new().route("/v1/pressure", get(pressure)) } else { Router::new() };
    pressure
        .route("/healthz", get(|State(admin): Admins| async move { verdict(admin.healthy()) }))
        .route("/readyz", get(|State(admin): Admins| async move { verdict(admin.ready()) }))
        .route("/metrics", get(metrics))
        .with_state(admin)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::sync::{Mutex, PoisonError};
    use std::time::Duration;

    use axum::body::Body;
    use axum::extract::Request;
    use tower::ServiceExt;

    use super::*;

    /// Each of its pages waits until the process was asked how it is.
    struct Waits(Mutex<Receiver<()>>, Mutex<Sender<()>>);

    impl Waits {
        fn wait(&self) -> bool {
            let told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            told.recv_timeout(Duration::from_secs(20)).is_ok()
        }
    }

    impl Admin for Waits {
        fn healthy(&self) -> Result<(), String> {
            let _ = self.1.lock().unwrap().send(());
            Ok(())
        }

        fn ready(&self) -> Result<(), String> {
            Ok(())
        }

        fn metrics(&self) -> String {
            self.wait().to_string()
        }

        fn pressure(&self) -> serde_json::Value {
            self.wait().into()
        }
    }

    /// On one thread, as the test's run time has it.
    #[tokio::test]
    async fn a_page_that_waits_holds_up_nobody() {
        let (told, wait) = channel();
        let admin = Arc::new(Waits(Mutex::new(wait), Mutex::new(told)));
        let pages = admin_router(admin.clone(), true);
        let page = async |path: &str| {
            let asked = Request::get(path).body(Body::empty()).unwrap();
            let answer = pages.clone().oneshot(asked).await.unwrap();
            let body = axum::body::to_bytes(answer.into_body(), 100).await.unwrap();
            String::from_utf8(body.to_vec()).unwrap()
        };
        for path in ["/metrics", "/v1/pressure"] {
            let (waited, health) = tokio::join!(page(path), page("/healthz"));
            assert_eq!((waited.as_str(), health.as_str()), ("true", "ok\n"), "{path}");
        }
        let asked = Request::get("/v1/pressure").body(Body::empty()).unwrap();
        let answer = admin_router(admin, false).oneshot(asked).await.unwrap();
        assert_eq!(answer.status(), StatusCode::NOT_FOUND, "it takes a certificate");
    }
}
