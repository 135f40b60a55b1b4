//! Spans, by the semantic conventions for messaging and for HTTP.

use std::borrow::Cow;

use opentelemetry::{
    Context, KeyValue,
    trace::{Span as _, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt, Tracer},
};
use opentelemetry_sdk::trace::{SdkTracer, Span as SdkSpan};
use url::Url;

use super::{Inner, remote};
use crate::{
    message::{RequestId, TraceContext},
    session::Call,
};

/// Something that takes time. It ends when it is dropped.
#[derive(Debug)]
pub struct Span<'a> {
    /// What is passed on: this span, or, where none is made, what came in.
    context: Cow<'a, TraceContext>,
    /// In a box: as a rule there is none, and every request would have room for several.
    made: Option<Box<(SdkTracer, SdkSpan)>>,
}

/// Who is called.
#[derive(Clone, Debug)]
pub struct ServerAddress {
    address: String,
    port: i64,
}

impl ServerAddress {
    /// The server that a URL names.
    pub fn of(url: &Url) -> Self {
        let address = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        Self { address, port: url.port_or_known_default().unwrap_or_default().into() }
    }
}

impl Span<'static> {
    /// No span, in a trace that may go on elsewhere.
    pub fn untraced(context: TraceContext) -> Self {
        Self { context: Cow::Owned(context), made: None }
    }

    pub(super) fn delivery(inner: &Inner, came: TraceContext, queue: &str) -> Self {
        let attributes = vec![
            KeyValue::new("messaging.system", "rabbitmq"),
            KeyValue::new("messaging.operation.type", "process"),
            KeyValue::new("messaging.operation.name", "process"),
            KeyValue::new("messaging.destination.name", queue.to_owned()),
        ];
        let span = SpanBuilder::from_name(format!("process {queue}"))
            .with_kind(SpanKind::Consumer)
            .with_attributes(attributes);
        let span = inner.tracer.build_with_context(span, &remote(&came));
        let context = passed_on(span.span_context(), &came);
        Self {
            context: context.map_or(Cow::Owned(came), Cow::Owned),
            made: Some(Box::new((inner.tracer.clone(), span))),
        }
    }
}

impl Span<'_> {
    /// The headers by which others continue the trace from here.
    pub fn context(&self) -> &TraceContext {
        &self.context
    }

    /// The trace it belongs to, where spans are made.
    pub fn trace_id(&self) -> Option<&str> {
        self.made.as_ref()?;
        self.context.ids().map(|(trace, ..)| trace)
    }

    /// Begins the span of a call to the platform. `route` is the part of its path that is always the
    /// same.
    pub fn call(&self, call: Call, route: &'static str, server: &ServerAddress) -> Span<'_> {
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

    /// Begins the span of an event that is published.
    pub fn event(&self, exchange: &str, kind: &'static str, event_id: &str) -> Span<'_> {
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

    fn child(&self, kind: SpanKind, what: impl FnOnce() -> (String, Vec<KeyValue>)) -> Span<'_> {
        let Some((tracer, parent)) = self.made.as_deref() else {
            return Span { context: Cow::Borrowed(&self.context), made: None };
        };
        let (name, attributes) = what();
        let span = SpanBuilder::from_name(name).with_kind(kind).with_attributes(attributes);
        let parent = Context::new().with_remote_span_context(parent.span_context().clone());
        let span = tracer.build_with_context(span, &parent);
        let context = passed_on(span.span_context(), &self.context);
        Span {
            context: context.map_or(Cow::Borrowed(&*self.context), Cow::Owned),
            made: Some(Box::new((tracer.clone(), span))),
        }
    }

    /// Which request it is about.
    pub fn set_request(&mut self, request_id: &RequestId, attempt: u32) {
        self.set(|| KeyValue::new("messaging.message.id", request_id.short().to_owned()));
        self.set(|| KeyValue::new("handoff.attempt", i64::from(attempt)));
    }

    /// How the delivery ended.
    pub fn set_outcome(&mut self, outcome: &'static str) {
        self.set(|| KeyValue::new("handoff.outcome", outcome));
    }

    /// An answer came.
    pub fn set_status(&mut self, status: u16) {
        self.set(|| KeyValue::new("http.response.status_code", i64::from(status)));
    }

    /// It did not work out. The kind comes from a fixed set.
    pub fn set_error(&mut self, kind: impl Into<Cow<'static, str>>) {
        if let Some((_, span)) = self.made.as_deref_mut() {
            span.set_attribute(KeyValue::new("error.type", kind.into()));
            span.set_status(Status::error(""));
        }
    }

    fn set(&mut self, attribute: impl FnOnce() -> KeyValue) {
        if let Some((_, span)) = self.made.as_deref_mut()
            && span.is_recording()
        {
            span.set_attribute(attribute());
        }
    }
}

/// The headers that name a span, unless it is none: spans are made until the last are sent.
fn passed_on(span: &SpanContext, came: &TraceContext) -> Option<TraceContext> {
    span.is_valid().then(|| {
        let (trace, id, flags) = (span.trace_id(), span.span_id(), span.trace_flags().to_u8());
        came.with_parent(format!("00-{trace}-{id}-{flags:02x}"))
    })
}
