//! Logs, and spans as part of them or on their way to a collector.

use std::io::IsTerminal as _;

use tracing_subscriber::filter::{EnvFilter, FilterExt as _, LevelFilter, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};
use tracing_subscriber::{Layer, Registry, fmt};

use crate::cli::{LogFormat, TraceOptions};
use crate::gateway::TRACED;

/// Logs that could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// `RUST_LOG`.
    #[error(
        "RUST_LOG is not a filter: {0}; write a level (info) or targets with levels (sluice_agent=debug,info)"
    )]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// They run already.
    #[error("logs are started twice: {0}")]
    Twice(#[from] TryInitError),
    /// The collector.
    #[cfg(feature = "otlp")]
    #[error("traces cannot be sent to {endpoint}: {source}")]
    Collector {
        /// Where.
        endpoint: String,
        /// Why.
        source: opentelemetry_otlp::ExporterBuildError,
    },
}

/// Running logs. Spans that were not sent yet are sent when it is dropped.
#[derive(Debug)]
#[must_use = "spans that were not sent yet are lost"]
pub struct Logs {
    #[cfg(feature = "otlp")]
    provider: Option<opentelemetry_sdk::trace::SdkTracerProvider>,
}

#[cfg(feature = "otlp")]
impl Drop for Logs {
    fn drop(&mut self) {
        if let Some(provider) = &self.provider {
            // The collector may be gone; that is no reason not to end.
            let _ = provider.shutdown();
        }
    }
}

fn filter(words: &str) -> Result<EnvFilter, LogError> {
    Ok(EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).parse(words)?)
}

type Lines = Vec<Box<dyn Layer<Registry> + Send + Sync>>;

/// What is written to the log: events, and with `spans` those of traced requests as they close.
fn lines<W>(words: &str, format: LogFormat, spans: bool, color: bool, writer: W) -> Result<Lines, LogError>
where
    W: for<'a> MakeWriter<'a> + Clone + Send + Sync + 'static,
{
    let layer = |shown: FmtSpan, writer: W| -> Box<dyn Layer<Registry> + Send + Sync> {
        let layer = fmt::layer().with_span_events(shown).with_writer(writer);
        match format {
            LogFormat::Json => layer.json().boxed(),
            LogFormat::Text => layer.with_ansi(color).boxed(),
        }
    };
    let mut lines = vec![layer(FmtSpan::NONE, writer.clone()).with_filter(filter(words)?).boxed()];
    if spans {
        let traced = filter_fn(|about| about.is_span() && about.target() == TRACED);
        lines.push(layer(FmtSpan::CLOSE, writer).with_filter(filter(words)?.and(traced)).boxed());
    }
    Ok(lines)
}

/// Starts logs on standard error, filtered by `RUST_LOG` (default: `info`). Spans of traced requests go to the collector
/// if there is one; without, they are log lines, written as they close, with the time they took.
///
/// # Errors
/// `RUST_LOG` is malformed, logs run already, or the collector's address cannot be used.
pub fn start_logs(format: LogFormat, traces: &TraceOptions) -> Result<Logs, LogError> {
    let collector = traces.otlp_endpoint.as_deref();
    let spans = traces.sample > 0.0 && collector.is_none();
    let words = std::env::var(EnvFilter::DEFAULT_ENV).unwrap_or_default();
    let lines = lines(&words, format, spans, std::io::stderr().is_terminal(), std::io::stderr)?;
    let registry = tracing_subscriber::registry().with(lines);
    #[cfg(feature = "otlp")]
    {
        let provider = collector.map(otlp::provider).transpose()?;
        registry.with(provider.as_ref().map(otlp::layer)).try_init()?;
        Ok(Logs { provider })
    }
    #[cfg(not(feature = "otlp"))]
    {
        registry.try_init()?;
        Ok(Logs {})
    }
}

#[cfg(feature = "otlp")]
mod otlp {
    use opentelemetry::trace::TracerProvider as _;
    use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _};
    use opentelemetry_sdk::Resource;
    use opentelemetry_sdk::trace::{SdkTracerProvider, Tracer};
    use tracing_opentelemetry::OpenTelemetryLayer;
    use tracing_subscriber::Layer;
    use tracing_subscriber::filter::filter_fn;
    use tracing_subscriber::registry::LookupSpan;

    use super::{LogError, TRACED};

    /// Sends spans in batches, from a thread of its own.
    pub(super) fn provider(endpoint: &str) -> Result<SdkTracerProvider, LogError> {
        let exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
            .build()
            .map_err(|source| LogError::Collector { endpoint: endpoint.into(), source })?;
        let resource = Resource::builder().with_service_name("sluice-agent").build();
        Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
    }

    /// Only spans of traced requests go to the collector, with what is logged in them.
    pub(super) fn layer<S>(provider: &SdkTracerProvider) -> impl Layer<S> + use<S>
    where
        S: tracing::Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        let tracer: Tracer = provider.tracer("sluice-agent");
        OpenTelemetryLayer::new(tracer).with_filter(filter_fn(|about| {
            about.target() == TRACED || about.is_event() && about.target().starts_with("sluice")
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, spans: bool) -> Vec<String> {
        let page = Page::default();
        let made = page.clone();
        let lines = lines("", format, spans, false, move || made.clone()).unwrap();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), || {
            tracing::info_span!("request", id = "plain").in_scope(|| tracing::info!("said"));
            tracing::info_span!(target: TRACED, "request", id = "traced").in_scope(|| tracing::info!("said"));
        });
        let page = page.0.lock().unwrap();
        String::from_utf8_lossy(&page).lines().map(str::to_owned).collect()
    }

    #[test]
    fn spans_of_traced_requests_are_lines_as_they_close() {
        for format in [LogFormat::Text, LogFormat::Json] {
            let plain = logged(format, false);
            assert_eq!(plain.len(), 2, "{plain:?}");
            let lines = logged(format, true);
            assert_eq!(lines.len(), 3, "{lines:?}");
            // What is logged in a request names it, traced or not.
            assert!(lines[0].contains("plain") && lines[0].contains("said"), "{lines:?}");
            assert!(lines[1].contains("traced") && lines[1].contains("said"), "{lines:?}");
            assert!(lines[2].contains("close") && lines[2].contains("traced"), "{lines:?}");
        }
    }
}
