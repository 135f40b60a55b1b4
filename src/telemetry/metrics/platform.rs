//! Metrics of calls to the platform, their retries, and pauses.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use super::register::{Labels, durations, register, series};
use crate::session::Call;

const CALLS: [Call; 3] = [Call::Token, Call::Session, Call::Deeplink];

type Seconds = Counter<f64, AtomicU64>;

#[derive(Debug)]
pub(crate) struct PlatformMetrics {
    calls: Family<Labels<2>, Counter>,
    /// The counters of `outcome="ok"`, by call.
    ok: [Counter; 3],
    durations: [Histogram; 3],
    retries: Family<Labels<2>, Counter>,
    rate_wait: Histogram,
    /// By [`ProbePermit`].
    probe_permits: [Counter; 3],
    paused: Gauge,
    paused_for: [Seconds; 3],
}

/// What became of a request for a permit to probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProbePermit {
    Granted,
    Denied,
    /// The replica probes by itself.
    Unavailable,
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
        let help = "Calls to the platform, by outcome";
        let calls = register(registry, "handoff_platform_calls", help, Family::default());
        let ok = series(&calls, CALLS.map(|call| [("call", call.as_str()), ("outcome", "ok")]));
        let by_call =
            Family::<Labels<1>, Histogram, fn() -> Histogram>::new_with_constructor(durations);
        let help = "Duration of calls to the platform";
        let by_call = register(registry, "handoff_platform_call_duration_seconds", help, by_call);
        let durations_by_call = series(&by_call, CALLS.map(|call| [("call", call.as_str())]));
        let help = "Calls to the platform repeated within a delivery, by the failure before";
        let retries = register(registry, "handoff_platform_retries", help, Family::default());
        let help = "Time that calls waited for a permit of the shared rate limit";
        let rate_wait = register(registry, "handoff_rate_limit_wait_seconds", help, durations());
        let help = "Requests for a permit to probe, which replicas share, by result";
        let family = Family::<Labels<1>, Counter>::default();
        let family = register(registry, "handoff_probe_permits", help, family);
        let results = ["granted", "denied", "unavailable"].map(|result| [("result", result)]);
        let probe_permits = series(&family, results);
        let help = "1 while calls to the platform are paused";
        let paused = register(registry, "handoff_platform_paused", help, Gauge::default());
        let help = "Time that calls to the platform were paused, by reason";
        let family = Family::<Labels<1>, Seconds>::default();
        let family = register(registry, "handoff_platform_paused_seconds", help, family);
        let reasons = ["down", "refused", "asked_to_wait"].map(|reason| [("reason", reason)]);
        let paused_for = series(&family, reasons);
        Self {
            calls,
            ok,
            durations: durations_by_call,
            retries,
            rate_wait,
            probe_permits,
            paused,
            paused_for,
        }
    }

    /// Counts a finished call. `outcome` is one of a fixed set.
    pub(crate) fn called(&self, call: Call, outcome: &'static str, duration: Duration) {
        if outcome == "ok" {
            self.ok[call as usize].inc();
        } else {
            self.calls.get_or_create(&[("call", call.as_str()), ("outcome", outcome)]).inc();
        }
        self.durations[call as usize].observe(duration.as_secs_f64());
    }

    /// Counts a retry within a delivery. `reason` is one of a fixed set.
    pub(crate) fn retried(&self, call: Call, reason: &'static str) {
        self.retries.get_or_create(&[("call", call.as_str()), ("reason", reason)]).inc();
    }

    /// Records how long a call waited for a permit of the shared rate limit.
    pub(crate) fn rate_waited(&self, wait: Duration) {
        self.rate_wait.observe(wait.as_secs_f64());
    }

    /// Counts a request for a permit to probe.
    pub(crate) fn probe_permit(&self, result: ProbePermit) {
        self.probe_permits[result as usize].inc();
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
