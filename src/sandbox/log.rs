//! The log messages of the sandbox.

use std::{fmt::Display, time::Duration};

use super::call::Endpoint;
use crate::telemetry::log_limit::LogLimit;

const WEBHOOK_FAILED: &str = "webhook call failed";
const WEBHOOK_GIVEN_UP: &str = "webhook call failed for the last time: giving up";
const WEBHOOK_DROPPED: &str = "webhook call dropped";

static WEBHOOK_FAILED_LIMIT: LogLimit = LogLimit::new(WEBHOOK_FAILED, 10);
static WEBHOOK_GIVEN_UP_LIMIT: LogLimit = LogLimit::new(WEBHOOK_GIVEN_UP, 10);
static WEBHOOK_DROPPED_LIMIT: LogLimit = LogLimit::new(WEBHOOK_DROPPED, 10);

pub(super) fn call_answered(endpoint: Endpoint, status: Option<u16>, latency: Duration) {
    tracing::debug!(?endpoint, status, latency_ms = latency.as_millis(), "call answered");
}

pub(super) fn faults_replaced() {
    tracing::info!("faults replaced");
}

pub(super) fn grace_period_over(grace: Duration) {
    tracing::warn!(
        grace_s = grace.as_secs(),
        "grace period over: stopping with requests in flight"
    );
}

pub(super) fn webhook_called(status: u16, attempt: u32) {
    tracing::debug!(status, attempt, "webhook called");
}

pub(super) fn webhook_failed(error: &impl Display, attempt: u32, delay: Duration) {
    if WEBHOOK_FAILED_LIMIT.permit() {
        let retry_after_ms = delay.as_millis();
        tracing::warn!(%error, attempt, retry_after_ms, "{WEBHOOK_FAILED}");
    }
}

pub(super) fn webhook_given_up(error: &impl Display, attempt: u32) {
    if WEBHOOK_GIVEN_UP_LIMIT.permit() {
        tracing::warn!(%error, attempt, "{WEBHOOK_GIVEN_UP}");
    }
}

pub(super) fn webhook_dropped(reason: &'static str) {
    if WEBHOOK_DROPPED_LIMIT.permit() {
        tracing::warn!(reason, "{WEBHOOK_DROPPED}");
    }
}
