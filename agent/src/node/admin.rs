//! The admin pages of a process, and their listener.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::error::NodeError;
use crate::gateway::{Admin, ServeConfig, Silent, Timeouts, admin_router, serve as listen};
use crate::runtime::Runtime;
use crate::telemetry::{FrontSample, Telemetry};

/// The admin listener, and how it is told to end.
pub(super) struct AdminTask {
    end: watch::Sender<()>,
    task: JoinHandle<usize>,
}

impl AdminTask {
    pub(super) fn start(listener: TcpListener, pages: Arc<dyn Admin>) -> Self {
        let config = ServeConfig {
            connections: 64,
            timeouts: Timeouts { drain: Duration::from_secs(1), ..Timeouts::default() },
            observer: Arc::new(Silent),
        };
        let (end, mut ended) = watch::channel(());
        let stop = async move {
            let _ = ended.changed().await;
        };
        Self { end, task: tokio::spawn(listen(listener, admin_router(pages), config, stop)) }
    }

    pub(super) async fn stop(self) -> Result<(), NodeError> {
        let _ = self.end.send(());
        self.task.await?;
        Ok(())
    }
}

pub(super) async fn stop_admin(admin: Option<AdminTask>) -> Result<(), NodeError> {
    match admin {
        Some(admin) => admin.stop().await,
        None => Ok(()),
    }
}

fn healthy(telemetry: &Telemetry) -> Result<(), String> {
    match telemetry.failure() {
        Some((worker, why)) => Err(format!("{worker} cannot go on: {why}")),
        None => Ok(()),
    }
}

fn metrics(telemetry: &Telemetry, front: Option<&FrontSample>) -> String {
    // A family that cannot be written is a defect; an empty page would hide it.
    telemetry.render(front).unwrap_or_else(|e| {
        tracing::error!("the metrics cannot be written: {e}");
        String::new()
    })
}

/// What the pages of a process with a gateway show.
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
        healthy(&self.telemetry)
    }

    fn ready(&self) -> Result<(), String> {
        if self.draining.load(Ordering::Relaxed) {
            return Err("draining: takes no new requests".into());
        }
        match self.runtime.get() {
            None => return Err("loading the model".into()),
            Some(runtime) if runtime.living_ranks() == 0 => {
                return Err("no attention rank is there: requests would wait for one".into());
            }
            Some(_) => {}
        }
        self.healthy()
    }

    fn metrics(&self) -> String {
        metrics(&self.telemetry, self.front().as_ref())
    }

    fn pressure(&self) -> serde_json::Value {
        serde_json::to_value(self.telemetry.pressure(self.front().as_ref())).unwrap_or_default()
    }
}

/// What the pages of a worker's process show.
#[derive(Debug)]
pub(super) struct WorkerPages {
    telemetry: Arc<Telemetry>,
    pub(super) draining: AtomicBool,
}

impl WorkerPages {
    pub(super) fn new(telemetry: Arc<Telemetry>) -> Self {
        Self { telemetry, draining: AtomicBool::new(false) }
    }

    /// Whether the worker has sequences, as it last said.
    pub(super) fn has_sequences(&self) -> bool {
        self.telemetry.samples().any(|s| s.pressure.sequences != (0, 0))
    }
}

impl Admin for WorkerPages {
    fn healthy(&self) -> Result<(), String> {
        healthy(&self.telemetry)
    }

    fn ready(&self) -> Result<(), String> {
        if self.draining.load(Ordering::Relaxed) {
            return Err("draining: takes nothing new".into());
        }
        let mut samples = self.telemetry.samples();
        match samples.next() {
            None => return Err("loading the model".into()),
            Some(s) if !s.ready => return Err("loading experts".into()),
            Some(_) => {}
        }
        self.healthy()
    }

    fn metrics(&self) -> String {
        metrics(&self.telemetry, None)
    }

    fn pressure(&self) -> serde_json::Value {
        serde_json::to_value(self.telemetry.pressure(None)).unwrap_or_default()
    }
}
