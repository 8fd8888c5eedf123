//! `sluice-agent serve`, `gateway`, `attention`, `experts` and `hybrid`: what runs until it is told to stop.

use std::io::{IsTerminal as _, Write as _};

use sluice_agent::cli::{GatewayOptions, LogFormat, ServeOptions, TraceOptions, WorkerOptions};
use sluice_agent::node::{Serving, WorkerServing, run_gateway, run_worker, serve as run};
use sluice_agent::telemetry::start_logs;
use tokio::signal::unix::{SignalKind, signal};

use super::loading;

/// Serves until SIGTERM or an interrupt; the second one ends at once.
pub fn serve(options: ServeOptions, format: LogFormat) -> anyhow::Result<()> {
    let _logs = start_logs(format, &options.traces)?;
    until_told(|stop| async {
        let (bar, progress) = loading::bar(false);
        let shown = bar.clone();
        let ready = |serving: &Serving| {
            shown.finish_and_clear();
            announce(serving);
        };
        let served = run(options, progress, ready, stop).await;
        bar.finish_and_clear();
        served?;
        Ok(())
    })
}

/// A gateway of a deployment of several processes.
pub fn gateway(options: GatewayOptions, format: LogFormat) -> anyhow::Result<()> {
    let _logs = start_logs(format, &options.traces)?;
    until_told(|stop| async {
        run_gateway(options, announce, stop).await?;
        Ok(())
    })
}

/// A worker of a deployment of several processes.
pub fn worker(options: WorkerOptions, format: LogFormat) -> anyhow::Result<()> {
    let _logs = start_logs(format, &TraceOptions { sample: 0.0, otlp_endpoint: None })?;
    until_told(|stop| async {
        let ready = |w: &WorkerServing| {
            let WorkerServing { name, peers, admin, numerics } = w;
            tracing::info!(name, %peers, admin = admin.map(|a| a.to_string()), numerics, "running");
        };
        run_worker(options, ready, stop).await?;
        Ok(())
    })
}

/// Runs what ends some time after it is told to stop: by SIGTERM or an interrupt. The second one ends at once.
fn until_told<F: Future<Output = anyhow::Result<()>>>(
    run: impl FnOnce(std::pin::Pin<Box<dyn Future<Output = ()> + Send>>) -> F,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
        let (mut term, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let stop = async move {
            tokio::select! {
                _ = term.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("stopping: what runs may finish");
            tokio::spawn(async move {
                tokio::select! {
                    _ = term.recv() => {}
                    _ = interrupt.recv() => {}
                }
                std::process::exit(130);
            });
        };
        run(Box::pin(stop)).await
    });
    // A load that was given up may still be at a large tensor.
    runtime.shutdown_background();
    ended
}

fn announce(serving: &Serving) {
    let Serving { model, listen, admin, numerics } = serving;
    tracing::info!(model, %listen, admin = admin.map(|a| a.to_string()), numerics, "serving");
    if std::io::stderr().is_terminal() {
        let _ = writeln!(
            std::io::stderr(),
            "\n{model} is at http://{listen}/v1. Try:\n  curl http://{listen}/v1/chat/completions -H 'content-type: application/json' \\\n    -d '{{\"messages\": [{{\"role\": \"user\", \"content\": \"Tell me a story.\"}}], \"stream\": true}}'\n"
        );
    }
}
