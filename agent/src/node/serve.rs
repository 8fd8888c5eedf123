//! `serve`: from options to listeners, until it is told to stop.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::admin::Pages;
use super::open_model;
use super::text::ModelText;
use crate::cli::{FrontOptions, ServeOptions};
use crate::gateway::{
    Gateway, GenerationDefaults, Keys, KeysError, Limits, ServeConfig, ServeError, ServedModel, Silent,
    Timeouts, admin_router, connection_budget, router, serve as listen,
};
use crate::model::{Model, ModelError};
use crate::runtime::{Progress, Runtime, StartError, Surroundings, launch};
use crate::sampling::{GrammarCompiler, GrammarLimits};
use crate::telemetry::Telemetry;

/// The deadline of every request when no flag gives one.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// An agent that cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The engine.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The API keys.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// A listener.
    #[error(transparent)]
    Listen(#[from] ServeError),
    /// A defect of ours.
    #[error("the metrics cannot be set up: {0}")]
    Metrics(#[from] prometheus::Error),
    /// A worker failed, and with it the engine.
    #[error("{0}; the engine cannot go on without it")]
    Lost(String),
    /// A thread that ended by itself.
    #[error("a task of the server broke: {0}")]
    Task(#[from] tokio::task::JoinError),
}

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
    let admin = match options.front.admin_listen {
        Some(at) => Some(bind(at).await?),
        None => None,
    };
    let keys = options.front.api_key_file.as_deref().map(Keys::read).transpose()?;
    let telemetry = Arc::new(Telemetry::new(options.engine.workers() as usize)?);
    let timeouts = timeouts(&options.front);
    let pages = Arc::new(Pages {
        telemetry: telemetry.clone(),
        runtime: OnceLock::new(),
        draining: AtomicBool::new(false),
    });
    let serving_admin = admin.as_ref().map(|(_, at)| *at);
    // Before the model, so that a supervisor can tell loading from hanging.
    let admin = admin.map(|(listener, _)| AdminTask::start(listener, pages.clone(), &timeouts));
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
    let limits = limits(&options.front);
    let gateway = gateway(&model, &runtime, &options, &telemetry)
        .with_limits(limits.clone())
        .with_timeouts(timeouts.clone())
        .with_keys(keys.unwrap_or_default())
        .with_traces(options.traces.sample);
    let serving = Serving {
        model: served_name(&model, &options.front),
        listen: address,
        admin: serving_admin,
        numerics: runtime.numerics_id().to_owned(),
    };
    let config = ServeConfig {
        connections: connection_budget(limits.connections),
        timeouts,
        observer: telemetry.clone(),
    };
    ready(&serving);
    let mut lost = None;
    let stop = async {
        tokio::select! {
            () = stop => {}
            why = runtime.lost() => lost = Some(why),
        }
        pages.draining.store(true, Ordering::Relaxed);
    };
    let cut = listen(listener, router(Arc::new(gateway)), config, stop).await;
    if let Some(why) = lost {
        stop_admin(admin).await?;
        return Err(NodeError::Lost(why));
    }
    let grace = options.front.shutdown_grace;
    let drained =
        tokio::task::spawn_blocking(move || runtime.drain(if cut == 0 { grace } else { Duration::ZERO }))
            .await?;
    if !drained {
        tracing::warn!("sequences were cut at the end of the grace period");
    }
    stop_admin(admin).await?;
    Ok(cut)
}

/// The admin listener, and how it is told to end.
struct AdminTask {
    end: watch::Sender<()>,
    task: JoinHandle<usize>,
}

impl AdminTask {
    fn start(listener: TcpListener, pages: Arc<Pages>, timeouts: &Timeouts) -> Self {
        let config = ServeConfig {
            connections: 64,
            timeouts: Timeouts { drain: Duration::from_secs(1), ..timeouts.clone() },
            observer: Arc::new(Silent),
        };
        let (end, mut ended) = watch::channel(());
        let stop = async move {
            let _ = ended.changed().await;
        };
        Self { end, task: tokio::spawn(listen(listener, admin_router(pages), config, stop)) }
    }
}

async fn stop_admin(admin: Option<AdminTask>) -> Result<(), NodeError> {
    if let Some(AdminTask { end, task }) = admin {
        let _ = end.send(());
        task.await?;
    }
    Ok(())
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

async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), ServeError> {
    let fail = |source| ServeError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(fail)?;
    let bound = listener.local_addr().map_err(fail)?;
    Ok((listener, bound))
}

fn served_name(model: &Model, front: &FrontOptions) -> String {
    front.served_model_name.clone().unwrap_or_else(|| model.name())
}

fn gateway(
    model: &Model,
    runtime: &Arc<Runtime>,
    options: &ServeOptions,
    telemetry: &Arc<Telemetry>,
) -> Gateway {
    let served = ServedModel {
        names: vec![served_name(model, &options.front)],
        context: model.spec.max_positions,
        vocab: model.spec.vocab,
        eos: model.generation.eos.clone(),
        fingerprint: runtime.numerics_id().to_owned(),
        defaults: defaults(model),
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs()),
    };
    let (text, grammars) = (Arc::new(ModelText::new(model)), grammars(model, &options.front));
    Gateway::new(runtime.clone(), text, served, grammars, telemetry.clone())
}

