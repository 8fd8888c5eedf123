//! A worker that is alone in its process: its thread and its loaders, before it has met anybody.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};

use sluice_core::worker::Worker;
use tokio::sync::watch;

use super::clock::Clock;
use super::links::Door;
use super::loader::{self, UnitSource};
use super::observe::Observer;
use super::sizing::WorkerPlan;
use super::start::{StartError, watched};
use super::worker::WorkerThread;
use crate::backend::Backend;
use crate::telemetry::TokenSpans;

/// A running worker. Dropping it ends it.
pub struct Solo {
    door: Arc<dyn Door>,
    numerics: String,
    row_len: usize,
    clock: Clock,
    plan: WorkerPlan,
    lost: watch::Receiver<Option<String>>,
    given_up: Arc<AtomicBool>,
    joins: Mutex<Vec<JoinHandle<()>>>,
}

impl std::fmt::Debug for Solo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Solo").field("plan", &self.plan).finish_non_exhaustive()
    }
}

impl Solo {
    /// The way in.
    pub fn door(&self) -> Arc<dyn Door> {
        Arc::clone(&self.door)
    }

    /// The hash of all that decides the bits.
    pub fn numerics_id(&self) -> &str {
        &self.numerics
    }

    /// Numbers in a row that travels.
    pub fn row_len(&self) -> usize {
        self.row_len
    }

    /// The clock that it runs by.
    pub(crate) fn clock(&self) -> Clock {
        self.clock
    }

    /// What it was told.
    pub fn plan(&self) -> &WorkerPlan {
        &self.plan
    }

    /// Resolves when the worker is lost, with the reason.
    pub async fn lost(&self) -> String {
        let mut lost = self.lost.clone();
        match lost.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Solo {
    fn drop(&mut self) {
        self.given_up.store(true, Ordering::Relaxed);
        self.door.stop();
        for join in self.joins.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = join.join();
        }
    }
}

/// What a worker needs beside its plan.
pub(super) struct SoloParts<S> {
    pub source: Arc<S>,
    pub numerics: String,
    pub row_len: usize,
    pub observer: Arc<dyn Observer>,
}

/// Starts a worker.
pub(super) fn start_solo<B, S>(
    plan: WorkerPlan,
    parts: SoloParts<S>,
    mut backend: B,
) -> Result<Solo, StartError>
where
    B: Backend + 'static,
    S: UnitSource<Unit = B::Unit>,
{
    let (address, inbox) = channel();
    let clock = Clock::start();
    let given_up = Arc::new(AtomicBool::new(false));
    // Loading goes on beside serving: one thread, or what is served would be slowed down.
    let done: Arc<loader::Done> = Arc::new(|_| {});
    let (loader, mut joins) = loader::spawn(&parts.source, 1, &done, &given_up)?;
    let mut config = plan.config.clone();
    config.costs = backend.calibrate();
    let worker = WorkerThread {
        id: config.id,
        role: plan.role,
        core: Worker::new(config)?,
        backend,
        clock,
        inbox,
        address: address.clone(),
        loader,
        observer: parts.observer,
        link: None,
        spans: TokenSpans::new(plan.config.id),
    };
    let (tell, lost) = watch::channel(None);
    let name = plan.role.to_owned();
    joins.push(Builder::new().name(name.clone()).spawn(move || {
        watched(&format!("worker {name}"), &tell, || worker.run());
    })?);
    Ok(Solo {
        door: Arc::new(address),
        numerics: parts.numerics,
        row_len: parts.row_len,
        clock,
        plan,
        lost,
        given_up,
        joins: Mutex::new(joins),
    })
}
