//! `serve`: from options to listeners, until it is told to stop.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use super::admin::{AdminTask, Pages, stop_admin};
use super::error::NodeError;
use super::front::{gateway, serve_front, served_name};
use super::listen::{bind, bind_if};
use super::open_model;
use crate::cli::ServeOptions;
use crate::gateway::Keys;
use crate::model::Model;
use crate::runtime::{Progress, Runtime, Surroundings, launch};
use crate::telemetry::Telemetry;

/// Where an agent serves.
#[derive(Clone, Debug)]
pub struct Serving {
    /// The model's name.
    pub model: String,
    /// Clients.
    pub listen: SocketAddr,
    /// Health, metrics, pressure.
    pub admin: Option<SocketAddr>,
    /// The hash of all that decides the bits.
    pub numerics: String,
}

/// Serves until `stop` resolves; then what runs may finish within the grace period, and what loads is given up.
/// `progress` is told of the loading, `ready` when requests can come. Returns how many connections had to be cut.
///
/// # Errors
/// What could not be had; nothing is left running then.
pub async fn serve(
    options: ServeOptions,
    progress: Progress,
    ready: impl FnOnce(&Serving),
    stop: impl Future<Output = ()>,
) -> Result<usize, NodeError> {
    // The addresses first: a port that is taken should be known before a large model is loaded.
    let (listener, address) = bind(options.front.listen).await?;
    let admin = bind_if(options.front.admin_listen).await?;
    let keys = options.front.api_key_file.as_deref().map(Keys::read).transpose()?;
    let telemetry = Arc::new(Telemetry::new(0..options.engine.workers())?);
    let pages = Arc::new(Pages {
        telemetry: telemetry.clone(),
        runtime: OnceLock::new(),
        draining: AtomicBool::new(false),
        heard: Arc::default(),
    });
    let serving_admin = admin.as_ref().map(|(_, at)| *at);
    // Before the model, so that a supervisor can tell loading from hanging.
    let admin = admin.map(|(listener, _)| AdminTask::start(listener, pages.clone(), true));
    let cancelled = Arc::new(AtomicBool::new(false));
    let mut stop = std::pin::pin!(stop);
    let loaded = tokio::select! {
        loaded = load(&options, &telemetry, progress, Arc::clone(&cancelled)) => loaded,
        () = &mut stop => {
            cancelled.store(true, Ordering::Relaxed);
            stop_admin(admin).await?;
            return Ok(0);
        }
    };
    let (model, runtime) = match loaded {
        Ok(loaded) => loaded,
        Err(e) => {
            stop_admin(admin).await?;
            return Err(e);
        }
    };
    let _ = pages.runtime.set(runtime.clone());
    let keys = keys.unwrap_or_default();
    let gateway = gateway(&model, runtime.clone(), &options.front, &telemetry)
        .with_keys(keys)
        .with_traces(options.traces.sample);
    let serving = Serving {
        model: served_name(&model, &options.front),
        listen: address,
        admin: serving_admin,
        numerics: runtime.numerics_id().as_ref().to_owned(),
    };
    ready(&serving);
    let served = serve_front(gateway, listener, &options.front, &runtime, &pages, stop).await;
    stop_admin(admin).await?;
    served
}

async fn load(
    options: &ServeOptions,
    telemetry: &Arc<Telemetry>,
    progress: Progress,
    cancelled: Arc<AtomicBool>,
) -> Result<(Model, Arc<Runtime>), NodeError> {
    let (source, engine) = (options.model.clone(), options.engine.clone());
    let around = Surroundings {
        queue: options.front.max_queue as usize,
        observer: telemetry.clone(),
        progress,
        cancelled,
    };
    tokio::task::spawn_blocking(move || {
        let model = open_model(&source)?;
        let runtime = launch(&model.weights, &engine, around)?;
        Ok((model, Arc::new(runtime)))
    })
    .await?
}
