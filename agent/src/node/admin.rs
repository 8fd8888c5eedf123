//! The admin pages of a serving agent.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use crate::gateway::Admin;
use crate::runtime::Runtime;
use crate::telemetry::{FrontSample, Telemetry};

/// What the admin pages show.
#[derive(Debug)]
pub(super) struct Pages {
    pub(super) telemetry: Arc<Telemetry>,
    /// Set when the model is loaded.
    pub(super) runtime: OnceLock<Arc<Runtime>>,
    pub(super) draining: AtomicBool,
}

impl Pages {
    fn front(&self) -> Option<FrontSample> {
        let state = self.runtime.get()?.state()?;
        Some(FrontSample { counts: state.counts, live: state.live, waiting: state.waiting })
    }
}

impl Admin for Pages {
    fn healthy(&self) -> Result<(), String> {
        match self.telemetry.failure() {
            Some((worker, why)) => Err(format!("{worker} cannot go on: {why}")),
            None => Ok(()),
        }
    }

    fn ready(&self) -> Result<(), String> {
        if self.draining.load(Ordering::Relaxed) {
            return Err("draining: takes no new requests".into());
        }
        if self.runtime.get().is_none() {
            return Err("loading the model".into());
        }
        self.healthy()
    }

    fn metrics(&self) -> String {
        // A family that cannot be written is a defect; an empty page would hide it.
        self.telemetry.render(self.front().as_ref()).unwrap_or_else(|e| {
            tracing::error!("the metrics cannot be written: {e}");
            String::new()
        })
    }

    fn pressure(&self) -> serde_json::Value {
        serde_json::to_value(self.telemetry.pressure(self.front().as_ref())).unwrap_or_default()
    }
}
