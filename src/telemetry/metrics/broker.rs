//! Metrics of the connection to RabbitMQ.

use std::time::Duration;

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use super::{
    buckets::DURATIONS,
    labels::{Labels, PublishKind, resolved},
};

/// The `outcome` of a publish that RabbitMQ confirmed.
const CONFIRMED: &str = "confirmed";

#[derive(Debug)]
pub(crate) struct BrokerMetrics {
    publishes: Family<Labels<2>, Counter>,
    /// The counters of `outcome="confirmed"`, by kind.
    confirmed: [Counter; 5],
    confirm_time: Histogram,
    connected: Gauge,
    reconnects: Counter,
}

impl BrokerMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let publishes = Family::<Labels<2>, Counter>::default();
        let confirmed =
            PublishKind::ALL.map(|kind| [("kind", kind.as_str()), ("outcome", CONFIRMED)]);
        let broker = Self {
            confirmed: resolved(&publishes, confirmed),
            publishes: publishes.clone(),
            confirm_time: Histogram::new(DURATIONS),
            connected: Gauge::default(),
            reconnects: Counter::default(),
        };
        registry.register(
            "handoff_publishes",
            "Messages published, repeats included, by kind and outcome",
            publishes,
        );
        registry.register(
            "handoff_publish_confirm_seconds",
            "Time from publishing a message to its confirm or failure",
            broker.confirm_time.clone(),
        );
        registry.register(
            "handoff_broker_connected",
            "1 while the worker consumes from RabbitMQ",
            broker.connected.clone(),
        );
        registry.register(
            "handoff_broker_reconnects",
            "Connections to RabbitMQ after the first",
            broker.reconnects.clone(),
        );
        broker
    }

    /// Counts a publish. `fault` is the `outcome` of a failed one, out of a fixed set.
    pub(crate) fn published(&self, kind: PublishKind, fault: Option<&'static str>, took: Duration) {
        match fault {
            None => {
                self.confirmed[kind as usize].inc();
            }
            Some(outcome) => {
                let labels = [("kind", kind.as_str()), ("outcome", outcome)];
                self.publishes.get_or_create(&labels).inc();
            }
        }
        self.confirm_time.observe(took.as_secs_f64());
    }

    /// Records whether the worker consumes.
    pub(crate) fn set_connected(&self, connected: bool) {
        self.connected.set(i64::from(connected));
    }

    /// Counts a connection to RabbitMQ after the first.
    pub(crate) fn reconnected(&self) {
        self.reconnects.inc();
    }
}
