//! Metrics for Prometheus, under the names of the reference, section "Metrics".
//!
//! Recording one is an atomic addition or two: the series of everyday outcomes are found when the
//! worker starts, not with each event.

mod broker;
mod cache;
mod labels;
mod platform;
mod process;
mod requests;

use std::sync::Arc;

use prometheus_client::{encoding::prometheus_text, metrics::info::Info, registry::Registry};

pub use self::{
    labels::{Lookup, Outcome, PublishKind},
    platform::PausedFor,
    requests::InFlight,
};

/// The `Content-Type` of what [`Metrics::encode`] writes.
pub const CONTENT_TYPE: &str = prometheus_text::CONTENT_TYPE;

/// From a cache hit on a fast network to a call that ran into its limit, in seconds.
const DURATIONS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];

/// Every metric of the process. Cheap to share, cheap to record.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: requests::Requests,
    platform: platform::Platform,
    cache: cache::Cache,
    broker: broker::Broker,
}

impl Metrics {
    /// All metrics at zero. Series that exist from the start can be told from series that nobody
    /// counts.
    pub fn new() -> Arc<Self> {
        // The encoder adds `_total` to counters and `_info` to infos, and a full stop to every help.
        let mut registry = Registry::default();
        let requests = requests::Requests::register(&mut registry);
        let platform = platform::Platform::register(&mut registry);
        let cache = cache::Cache::register(&mut registry);
        let broker = broker::Broker::register(&mut registry);
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("handoff_build", "The running version", build);
        registry.register_collector(Box::new(process::Process));
        Arc::new(Self { registry, requests, platform, cache, broker })
    }

    /// All metrics in the Prometheus text format.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail; an encoder that refuses would leave the text cut short.
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
        metrics.settled(Outcome::Reused, Duration::from_millis(3));
        metrics.called(Call::Session, "timeout", Duration::from_secs(10));
        metrics.called(Call::Session, "ok", Duration::from_millis(10));
        metrics.retried(Call::Session, "timeout");
        metrics.looked_up(Lookup::Miss);
        metrics.published(PublishKind::DeadLetter, None, Duration::from_millis(2));
        metrics.published(PublishKind::Ready, Some("unroutable"), Duration::from_millis(2));
        let so_far = PausedFor { refused: Duration::from_millis(1_500), ..PausedFor::default() };
        metrics.platform_paused(true, so_far);
        let guard = metrics.in_flight();
        let text = metrics.encode();
        for line in [
            "# TYPE handoff_requests_total counter",
            "handoff_requests_total{outcome=\"reused\"} 1",
            "handoff_requests_total{outcome=\"ready\"} 0",
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
