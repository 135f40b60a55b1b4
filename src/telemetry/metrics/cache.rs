//! What is counted of Redis.

use std::time::Duration;

use prometheus_client::{
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::Registry,
};

use super::{
    DURATIONS, Metrics,
    labels::{Lookup, ResultLabel, resolved},
};

#[derive(Debug)]
pub(super) struct Cache {
    lookups: [Counter; 2],
    lease_wait: Histogram,
    errors: Counter,
    reconnects: Counter,
}

impl Cache {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let lookups = Family::<ResultLabel, Counter>::default();
        let labels = Lookup::ALL.map(|lookup| ResultLabel { result: lookup.as_str() });
        let cache = Self {
            lookups: resolved(&lookups, labels),
            lease_wait: Histogram::new(DURATIONS),
            errors: Counter::default(),
            reconnects: Counter::default(),
        };
        registry.register(
            "handoff_cache_lookups",
            "Links asked for in Redis, found (hit) or to be made (miss)",
            lookups,
        );
        registry.register(
            "handoff_lease_wait_seconds",
            "Time that requests waited for somebody else to make their link",
            cache.lease_wait.clone(),
        );
        registry.register(
            "handoff_cache_errors",
            "Redis operations that failed and were done without",
            cache.errors.clone(),
        );
        registry.register(
            "handoff_cache_reconnects",
            "Connections to Redis made after the first",
            cache.reconnects.clone(),
        );
        cache
    }
}

impl Metrics {
    /// The cache has answered.
    pub fn looked_up(&self, lookup: Lookup) {
        self.cache.lookups[lookup as usize].inc();
    }

    /// A request has waited for somebody else to make its link.
    pub fn lease_waited(&self, wait: Duration) {
        self.cache.lease_wait.observe(wait.as_secs_f64());
    }

    /// A Redis operation failed and was done without.
    pub fn cache_failed(&self) {
        self.cache.errors.inc();
    }

    /// There is a connection to Redis again.
    pub fn cache_reconnected(&self) {
        self.cache.reconnects.inc();
    }
}
