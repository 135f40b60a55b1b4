//! Spans, named by the OpenTelemetry semantic conventions for messaging and HTTP.

use std::{borrow::Cow, str::FromStr};

use opentelemetry::{
    Context, KeyValue,
    trace::{
        Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags,
        TraceId, TraceState, Tracer,
    },
};
use opentelemetry_sdk::trace::{SdkTracer, Span as SdkSpan};
use url::Url;

use crate::{
    message::{RequestId, TraceContext},
    session::Call,
};

/// A span, exported when it is dropped; without a collector, only the trace context.
#[derive(Debug)]
pub struct Span<'a> {
    /// The context to propagate: this span, or the incoming context if traces are off.
    context: Cow<'a, TraceContext>,
    /// Boxed because traces are off by default, and a request's future holds several spans.
    exported: Option<Box<(SdkTracer, SdkSpan)>>,
}

/// The host and port of a platform call.
#[derive(Clone, Debug)]
pub(crate) struct ServerAddress {
    address: String,
    port: i64,
}

impl ServerAddress {
    pub(crate) fn of(url: &Url) -> Self {
        let address = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        Self { address, port: url.port_or_known_default().unwrap_or_default().into() }
    }
}

impl Span<'static> {
    /// Propagates `context` without exporting a span.
    pub fn untraced(context: TraceContext) -> Self {
        Self { context: Cow::Owned(context), exported: None }
    }

    pub(super) fn delivery(tracer: &SdkTracer, incoming: TraceContext, queue: &str) -> Self {
        let attributes = vec![
            KeyValue::new("messaging.system", "rabbitmq"),
            KeyValue::new("messaging.operation.type", "process"),
            KeyValue::new("messaging.operation.name", "process"),
            KeyValue::new("messaging.destination.name", queue.to_owned()),
        ];
        let span = SpanBuilder::from_name(format!("process {queue}"))
            .with_kind(SpanKind::Consumer)
            .with_attributes(attributes);
        let span = tracer.build_with_context(span, &remote_parent(&incoming));
        let context = propagated(span.span_context(), &incoming).unwrap_or(incoming);
        Self { context: Cow::Owned(context), exported: Some(Box::new((tracer.clone(), span))) }
    }
}

impl Span<'_> {
    /// The context that calls and events made within this span carry.
    pub(crate) fn context(&self) -> &TraceContext {
        &self.context
    }

    /// The trace id, or `None` if traces are off.
    pub(crate) fn trace_id(&self) -> Option<&str> {
        self.exported.as_ref()?;
        self.context.ids().map(|(trace, ..)| trace)
    }

    /// Starts the span of a platform call. `route` is the constant part of its path.
    pub(crate) fn call(&self, call: Call, route: &'static str, server: &ServerAddress) -> Span<'_> {
        self.child(SpanKind::Client, || {
            let attributes = vec![
                KeyValue::new("http.request.method", "POST"),
                KeyValue::new("url.template", route),
                KeyValue::new("server.address", server.address.clone()),
                KeyValue::new("server.port", server.port),
                KeyValue::new("handoff.call", call.as_str()),
            ];
            (format!("POST {route}"), attributes)
        })
    }

    /// Starts the span of publishing an event.
    pub(crate) fn event(&self, exchange: &str, kind: &'static str, event_id: &str) -> Span<'_> {
        self.child(SpanKind::Producer, || {
            let destination = format!("{exchange}:{kind}");
            let name = format!("publish {destination}");
            let attributes = vec![
                KeyValue::new("messaging.system", "rabbitmq"),
                KeyValue::new("messaging.operation.type", "send"),
                KeyValue::new("messaging.operation.name", "publish"),
                KeyValue::new("messaging.destination.name", destination),
                KeyValue::new("messaging.rabbitmq.destination.routing_key", kind),
                KeyValue::new("messaging.message.id", event_id.to_owned()),
            ];
            (name, attributes)
        })
    }

    fn child(
        &self,
        kind: SpanKind,
        describe: impl FnOnce() -> (String, Vec<KeyValue>),
    ) -> Span<'_> {
        let Some((tracer, parent)) = self.exported.as_deref() else {
            return Span { context: Cow::Borrowed(&self.context), exported: None };
        };
        let (name, attributes) = describe();
        let span = SpanBuilder::from_name(name).with_kind(kind).with_attributes(attributes);
        let parent = Context::new().with_remote_span_context(parent.span_context().clone());
        let span = tracer.build_with_context(span, &parent);
        let context = propagated(span.span_context(), &self.context);
        Span {
            context: context.map_or(Cow::Borrowed(&*self.context), Cow::Owned),
            exported: Some(Box::new((tracer.clone(), span))),
        }
    }

    pub(crate) fn set_request(&mut self, request_id: &RequestId, attempt: u32) {
        self.set(|| KeyValue::new("messaging.message.id", request_id.short().to_owned()));
        self.set(|| KeyValue::new("handoff.attempt", i64::from(attempt)));
    }

    pub(crate) fn set_outcome(&mut self, outcome: &'static str) {
        self.set(|| KeyValue::new("handoff.outcome", outcome));
    }

    pub(crate) fn set_status(&mut self, status: u16) {
        self.set(|| KeyValue::new("http.response.status_code", i64::from(status)));
    }

    /// Marks the span as failed. `kind` is one of a fixed set.
    pub(crate) fn set_error(&mut self, kind: impl Into<Cow<'static, str>>) {
        if let Some((_, span)) = self.exported.as_deref_mut() {
            span.set_attribute(KeyValue::new("error.type", kind.into()));
            span.set_status(Status::error(""));
        }
    }

    fn set(&mut self, attribute: impl FnOnce() -> KeyValue) {
        if let Some((_, span)) = self.exported.as_deref_mut()
            && span.is_recording()
        {
            span.set_attribute(attribute());
        }
    }
}

/// Returns the trace headers that name `span`, or `None` after the exporter was shut down.
fn propagated(span: &SpanContext, incoming: &TraceContext) -> Option<TraceContext> {
    span.is_valid().then(|| {
        let (trace, id, flags) = (span.trace_id(), span.span_id(), span.trace_flags().to_u8());
        incoming.with_parent(format!("00-{trace}-{id}-{flags:02x}"))
    })
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
