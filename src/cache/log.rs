//! The log messages about the Redis connection.

use crate::telemetry::log_limit::{LogLimit, Outage};

static UNAVAILABLE: LogLimit = LogLimit::new("Redis unavailable", 3);

/// Logs when Redis becomes unavailable and available again: each change once, flapping rate-limited.
pub(super) struct AvailabilityLog(Outage);

impl AvailabilityLog {
    pub(super) fn new() -> Self {
        Self(Outage::new(&UNAVAILABLE))
    }

    pub(super) fn unavailable(&mut self, error: &str) {
        if self.0.report_down() {
            tracing::warn!(error, "Redis unavailable: serving requests without the cache");
        }
    }

    pub(super) fn available(&mut self) {
        if self.0.report_up() {
            tracing::info!("Redis available again: using the cache");
        }
    }
}

pub(super) fn connection_dropped() {
    tracing::debug!("Redis connection dropped: reconnecting");
}
