//! The log messages of the sandbox.

use std::time::Duration;

use super::call::Endpoint;

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
