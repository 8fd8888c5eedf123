//! The admin listener's pages: `/healthz`, `/readyz`, `/metrics`, `/v1/pressure`.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};

/// What the pages show. Called per page view; must not block for long.
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

    /// Metrics in Prometheus' text format.
    fn metrics(&self) -> String;

    /// What the design calls pressure.
    fn pressure(&self) -> serde_json::Value;
}

fn verdict(verdict: Result<(), String>) -> Response {
    match verdict {
        Ok(()) => "ok\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

/// The pages.
pub fn admin_router(admin: Arc<dyn Admin>) -> Router {
    type Admins = State<Arc<dyn Admin>>;
    const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
    Router::new()
        .route("/healthz", get(|State(admin): Admins| async move { verdict(admin.healthy()) }))
        .route("/readyz", get(|State(admin): Admins| async move { verdict(admin.ready()) }))
        .route(
            "/metrics",
            get(|State(admin): Admins| async move { ([(header::CONTENT_TYPE, METRICS)], admin.metrics()) }),
        )
        .route("/v1/pressure", get(|State(admin): Admins| async move { Json(admin.pressure()) }))
        .with_state(admin)
}
