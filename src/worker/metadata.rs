//! What a delivery carries besides its body: ids, trace context, attempts.

use std::{
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::SystemTime,
};

use crate::{
    broker::{Delivery, Tried},
    message::{RequestId, TraceContext},
    telemetry::traces::{Span, Traces},
};

/// A delivery's metadata, known before its body is decoded.
pub(super) struct Metadata {
    pub(super) request_id: RequestId,
    correlation_id: Option<String>,
    /// The delivery's span; with traces off, only the trace context that it passes on.
    pub(super) span: Span<'static>,
    /// Deliveries tried, this one included.
    pub(super) attempts: u32,
    /// How often the platform deferred this request alone. Grows while the request is served.
    pub(super) deferrals: AtomicU32,
    /// RabbitMQ refused the request's `handoff.ready`, on this delivery or an earlier one.
    event_refused: AtomicBool,
    /// RabbitMQ has redelivered it so often that its delivery limit is near.
    pub(super) was_returned_often: bool,
    /// An earlier delivery, of this message or of one that it copies, may have been served in part.
    pub(super) may_be_repeat: bool,
    /// When the producer published the request, to the second.
    pub(super) published_at: Option<SystemTime>,
}

impl Metadata {
    /// Reads AMQP properties and headers. The request id is the message's own, else the one that an
    /// earlier copy was given, else a new one.
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
            deferrals: delivery.previous_deferrals().into(),
            event_refused: delivery.event_refused().into(),
            was_returned_often: delivery.was_returned_often(),
            may_be_repeat: delivery.was_redelivered() || delivery.request_id_header().is_some(),
            published_at: delivery.published_at(),
        }
    }

    /// Completes the metadata once the body is decoded: a CloudEvent's own id wins.
    pub(super) fn set_decoded_id(&mut self, id: Option<RequestId>) {
        if let Some(id) = id {
            self.request_id = id;
        }
        self.span.set_request(&self.request_id, self.attempts);
    }

    /// The event's AMQP `correlation_id`.
    pub(super) fn correlation_id(&self) -> &str {
        self.correlation_id.as_deref().unwrap_or(self.request_id.short())
    }

    /// What a retry copy or a dead letter carries.
    pub(super) fn tried(&self) -> Tried<'_> {
        Tried {
            request_id: &self.request_id,
            attempts: self.attempts,
            deferrals: self.deferrals.load(Ordering::Relaxed),
            event_refused: self.event_refused(),
        }
    }

    /// Records that `handoff.ready` was refused or not confirmed. Where several queues are bound, one that
    /// has room has received it, so `handoff.failed` may not follow any more.
    pub(super) fn set_event_refused(&self) {
        self.event_refused.store(true, Ordering::Relaxed);
    }

    pub(super) fn event_refused(&self) -> bool {
        self.event_refused.load(Ordering::Relaxed)
    }
}
