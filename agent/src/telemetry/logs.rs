//! Logs, and spans as part of them or on their way to a collector.

use std::io::IsTerminal as _;

use tracing_subscriber::filter::{EnvFilter, LevelFilter};
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};
use tracing_subscriber::{Layer, Registry, fmt};

use crate::cli::{LogFormat, TraceOptions};

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

fn filter() -> Result<EnvFilter, LogError> {
    let words = std::env::var(EnvFilter::DEFAULT_ENV).unwrap_or_default();
    Ok(EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).parse(words)?)
}

/// Starts logs on standard error, filtered by `RUST_LOG` (default: `info`). Spans go to the collector if there is one;
/// without, those of traced requests are log lines, written as they close, with the time they took.
///
/// # Errors
/// `RUST_LOG` is malformed, logs run already, or the collector's address cannot be used.
pub fn start_logs(format: LogFormat, traces: &TraceOptions) -> Result<Logs, LogError> {
    let collector = traces.otlp_endpoint.as_deref();
    let shown = if traces.sample > 0.0 && collector.is_none() { FmtSpan::CLOSE } else { FmtSpan::NONE };
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match format {
        LogFormat::Json => fmt::layer()
            .json()
            .with_span_events(shown)
            .with_writer(std::io::stderr)
            .with_filter(filter()?)
            .boxed(),
        LogFormat::Text => fmt::layer()
            .with_span_events(shown)
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .with_filter(filter()?)
            .boxed(),
    };
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
    use tracing_subscriber::filter::Targets;
    use tracing_subscriber::registry::LookupSpan;

    use super::LogError;

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

    /// Only our own spans go to the collector: those of its HTTP client would beget more of themselves.
    pub(super) fn layer<S>(provider: &SdkTracerProvider) -> impl Layer<S> + use<S>
    where
        S: tracing::Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        let tracer: Tracer = provider.tracer("sluice-agent");
        OpenTelemetryLayer::new(tracer)
            .with_filter(Targets::new().with_target("sluice", tracing::Level::TRACE))
    }
}
