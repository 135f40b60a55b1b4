//! What the log says about requests.

use std::time::Duration;

use crate::{
    broker::PublishError,
    message::RequestId,
    telemetry::{log_limit::LogLimit, metrics::Outcome},
    units::millis,
};

const FAILED_UNROUTABLE: &str = "handoff.failed unroutable: no queue is bound for it";
const FAILED_REFUSED: &str = "handoff.failed not confirmed: dead-lettering without it";
static UNROUTABLE_LIMIT: LogLimit = LogLimit::new(FAILED_UNROUTABLE, 1);
static REFUSED_LIMIT: LogLimit = LogLimit::new(FAILED_REFUSED, 1);

/// One line per finished request.
pub(super) fn finished(
    request_id: &RequestId,
    outcome: Outcome,
    attempt: u32,
    duration: Duration,
    reason: Option<&'static str>,
    error: Option<&String>,
    trace_id: Option<&str>,
) {
    let request_id = request_id.short();
    let outcome = outcome.as_str();
    let duration_ms = millis(duration);
    tracing::info!(
        request_id,
        outcome,
        attempt,
        duration_ms,
        reason,
        error,
        trace_id,
        "request finished"
    );
}

pub(super) fn requeued(request_id: &RequestId) {
    tracing::debug!(request_id = request_id.short(), "request requeued: it will be redelivered");
}

pub(super) fn postponed(request_id: &RequestId) {
    let request_id = request_id.short();
    tracing::info!(request_id, "request held too long: moved to the end of the queue");
}

pub(super) fn failed_event_unroutable(request_id: &RequestId) {
    if UNROUTABLE_LIMIT.permit() {
        tracing::warn!(request_id = request_id.short(), "{FAILED_UNROUTABLE}");
    }
}

pub(super) fn failed_event_refused(request_id: &RequestId, error: &PublishError) {
    if REFUSED_LIMIT.permit() {
        tracing::warn!(request_id = request_id.short(), %error, "{FAILED_REFUSED}");
    }
}
