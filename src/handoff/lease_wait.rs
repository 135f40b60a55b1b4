//! Measures how long a request waits for a lease that another request holds.

use std::time::Instant;

use crate::telemetry::metrics::Metrics;

/// Records the wait when it ends, however it ends: also when the request is dropped.
pub(super) struct LeaseWait<'a> {
    metrics: &'a Metrics,
    since: Option<Instant>,
}

impl<'a> LeaseWait<'a> {
    pub(super) fn new(metrics: &'a Metrics) -> Self {
        Self { metrics, since: None }
    }

    pub(super) fn begin(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    pub(super) fn end(&mut self) {
        if let Some(since) = self.since.take() {
            self.metrics.cache.lease_waited(since.elapsed());
        }
    }
}

impl Drop for LeaseWait<'_> {
    fn drop(&mut self) {
        self.end();
    }
}
