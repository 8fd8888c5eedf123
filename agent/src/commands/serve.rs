//! `sluice-agent serve`.

use std::io::{IsTerminal as _, Write as _};

use sluice_agent::cli::{LogFormat, ServeOptions};
use sluice_agent::node::{Serving, serve as run};
use sluice_agent::telemetry::start_logs;
use tokio::signal::unix::{SignalKind, signal};

use super::loading;

/// Serves until SIGTERM or an interrupt; the second one ends at once.
pub fn serve(options: ServeOptions, format: LogFormat) -> anyhow::Result<()> {
    let _logs = start_logs(format, &options.traces)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let served = runtime.block_on(async {
        let (bar, progress) = loading::bar(false);
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
        let shown = bar.clone();
        let served = run(
            options,
            progress,
            |serving| {
                shown.finish_and_clear();
                announce(serving);
            },
            stop,
        )
        .await;
        bar.finish_and_clear();
        served?;
        anyhow::Ok(())
    });
    // A load that was given up may still be at a large tensor.
    runtime.shutdown_background();
    served
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
