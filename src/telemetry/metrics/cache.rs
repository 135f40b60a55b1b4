//! Metrics of the cache in Redis.

use std::time::Duration;

use prometheus_client::{
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::Registry,
};

use super::{
    buckets::DURATIONS,
    labels::{Labels, Lookup, resolved},
};

#[derive(Debug)]
pub(crate) struct CacheMetrics {
    lookups: [Counter; 2],
    lease_wait: Histogram,
    errors: Counter,
    reconnects: Counter,
}

impl CacheMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let lookups = Family::<Labels<1>, Counter>::default();
        let labels = Lookup::ALL.map(|lookup| [("result", lookup.as_str())]);
        let cache = Self {
            lookups: resolved(&lookups, labels),
            lease_wait: Histogram::new(DURATIONS),
            errors: Counter::default(),
            reconnects: Counter::default(),
        };
        registry.register(
            "handoff_cache_lookups",
            "Lookups of a link in Redis: found (hit) or not (miss)",
            lookups,
        );
        registry.register(
            "handoff_lease_wait_seconds",
            "Time that requests waited for another worker to make their link",
            cache.lease_wait.clone(),
        );
        registry.register(
            "handoff_cache_errors",
            "Redis operations that failed or were skipped",
            cache.errors.clone(),
        );
        registry.register(
            "handoff_cache_reconnects",
            "Connections to Redis after the first",
            cache.reconnects.clone(),
        );
        cache
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

    /// Counts a connection to Redis after the first.
    pub(crate) fn reconnected(&self) {
        self.reconnects.inc();
    }
}
