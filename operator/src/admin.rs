//! The operator's own pages: health, readiness, metrics.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What the pages show.
pub struct Admin {
    registry: Registry,
    /// All watches have been listed.
    pub is_synced: AtomicBool,
    /// Reconciles by result, and how long they took.
    pub reconciles: HistogramVec,
    /// Writes that failed, by kind.
    pub failures: IntCounterVec,
    /// Whether this one holds the lease.
    pub leads: IntGauge,
}

impl Admin {
    /// With its metrics.
    ///
    /// # Errors
    /// A name used twice.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let reconciles = HistogramVec::new(
            HistogramOpts::new("sluice_operator_reconcile_seconds", "Time of a reconcile, by result."),
            &["result"],
        )?;
        let failures = IntCounterVec::new(
            Opts::new("sluice_operator_failures_total", "Reconciles that failed, by what they failed at."),
            &["what"],
        )?;
        let leads = IntGauge::new("sluice_operator_leader", "Whether this operator holds the lease.")?;
        registry.register(Box::new(reconciles.clone()))?;
        registry.register(Box::new(failures.clone()))?;
        registry.register(Box::new(leads.clone()))?;
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        Ok(Self { registry, is_synced: AtomicBool::new(false), reconciles, failures, leads })
    }

    fn text(&self) -> Result<String, String> {
        let mut text = vec![];
        TextEncoder::new().encode(&self.registry.gather(), &mut text).map_err(|e| e.to_string())?;
        String::from_utf8(text).map_err(|e| e.to_string())
    }
}

/// The pages.
pub fn router(admin: Arc<Admin>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(admin)
}

async fn ready(State(admin): State<Arc<Admin>>) -> (StatusCode, &'static str) {
    match admin.is_synced.load(Ordering::Relaxed) {
        true => (StatusCode::OK, "ok\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "the objects of the cluster have not been listed yet\n"),
    }
}

async fn metrics(State(admin): State<Arc<Admin>>) -> (StatusCode, String) {
    match admin.text() {
        Ok(text) => (StatusCode::OK, text),
        Err(why) => (StatusCode::INTERNAL_SERVER_ERROR, why),
    }
}
