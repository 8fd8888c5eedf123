//! `sluice-agent fetch`.

use anyhow::bail;
use sluice_agent::cli::{FetchOptions, LogFormat, TraceOptions};
use sluice_agent::fetch as download;
use sluice_agent::telemetry::start_logs;
use tokio::signal::unix::{SignalKind, signal};

/// Fetches until all is there, or it is told to stop.
pub fn fetch(options: &FetchOptions, format: LogFormat) -> anyhow::Result<()> {
    let _logs = start_logs(format, &TraceOptions { sample: 0.0, otlp_endpoint: None })?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
        // The first process of a container is ended by no signal that it does not ask for.
        let (mut term, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::select! {
            fetched = download::fetch(options) => {
                let fetched = fetched?;
                let bytes = fetched.files.iter().map(|(_, size)| size).sum();
                let size = bytesize::ByteSize(bytes).to_string();
                tracing::info!(commit = fetched.commit, files = fetched.files.len(), size, "fetched");
                Ok(())
            }
            _ = term.recv() => bail!("stopped: what is there is kept, and the next call goes on with it"),
            _ = interrupt.recv() => bail!("stopped: what is there is kept, and the next call goes on with it"),
        }
    });
    // A lock may be waited for.
    runtime.shutdown_background();
    ended
}
