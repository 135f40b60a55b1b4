//! OpenTelemetry traces: a span per delivery, with a child per platform call and per event.
//!
//! Off unless the environment names a collector. No attribute holds a token, link, key, user id or
//! URL query.

mod exporter;
mod span;

use std::{sync::Arc, time::Duration};

use tokio::{task::spawn_blocking, time::timeout};

use self::exporter::Exporter;
pub(crate) use self::span::ServerAddress;
pub use self::span::Span;
use crate::message::TraceContext;

/// How long shutdown waits for the last export.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Creates spans if a collector is configured; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Traces(Option<Arc<Exporter>>);

impl Traces {
    /// Reads the `OTEL_…` variables. Logs an invalid one and then disables traces, since the worker
    /// can serve requests without.
    pub(crate) fn from_env() -> Self {
        match Exporter::from_env() {
            Ok(exporter) => Self(exporter.map(Arc::new)),
            Err(error) => {
                tracing::warn!(error, "invalid OTLP settings: running without traces");
                Self(None)
            }
        }
    }

    /// Starts the span of a delivery, in the trace of its message if that has one.
    pub(crate) fn delivery(&self, context: TraceContext, queue: &str) -> Span<'static> {
        match &self.0 {
            Some(exporter) => Span::delivery(&exporter.tracer, context, queue),
            None => Span::untraced(context),
        }
    }

    /// Exports the remaining spans, for at most [`FLUSH_TIMEOUT`], and stops the exporter.
    pub(crate) async fn shut_down(&self) {
        if let Some(exporter) = &self.0 {
            let provider = exporter.provider.clone();
            // Blocks on the exporter's thread, which a collector that does not answer keeps busy.
            let shutdown = spawn_blocking(move || provider.shutdown_with_timeout(FLUSH_TIMEOUT));
            let _ = timeout(FLUSH_TIMEOUT, shutdown).await;
        }
    }
}