fn defaults(model: &Model) -> GenerationDefaults {
    let g = &model.generation;
    GenerationDefaults {
        temperature: g.temperature,
        top_p: g.top_p,
        top_k: g.top_k,
        min_p: g.min_p,
        repetition_penalty: g.repetition_penalty,
        max_tokens: None,
    }
}

/// Without a compiler structured output is refused, and everything else works: so a tokenizer that it cannot use is
/// worth a warning.
fn grammars(model: &Model, front: &FrontOptions) -> Option<Arc<GrammarCompiler>> {
    let file = model.files.read("tokenizer.json").ok().flatten()?;
    let tokenizer: serde_json::Value = serde_json::from_slice(&file).ok()?;
    let compiled = GrammarCompiler::from_tokenizer_json(
        &tokenizer,
        model.spec.vocab,
        &model.generation.eos,
        GrammarLimits {
            bytes: usize::try_from(front.max_schema).unwrap_or(usize::MAX),
            ..GrammarLimits::default()
        },
    );
    match compiled {
        Ok(compiler) => Some(Arc::new(compiler)),
        Err(e) => {
            tracing::warn!("{e}");
            None
        }
    }
}

fn limits(front: &FrontOptions) -> Limits {
    Limits {
        body_bytes: usize::try_from(front.max_body).unwrap_or(usize::MAX),
        prompt_tokens: front.max_prompt_tokens.map(|tokens| tokens as usize),
        stops: front.max_stops as usize,
        choices: front.max_choices as usize,
        requests: front.max_concurrency as usize,
        connections: front.max_connections as usize,
        ..Limits::default()
    }
}

fn timeouts(front: &FrontOptions) -> Timeouts {
    let longest = front.request_timeout.unwrap_or(LONGEST);
    Timeouts {
        request: longest,
        longest,
        write: front.write_timeout,
        drain: front.shutdown_grace,
        ..Timeouts::default()
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::cli::{Command, parse};

    fn front(line: &str) -> FrontOptions {
        let args: Vec<OsString> =
            format!("sluice-agent serve {line}").split_whitespace().map(Into::into).collect();
        let Command::Serve(args) = parse(&args).unwrap().command else { panic!("not serve") };
        args.check().unwrap().front
    }

    #[test]
    fn the_request_timeout_is_the_longest_a_client_can_ask_for() {
        for (line, seconds) in [("", 600), ("--request-timeout 2s", 2), ("--request-timeout 0s", 86_400)] {
            let timeouts = timeouts(&front(line));
            let seconds = Duration::from_secs(seconds);
            assert_eq!((timeouts.request, timeouts.longest), (seconds, seconds), "{line}");
        }
    }

    #[test]
    fn limits_come_from_the_flags() {
        let default = limits(&front(""));
        assert_eq!((default.prompt_tokens, default.stops, default.choices), (None, 16, 16));
        let set = limits(&front("--max-prompt-tokens 9 --max-stops 2 --max-choices 3"));
        assert_eq!((set.prompt_tokens, set.stops, set.choices), (Some(9), 2, 3));
    }
}
