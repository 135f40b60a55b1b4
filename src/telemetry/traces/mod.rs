//! Traces for OpenTelemetry: a span for each delivery, and in it one for each call and each event.
//!
//! Off unless the environment names a collector. A span says what happened and how long it took;
//! it holds no token, link, key or user id, and no query of a URL.

mod exporter;
mod span;

use std::{str::FromStr, sync::Arc, time::Duration};

use opentelemetry::{
    Context,
    trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState},
};
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use tokio::{task::spawn_blocking, time::timeout};

pub use self::span::{ServerAddress, Span};
use crate::message::TraceContext;

/// How long the last spans may take at the end.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

/// Makes spans, where there is a collector to take them. Cheap to share.
#[derive(Clone, Debug, Default)]
pub struct Traces(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Traces {
    /// As the environment says, in the variables that OpenTelemetry specifies. What is wrong with
    /// them is told, and then there are no traces: the worker does its work all the same.
    pub fn from_env() -> Self {
        match exporter::from_env() {
            Ok(inner) => Self(inner.map(Arc::new)),
            Err(why) => {
                tracing::warn!(why, "no traces are sent");
                Self(None)
            }
        }
    }

    /// Begins the span of a delivery, in the trace that its message belongs to, if it names one.
    pub fn delivery(&self, came: TraceContext, queue: &str) -> Span<'static> {
        match &self.0 {
            Some(inner) => Span::delivery(inner, came, queue),
            None => Span::untraced(came),
        }
    }

    /// Sends what is left, for so long at most, and makes no more spans.
    pub async fn flush(&self) {
        if let Some(inner) = &self.0 {
            let provider = inner.provider.clone();
            // It waits for the exporter's thread, which a silent collector may keep busy.
            let shutdown = spawn_blocking(move || provider.shutdown_with_timeout(FLUSH_LIMIT));
            let _ = timeout(FLUSH_LIMIT, shutdown).await;
        }
    }
}

/// What a message's headers say, as a parent of spans.
fn remote(came: &TraceContext) -> Context {
    let (Some((trace, span, flags)), true) = (came.ids(), came.is_continued()) else {
        return Context::new();
    };
    let ids = (TraceId::from_hex(trace), SpanId::from_hex(span), u8::from_str_radix(flags, 16));
    let (Ok(trace), Ok(span), Ok(flags)) = ids else { return Context::new() };
    let state = came.state().and_then(|state| TraceState::from_str(state).ok());
    let flags = TraceFlags::new(flags);
    let parent = SpanContext::new(trace, span, flags, true, state.unwrap_or_default());
    Context::new().with_remote_span_context(parent)
}
