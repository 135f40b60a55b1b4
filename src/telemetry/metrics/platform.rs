//! What is counted of the platform: its calls, their repeats, and the time without.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use super::{
    DURATIONS, Metrics,
    labels::{CallLabel, CallOutcomeLabel, CallReasonLabel, ReasonLabel, resolved},
};
use crate::session::Call;

const CALLS: [Call; 2] = [Call::Token, Call::Session];

type Seconds = Counter<f64, AtomicU64>;

#[derive(Debug)]
pub(super) struct Platform {
    calls: Family<CallOutcomeLabel, Counter>,
    /// The usual outcome, by call.
    good: [Counter; 2],
    durations: [Histogram; 2],
    retries: Family<CallReasonLabel, Counter>,
    rate_wait: Histogram,
    paused: Gauge,
    paused_for: [Seconds; 3],
}

/// For how long calls were held back, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PausedFor {
    /// The platform fails for everyone.
    pub down: Duration,
    /// It gives no tokens.
    pub refused: Duration,
    /// It asks to be left alone.
    pub asked: Duration,
}

impl Platform {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let calls = Family::<CallOutcomeLabel, Counter>::default();
        let good = CALLS.map(|call| CallOutcomeLabel { call: call.as_str(), outcome: "ok" });
        let durations: Family<CallLabel, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(|| Histogram::new(DURATIONS));
        let paused_for = Family::<ReasonLabel, Seconds>::default();
        let platform = Self {
            good: resolved(&calls, good),
            durations: CALLS
                .map(|call| durations.get_or_create_owned(&CallLabel { call: call.as_str() })),
            calls: calls.clone(),
            retries: Family::default(),
            rate_wait: Histogram::new(DURATIONS),
            paused: Gauge::default(),
            paused_for: ["down", "refused", "asked_to_wait"]
                .map(|reason| paused_for.get_or_create_owned(&ReasonLabel { reason })),
        };
        registry.register("handoff_platform_calls", "Calls to the platform, by outcome", calls);
        registry.register(
            "handoff_platform_call_duration_seconds",
            "Duration of calls to the platform",
            durations,
        );
        registry.register(
            "handoff_platform_retries",
            "Calls to the platform repeated within one delivery, by what the last one met",
            platform.retries.clone(),
        );
        registry.register(
            "handoff_rate_limit_wait_seconds",
            "Time that calls waited for leave from the shared rate limit",
            platform.rate_wait.clone(),
        );
        registry.register(
            "handoff_platform_paused",
            "1 while calls to the platform are held back",
            platform.paused.clone(),
        );
        registry.register(
            "handoff_platform_paused_seconds",
            "Time during which calls to the platform were held back, by reason",
            paused_for,
        );
        platform
    }
}

impl Metrics {
    /// A platform call ended. `outcome` comes from a fixed set.
    pub fn called(&self, call: Call, outcome: &'static str, duration: Duration) {
        let platform = &self.platform;
        if outcome == "ok" {
            platform.good[call as usize].inc();
        } else {
            let label = CallOutcomeLabel { call: call.as_str(), outcome };
            platform.calls.get_or_create(&label).inc();
        }
        platform.durations[call as usize].observe(duration.as_secs_f64());
    }

    /// A platform call is repeated, after it met `reason`, which comes from a fixed set.
    pub fn retried(&self, call: Call, reason: &'static str) {
        let label = CallReasonLabel { call: call.as_str(), reason };
        self.platform.retries.get_or_create(&label).inc();
    }

    /// A call had leave from the shared limit, after so long.
    pub fn rate_waited(&self, wait: Duration) {
        self.platform.rate_wait.observe(wait.as_secs_f64());
    }

    /// Platform calls are held back, or not, and were for so long in all.
    pub fn platform_paused(&self, paused: bool, so_far: PausedFor) {
        self.platform.paused.set(i64::from(paused));
        let so_far = [so_far.down, so_far.refused, so_far.asked];
        for (counter, so_far) in self.platform.paused_for.iter().zip(so_far) {
            counter.inner().store(so_far.as_secs_f64().to_bits(), Ordering::Relaxed);
        }
    }
}
