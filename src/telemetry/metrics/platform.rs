//! Metrics of calls to the platform, their retries, and pauses.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use super::{
    buckets::DURATIONS,
    labels::{Labels, resolved},
};
use crate::session::Call;

const CALLS: [Call; 2] = [Call::Token, Call::Session];

type Seconds = Counter<f64, AtomicU64>;

#[derive(Debug)]
pub(crate) struct PlatformMetrics {
    calls: Family<Labels<2>, Counter>,
    /// The counters of `outcome="ok"`, by call.
    ok: [Counter; 2],
    durations: [Histogram; 2],
    retries: Family<Labels<2>, Counter>,
    rate_wait: Histogram,
    paused: Gauge,
    paused_for: [Seconds; 3],
}

/// Total time that calls were paused, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PausedFor {
    /// The circuit breaker was open because calls failed.
    pub(crate) down: Duration,
    /// The platform refused the token call.
    pub(crate) refused: Duration,
    /// The platform asked to wait: a `Retry-After`.
    pub(crate) asked: Duration,
}

impl PlatformMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let calls = Family::<Labels<2>, Counter>::default();
        let ok = CALLS.map(|call| [("call", call.as_str()), ("outcome", "ok")]);
        let durations: Family<Labels<1>, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(|| Histogram::new(DURATIONS));
        let paused_for = Family::<Labels<1>, Seconds>::default();
        let platform = Self {
            ok: resolved(&calls, ok),
            durations: CALLS.map(|call| durations.get_or_create_owned(&[("call", call.as_str())])),
            calls: calls.clone(),
            retries: Family::default(),
            rate_wait: Histogram::new(DURATIONS),
            paused: Gauge::default(),
            paused_for: ["down", "refused", "asked_to_wait"]
                .map(|reason| paused_for.get_or_create_owned(&[("reason", reason)])),
        };
        registry.register("handoff_platform_calls", "Calls to the platform, by outcome", calls);
        registry.register(
            "handoff_platform_call_duration_seconds",
            "Duration of calls to the platform",
            durations,
        );
        registry.register(
            "handoff_platform_retries",
            "Calls to the platform repeated within a delivery, by the failure before",
            platform.retries.clone(),
        );
        registry.register(
            "handoff_rate_limit_wait_seconds",
            "Time that calls waited for a permit of the shared rate limit",
            platform.rate_wait.clone(),
        );
        registry.register(
            "handoff_platform_paused",
            "1 while calls to the platform are paused",
            platform.paused.clone(),
        );
        registry.register(
            "handoff_platform_paused_seconds",
            "Time that calls to the platform were paused, by reason",
            paused_for,
        );
        platform
    }

    /// Counts a finished call. `outcome` is one of a fixed set.
    pub(crate) fn called(&self, call: Call, outcome: &'static str, duration: Duration) {
        if outcome == "ok" {
            self.ok[call as usize].inc();
        } else {
            let labels = [("call", call.as_str()), ("outcome", outcome)];
            self.calls.get_or_create(&labels).inc();
        }
        self.durations[call as usize].observe(duration.as_secs_f64());
    }

    /// Counts a retry within a delivery. `reason` is one of a fixed set.
    pub(crate) fn retried(&self, call: Call, reason: &'static str) {
        let labels = [("call", call.as_str()), ("reason", reason)];
        self.retries.get_or_create(&labels).inc();
    }

    /// Records how long a call waited for a permit of the shared rate limit.
    pub(crate) fn rate_waited(&self, wait: Duration) {
        self.rate_wait.observe(wait.as_secs_f64());
    }

    /// Records whether calls are paused, and how long they have been in total.
    pub(crate) fn set_paused(&self, paused: bool, total: PausedFor) {
        self.paused.set(i64::from(paused));
        let total = [total.down, total.refused, total.asked];
        for (counter, total) in self.paused_for.iter().zip(total) {
            counter.inner().store(total.as_secs_f64().to_bits(), Ordering::Relaxed);
        }
    }
}
