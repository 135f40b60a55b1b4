//! OpenTelemetry traces: a span per delivery, with a child per platform call and per event.
//!
//! Off unless the environment names a collector. No attribute holds a token, link, key, user id or
//! URL query.

mod exporter;
mod span;

use std::{str::FromStr, sync::Arc, time::Duration};

use opentelemetry::{
    Context,
    trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState},
};
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use tokio::{task::spawn_blocking, time::timeout};

pub(crate) use self::span::ServerAddress;
pub use self::span::Span;
use crate::message::TraceContext;

/// How long shutdown waits for the last export.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Creates spans if a collector is configured; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Traces(Option<Arc<Exporting>>);

#[derive(Debug)]
struct Exporting {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Traces {
    /// Reads the `OTEL_…` variables. Logs an invalid one and then disables traces, since the worker
    /// can serve requests without.
    pub(crate) fn from_env() -> Self {
        match exporter::from_env() {
            Ok(exporting) => Self(exporting.map(Arc::new)),
            Err(error) => {
                tracing::warn!(error, "invalid OTLP settings; running without traces");
                Self(None)
            }
        }
    }

    /// Starts the span of a delivery, in the trace of its message if that has one.
    pub(crate) fn delivery(&self, context: TraceContext, queue: &str) -> Span<'static> {
        match &self.0 {
            Some(exporting) => Span::delivery(&exporting.tracer, context, queue),
            None => Span::untraced(context),
        }
    }

    /// Exports the remaining spans, for at most [`FLUSH_TIMEOUT`], and stops the exporter.
    pub(crate) async fn shut_down(&self) {
        if let Some(exporting) = &self.0 {
            let provider = exporting.provider.clone();
            // Blocks on the exporter's thread, which a collector that does not answer keeps busy.
            let shutdown = spawn_blocking(move || provider.shutdown_with_timeout(FLUSH_TIMEOUT));
            let _ = timeout(FLUSH_TIMEOUT, shutdown).await;
        }
    }
}

/// Converts the trace headers of a message into the parent of a span.
fn remote_parent(context: &TraceContext) -> Context {
    let Some((trace, span, flags)) = context.ids().filter(|_| context.is_continued()) else {
        return Context::new();
    };
    let ids = (TraceId::from_hex(trace), SpanId::from_hex(span), u8::from_str_radix(flags, 16));
    let (Ok(trace), Ok(span), Ok(flags)) = ids else { return Context::new() };
    let state = context.state().and_then(|state| TraceState::from_str(state).ok());
    let flags = TraceFlags::new(flags);
    let parent = SpanContext::new(trace, span, flags, true, state.unwrap_or_default());
    Context::new().with_remote_span_context(parent)
}
