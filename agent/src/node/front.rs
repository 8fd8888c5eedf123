//! The gateway of a process, as the options want it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::net::TcpListener;

use super::admin::Pages;
use super::error::NodeError;
use super::text::ModelText;
use crate::cli::FrontOptions;
use crate::gateway::{
    Engine, Gateway, GenerationDefaults, Limits, ServeConfig, ServedModel, Timeouts, connection_budget,
    router, serve as listen,
};
use crate::model::Model;
use crate::runtime::Runtime;
use crate::sampling::{GrammarCompiler, GrammarLimits};
use crate::telemetry::Telemetry;

/// The deadline of every request when no flag gives one.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// The name that clients call the model by.
pub(super) fn served_name(model: &Model, front: &FrontOptions) -> String {
    front.served_model_name.clone().unwrap_or_else(|| model.name())
}

/// The gateway before an engine.
pub(super) fn gateway(
    model: &Model,
    engine: Arc<dyn Engine>,
    front: &FrontOptions,
    telemetry: &Arc<Telemetry>,
) -> Gateway {
    let served = ServedModel {
        names: vec![served_name(model, front)],
        context: model.spec.max_positions,
        vocab: model.spec.vocab,
        eos: model.generation.eos.clone(),
        defaults: defaults(model),
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs()),
    };
    let max_schema = usize::try_from(front.max_schema).unwrap_or(usize::MAX);
    let (text, grammars) = (Arc::new(ModelText::new(model)), grammars(model, max_schema));
    Gateway::new(engine, text, served, grammars, telemetry.clone())
        .with_limits(limits(front))
        .with_timeouts(timeouts(front))
}

/// Serves until `stop` resolves or the engine is lost; then what runs may finish within the grace period. Returns how
/// many connections had to be cut.
pub(super) async fn serve_front(
    gateway: Gateway,
    listener: TcpListener,
    front: &FrontOptions,
    runtime: &Arc<Runtime>,
    pages: &Pages,
    stop: impl Future<Output = ()>,
) -> Result<usize, NodeError> {
    let config = ServeConfig {
        connections: connection_budget(limits(front).connections),
        timeouts: timeouts(front),
        observer: pages.telemetry.clone(),
    };
    let mut lost = None;
    let stop = async {
        tokio::select! {
            () = stop => {}
            why = runtime.lost() => lost = Some(why),
        }
        pages.draining.store(true, Ordering::Relaxed);
    };
    let watching = front.api_key_file.clone().map(|path| {
        let keys = gateway.keys().clone();
        tokio::spawn(async move { keys.watch(&path).await })
    });
    let cut = listen(listener, router(Arc::new(gateway)), config, stop).await;
    if let Some(watching) = watching {
        watching.abort();
    }
    if let Some(why) = lost {
        return Err(NodeError::Lost(why));
    }
    let grace = if cut == 0 { front.shutdown_grace } else { Duration::ZERO };
    let runtime = Arc::clone(runtime);
    if !tokio::task::spawn_blocking(move || runtime.drain(grace)).await? {
        tracing::warn!("sequences were cut at the end of the grace period");
    }
    Ok(cut)
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
pub(super) fn grammars(model: &Model, max_schema: usize) -> Option<Arc<GrammarCompiler>> {
    let file = model.files.read("tokenizer.json").ok().flatten()?;
    let tokenizer: serde_json::Value = serde_json::from_slice(&file).ok()?;
    let compiled = GrammarCompiler::from_tokenizer_json(
        &tokenizer,
        model.spec.vocab,
        &model.generation.eos,
        GrammarLimits { bytes: max_schema, ..GrammarLimits::default() },
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
