//! What a message says of itself, apart from its body.

use crate::{
    broker::Delivery,
    message::{RequestId, TraceContext},
    telemetry::traces::{Span, Traces},
};

/// What is known of a delivery before its body is.
pub(super) struct Envelope {
    pub(super) request_id: RequestId,
    correlation_id: Option<String>,
    /// The span of the delivery, or at least the trace it belongs to.
    pub(super) span: Span<'static>,
    /// Deliveries tried, this one included.
    pub(super) attempts: u32,
}

impl Envelope {
    /// The message's own id comes first, then what an earlier copy was given. A body that has an id
    /// of its own overrules both.
    pub(super) fn read(delivery: &Delivery, queue: &str, traces: &Traces) -> Self {
        let known = delivery.message_id().or_else(|| delivery.request_id_header());
        let request_id = known.map_or_else(|| uuid::Uuid::new_v4().to_string(), str::to_owned);
        let trace = TraceContext::from_headers(
            delivery.header("traceparent"),
            delivery.header("tracestate"),
        );
        Self {
            request_id: RequestId::new(request_id),
            correlation_id: delivery.correlation_id().map(str::to_owned),
            span: traces.delivery(trace, queue),
            attempts: delivery.previous_attempts().saturating_add(1),
        }
    }

    /// What the event carries as `correlation_id`.
    pub(super) fn correlation_id(&self) -> &str {
        self.correlation_id.as_deref().unwrap_or(self.request_id.short())
    }
}
