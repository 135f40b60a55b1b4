//! Metrics for Prometheus, under the names of the reference, section "Metrics".

use std::{
    fmt,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, prometheus_text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::Registry,
};

use crate::session::Call;

/// The `Content-Type` of what [`Metrics::encode`] writes.
pub const CONTENT_TYPE: &str = prometheus_text::CONTENT_TYPE;

/// From a cache hit on a fast network to a call that ran into its limit, in seconds.
const DURATIONS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];
/// The same for a request's whole way, which may lead through every retry queue, in seconds.
const END_TO_END: [f64; 15] = [
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 300.0, 1_800.0, 7_200.0, 21_600.0,
];

/// How a delivery ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are the reference's")]
pub enum Outcome {
    Ready,
    Reused,
    Failed,
    Retried,
}

impl Outcome {
    /// The outcome's name, in metrics and logs alike.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Reused => "reused",
            Self::Failed => "failed",
            Self::Retried => "retried",
        }
    }
}

impl EncodeLabelValue for Outcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        EncodeLabelValue::encode(&self.as_str(), encoder)
    }
}

impl EncodeLabelValue for Call {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        EncodeLabelValue::encode(&self.as_str(), encoder)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabel {
    call: Call,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallOutcomeLabel {
    call: Call,
    outcome: &'static str,
}

type Durations = Family<CallLabel, Histogram, fn() -> Histogram>;

/// Every metric of the process. Cheap to share, cheap to record.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<OutcomeLabel, Counter>,
    request_duration: Histogram,
    end_to_end: Histogram,
    in_flight: Gauge,
    platform_calls: Family<CallOutcomeLabel, Counter>,
    platform_call_duration: Durations,
    platform_paused: Gauge,
    cache_errors: Counter,
    broker_connected: Gauge,
}

impl Metrics {
    /// All metrics at zero.
    pub fn new() -> Arc<Self> {
        let mut metrics = Self {
            registry: Registry::default(),
            requests: Family::default(),
            request_duration: Histogram::new(DURATIONS),
            end_to_end: Histogram::new(END_TO_END),
            in_flight: Gauge::default(),
            platform_calls: Family::default(),
            platform_call_duration: Family::new_with_constructor(|| Histogram::new(DURATIONS)),
            platform_paused: Gauge::default(),
            cache_errors: Counter::<u64, AtomicU64>::default(),
            broker_connected: Gauge::default(),
        };
        metrics.register();
        // Series that exist from the start can be told from series that nobody counts.
        for outcome in [Outcome::Ready, Outcome::Reused, Outcome::Failed, Outcome::Retried] {
            let _ = metrics.requests.get_or_create(&OutcomeLabel { outcome });
        }
        for call in [Call::Token, Call::Session] {
            let label = CallOutcomeLabel { call, outcome: "ok" };
            let _ = metrics.platform_calls.get_or_create(&label);
            let _ = metrics.platform_call_duration.get_or_create(&CallLabel { call });
        }
        Arc::new(metrics)
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        // The encoder adds `_total` to counters and `_info` to infos, and a full stop to every help.
        registry.register(
            "handoff_requests",
            "Deliveries settled, by outcome",
            self.requests.clone(),
        );
        registry.register(
            "handoff_request_duration_seconds",
            "From taking a delivery to settling it",
            self.request_duration.clone(),
        );
        registry.register(
            "handoff_end_to_end_seconds",
            "From a request's AMQP timestamp to its confirmed event",
            self.end_to_end.clone(),
        );
        registry.register(
            "handoff_in_flight",
            "Deliveries being worked on",
            self.in_flight.clone(),
        );
        registry.register(
            "handoff_platform_calls",
            "Calls to the platform, by outcome",
            self.platform_calls.clone(),
        );
        registry.register(
            "handoff_platform_call_duration_seconds",
            "Duration of calls to the platform",
            self.platform_call_duration.clone(),
        );
        registry.register(
            "handoff_platform_paused",
            "1 while calls to the platform are held back",
            self.platform_paused.clone(),
        );
        registry.register(
            "handoff_cache_errors",
            "Redis operations that failed and were done without",
            self.cache_errors.clone(),
        );
        registry.register(
            "handoff_broker_connected",
            "1 while consuming from RabbitMQ",
            self.broker_connected.clone(),
        );
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("handoff_build", "The running version", build);
    }

    /// A delivery was taken; the guard's end says that it is settled or gone.
    pub fn in_flight(&self) -> InFlight {
        self.in_flight.inc();
        InFlight(self.in_flight.clone())
    }

    /// A delivery was settled.
    pub fn settled(&self, outcome: Outcome, duration: Duration) {
        self.requests.get_or_create(&OutcomeLabel { outcome }).inc();
        self.request_duration.observe(duration.as_secs_f64());
    }

    /// An event was confirmed, this long after its request was published.
    pub fn told(&self, end_to_end: Duration) {
        self.end_to_end.observe(end_to_end.as_secs_f64());
    }

    /// A platform call ended. `outcome` comes from a fixed set.
    pub fn called(&self, call: Call, outcome: &'static str, duration: Duration) {
        self.platform_calls.get_or_create(&CallOutcomeLabel { call, outcome }).inc();
        let label = CallLabel { call };
        self.platform_call_duration.get_or_create(&label).observe(duration.as_secs_f64());
    }

    /// A Redis operation failed and was done without.
    pub fn cache_failed(&self) {
        self.cache_errors.inc();
    }

    /// Consuming, or not.
    pub fn broker_connected(&self, connected: bool) {
        self.broker_connected.set(i64::from(connected));
    }

    /// Platform calls are held back, or not.
    pub fn platform_paused(&self, paused: bool) {
        self.platform_paused.set(i64::from(paused));
    }

    /// All metrics in the Prometheus text format.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail; an encoder that refuses would leave the text cut short.
        let _ = prometheus_text::encode(&mut text, &self.registry);
        text
    }
}

/// Counts one delivery for as long as it lives.
#[derive(Debug)]
pub struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_written_as_prometheus_text() {
        let metrics = Metrics::new();
        metrics.settled(Outcome::Reused, Duration::from_millis(3));
        metrics.called(Call::Session, "timeout", Duration::from_secs(10));
        let guard = metrics.in_flight();
        let text = metrics.encode();
        for line in [
            "# TYPE handoff_requests_total counter",
            "handoff_requests_total{outcome=\"reused\"} 1",
            "handoff_requests_total{outcome=\"ready\"} 0",
            "handoff_request_duration_seconds_bucket{le=\"0.005\"} 1",
            "handoff_platform_calls_total{call=\"session\",outcome=\"timeout\"} 1",
            "handoff_cache_errors_total 0",
            "handoff_in_flight 1",
            concat!("handoff_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        drop(guard);
        assert!(metrics.encode().contains("handoff_in_flight 0"));
    }
}
