//! The broker's log messages, and how often each may be repeated.

use std::time::Duration;

use super::error::{BrokerError, PublishError};
use crate::{
    message::RequestId,
    telemetry::log_limit::{LogLimit, Outage},
};

const PUBLISH_NOT_CONFIRMED: &str = "publish not confirmed: retrying";
const PUBLISHING_BLOCKED: &str = "publishing blocked by RabbitMQ (memory or disk alarm): waiting";
const HEADERS_TOO_LARGE: &str =
    "headers too large for one frame: dropped the largest from the copy";
const NO_MEMORY: &str =
    "large message exceeds the memory set aside: requeueing it until there is room";

static PUBLISH_NOT_CONFIRMED_LIMIT: LogLimit = LogLimit::new(PUBLISH_NOT_CONFIRMED, 1);
pub(super) static PUBLISHING_BLOCKED_LIMIT: LogLimit = LogLimit::new(PUBLISHING_BLOCKED, 3);
static NO_MEMORY_LIMIT: LogLimit = LogLimit::new(NO_MEMORY, 1);
static HEADERS_TOO_LARGE_LIMIT: LogLimit = LogLimit::new(HEADERS_TOO_LARGE, 1);

pub(super) fn publish_not_confirmed(request_id: &RequestId, error: &PublishError) {
    if PUBLISH_NOT_CONFIRMED_LIMIT.permit() {
        tracing::warn!(request_id = request_id.short(), %error, "{PUBLISH_NOT_CONFIRMED}");
    }
}

pub(super) fn headers_too_large(request_id: Option<&RequestId>, dropped: usize) {
    if HEADERS_TOO_LARGE_LIMIT.permit() {
        let request_id = request_id.map(RequestId::short);
        tracing::warn!(request_id, dropped, "{HEADERS_TOO_LARGE}");
    }
}

pub(super) fn no_memory(bytes: usize) {
    if NO_MEMORY_LIMIT.permit() {
        tracing::warn!(bytes, "{NO_MEMORY}");
    }
}

pub(super) fn topology_check_failed(error: &BrokerError) {
    tracing::warn!(%error, "topology check failed: still consuming");
}

pub(super) fn retries_stuck(queue: &str, messages: u32, for_time: Duration) {
    let stuck_s = for_time.as_secs();
    tracing::warn!(queue, messages, stuck_s, "retry queue keeps messages after their time");
}

pub(super) fn retries_moving(queue: &str) {
    tracing::info!(queue, "retry queue passes on messages again");
}

pub(super) fn prefetch_changed(prefetch: u16) {
    tracing::debug!(prefetch, "prefetch changed");
}

pub(super) fn publishing_blocked(outage: &mut Outage) {
    if outage.report_down() {
        tracing::warn!("{PUBLISHING_BLOCKED}");
    }
}

pub(super) fn publishing_unblocked(outage: &mut Outage) {
    if outage.report_up() {
        tracing::info!("publishing unblocked by RabbitMQ: resumed");
    }
}
