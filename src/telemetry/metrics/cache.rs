//! Metrics of the cache in Redis.

use std::time::Duration;

use prometheus_client::{
    metrics::{counter::Counter, histogram::Histogram},
    registry::Registry,
};

use super::{
    labels::Lookup,
    register::{counters, durations, register},
};
use crate::cache::Refusal;

#[derive(Debug)]
pub(crate) struct CacheMetrics {
    lookups: [Counter; 2],
    lease_wait: Histogram,
    errors: Counter,
    refusals: [Counter; Refusal::ALL.len()],
    reconnects: Counter,
}

impl CacheMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let lookups = Lookup::ALL.map(|lookup| [("result", lookup.as_str())]);
        let help = "Lookups of a link in Redis: found (hit) or not (miss)";
        let lookups = counters(registry, "handoff_cache_lookups", help, lookups);
        let help = "Time that requests waited for another worker to make their link";
        let lease_wait = register(registry, "handoff_lease_wait_seconds", help, durations());
        let help = "Redis operations that failed or were skipped";
        let errors = register(registry, "handoff_cache_errors", help, Counter::default());
        let help = "Answers of Redis that refused a command, by cause";
        let causes = Refusal::ALL.map(|refusal| [("cause", refusal.label())]);
        let refusals = counters(registry, "handoff_cache_refusals", help, causes);
        let help = "Connections to Redis after the first";
        let reconnects = register(registry, "handoff_cache_reconnects", help, Counter::default());
        Self { lookups, lease_wait, errors, refusals, reconnects }
    }

    /// Counts a lookup that Redis answered.
    pub(crate) fn looked_up(&self, lookup: Lookup) {
        self.lookups[lookup as usize].inc();
    }

    /// Records how long a request waited for another worker to make its link.
    pub(crate) fn lease_waited(&self, wait: Duration) {
        self.lease_wait.observe(wait.as_secs_f64());
    }

    /// Counts a Redis operation that failed or was skipped.
    pub(crate) fn failed(&self) {
        self.errors.inc();
    }

    /// Counts a command that Redis refused.
    pub(crate) fn refused(&self, refusal: Refusal) {
        self.refusals[refusal as usize].inc();
    }

    pub(crate) fn reconnected(&self) {
        self.reconnects.inc();
    }
}
