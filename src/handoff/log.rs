//! What the log says about obtaining a session; mostly at debug level.

use std::time::Duration;

use crate::{
    cache::CacheError, message::RequestId, platform::CallError, telemetry::log_limit::LogLimit,
    units::millis,
};

pub(super) fn lease_lost(request_id: &RequestId) {
    tracing::debug!(request_id = request_id.short(), "lease lost: using the new holder's link");
}

pub(super) fn session_had_ended(request_id: &RequestId) {
    let request_id = request_id.short();
    tracing::debug!(request_id, "repeated call returned an ended session: asking for another");
}

pub(super) fn link_not_stored(request_id: &RequestId, error: &CacheError) {
    let request_id = request_id.short();
    tracing::debug!(request_id, %error, "link not stored in Redis: publishing it anyway");
}

pub(super) fn without_cache(request_id: &RequestId, error: &CacheError) {
    let request_id = request_id.short();
    tracing::debug!(request_id, %error, "Redis unavailable: serving the request without it");
}

/// The platform's `expiresAt` cannot be true.
pub(super) fn expiry_ignored(request_id: &RequestId) {
    const TEXT: &str = "expiresAt of a deeplink is missing, unreadable or past: ignored";
    static LIMIT: LogLimit = LogLimit::new(TEXT, 1);
    if LIMIT.permit() {
        tracing::warn!(request_id = request_id.short(), "{TEXT}");
    }
}

pub(super) fn call_held(request_id: &RequestId, error: &CallError) {
    let request_id = request_id.short();
    tracing::debug!(request_id, %error, "platform call failed in an outage: request held");
}

pub(super) fn call_retried(request_id: &RequestId, error: &CallError, delay: Duration) {
    let request_id = request_id.short();
    let delay_ms = millis(delay);
    tracing::debug!(request_id, %error, delay_ms, "platform call failed: retrying");
}
