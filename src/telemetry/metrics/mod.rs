//! Prometheus metrics; `docs/reference/metrics-and-logs.md` lists them.
//!
//! Recording one costs an atomic addition or two: the series of common outcomes are looked up once,
//! at start-up.

mod broker;
mod cache;
mod endings;
mod labels;
mod platform;
mod process;
mod queues;
mod register;
mod requests;

use std::sync::Arc;

use prometheus_client::{encoding::prometheus_text, metrics::info::Info, registry::Registry};

use self::{
    broker::BrokerMetrics, cache::CacheMetrics, endings::EndingMetrics, platform::PlatformMetrics,
    process::ProcessCollector, queues::QueueMetrics, requests::RequestMetrics,
};
pub(crate) use self::{
    labels::{EndingOutcome, Lookup, Outcome, PublishKind},
    platform::{PausedFor, ProbePermit},
    queues::QueueDepths,
};

/// The `Content-Type` of [`Metrics::encode`].
pub(crate) const CONTENT_TYPE: &str = prometheus_text::CONTENT_TYPE;

/// All metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    pub(crate) requests: RequestMetrics,
    pub(crate) endings: EndingMetrics,
    pub(crate) platform: PlatformMetrics,
    pub(crate) cache: CacheMetrics,
    pub(crate) broker: BrokerMetrics,
    pub(crate) queues: QueueMetrics,
}

impl Metrics {
    /// Registers all metrics, at zero: a missing series then means a fault, not that nothing happened.
    pub fn new() -> Arc<Self> {
        // The encoder appends `_total` to counters, `_info` to infos, and a full stop to each help.
        let mut registry = Registry::default();
        let requests = RequestMetrics::register(&mut registry);
        let endings = EndingMetrics::register(&mut registry);
        let platform = PlatformMetrics::register(&mut registry);
        let cache = CacheMetrics::register(&mut registry);
        let broker = BrokerMetrics::register(&mut registry);
        let queues = QueueMetrics::register(&mut registry);
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("handoff_build", "The running version", build);
        registry.register_collector(Box::new(ProcessCollector));
        Arc::new(Self { registry, requests, endings, platform, cache, broker, queues })
    }

    /// Writes all metrics in the Prometheus text format.
    pub(crate) fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a `String` cannot fail. If an encoder did, the page would end early.
        let _ = prometheus_text::encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::session::Call;

    #[test]
    fn metrics_are_written_as_prometheus_text() {
        let metrics = Metrics::new();
        metrics.requests.settled(Outcome::Reused, Duration::from_millis(3));
        metrics.platform.called(Call::Session, "timeout", Duration::from_secs(10));
        metrics.platform.called(Call::Session, "ok", Duration::from_millis(10));
        metrics.platform.retried(Call::Session, "timeout");
        metrics.cache.looked_up(Lookup::Miss);
        metrics.broker.published(PublishKind::DeadLetter, None, Duration::from_millis(2));
        metrics.broker.published(PublishKind::Ready, Some("unroutable"), Duration::from_millis(2));
        let total = PausedFor { refused: Duration::from_millis(1_500), ..PausedFor::default() };
        metrics.platform.set_paused(true, total);
        let guard = metrics.requests.in_flight();
        let text = metrics.encode();
        for line in [
            "# TYPE handoff_requests_total counter",
            "handoff_requests_total{outcome=\"reused\"} 1",
            "handoff_requests_total{outcome=\"ready\"} 0",
            "handoff_endings_total{outcome=\"kept\"} 0",
            "handoff_request_duration_seconds_bucket{le=\"0.005\"} 1",
            "handoff_platform_calls_total{call=\"session\",outcome=\"timeout\"} 1",
            "handoff_platform_calls_total{call=\"session\",outcome=\"ok\"} 1",
            "handoff_platform_call_duration_seconds_count{call=\"session\"} 2",
            "handoff_platform_call_duration_seconds_count{call=\"token\"} 0",
            "handoff_platform_retries_total{call=\"session\",reason=\"timeout\"} 1",
            "handoff_platform_paused 1",
            "handoff_platform_paused_seconds_total{reason=\"refused\"} 1.5",
            "handoff_cache_lookups_total{result=\"miss\"} 1",
            "handoff_cache_lookups_total{result=\"hit\"} 0",
            "handoff_publishes_total{kind=\"dead_letter\",outcome=\"confirmed\"} 1",
            "handoff_publishes_total{kind=\"ready\",outcome=\"unroutable\"} 1",
            "handoff_publish_confirm_seconds_count 2",
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
