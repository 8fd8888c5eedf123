//! What the gateway tells of itself, for metrics.

use std::time::Duration;

use axum::http::StatusCode;

/// The target of the spans of traced requests. A request is chosen once, as it comes; what belongs to it follows its
/// span.
pub const TRACED: &str = "sluice_agent::traced";

/// Told of everything that metrics are made of. Must not block.
pub trait Observer: Send + Sync + 'static {
    /// A token reached the gateway; `waited` since the request was submitted (`first`) or since the token before.
    fn token(&self, first: bool, waited: Duration) {
        let _ = (first, waited);
    }

    /// A request's answer has begun; for a stream it goes on after that.
    fn answered(&self, route: &str, status: StatusCode) {
        let _ = (route, status);
    }

    /// A request was given up because its client read too slowly.
    fn overflowed(&self) {}

    /// A connection was accepted (+1) or is closed (-1).
    fn connections(&self, change: i64) {
        let _ = change;
    }

    /// The listener could not accept.
    fn accept_error(&self, error: &std::io::Error) {
        let _ = error;
    }
}

/// Tells nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Observer for Silent {}
