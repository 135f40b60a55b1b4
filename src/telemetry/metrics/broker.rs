//! Metrics of the connection to RabbitMQ.

use std::time::Duration;

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use super::{
    labels::PublishKind,
    register::{Labels, durations, register, series},
};

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
        let help = "Messages published, repeats included, by kind and outcome";
        let publishes = register(registry, "handoff_publishes", help, Family::default());
        let confirmed = PublishKind::ALL.map(|kind| labels(kind, "confirmed"));
        let confirmed = series(&publishes, confirmed);
        let help = "Time from publishing a message to its confirm or failure";
        let confirm_time = register(registry, "handoff_publish_confirm_seconds", help, durations());
        let help = "1 while the worker consumes from RabbitMQ";
        let connected = register(registry, "handoff_broker_connected", help, Gauge::default());
        let help = "Connections to RabbitMQ after the first";
        let reconnects = register(registry, "handoff_broker_reconnects", help, Counter::default());
        Self { publishes, confirmed, confirm_time, connected, reconnects }
    }

    /// Counts a publish. `fault` is the `outcome` of a failed one, out of a fixed set.
    pub(crate) fn published(&self, kind: PublishKind, fault: Option<&'static str>, took: Duration) {
        if let Some(outcome) = fault {
            self.publishes.get_or_create(&labels(kind, outcome)).inc();
        } else {
            self.confirmed[kind as usize].inc();
        }
        self.confirm_time.observe(took.as_secs_f64());
    }

    /// Records whether the worker consumes.
    pub(crate) fn set_connected(&self, connected: bool) {
        self.connected.set(i64::from(connected));
    }

    pub(crate) fn reconnected(&self) {
        self.reconnects.inc();
    }
}

fn labels(kind: PublishKind, outcome: &'static str) -> Labels<2> {
    [("kind", kind.as_str()), ("outcome", outcome)]
}
