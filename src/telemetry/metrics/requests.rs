//! Metrics of deliveries.

use std::time::Duration;

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use super::{
    buckets::{DURATIONS, END_TO_END},
    labels::{Labels, Outcome, resolved},
};

#[derive(Debug)]
pub(crate) struct RequestMetrics {
    outcomes: [Counter; 4],
    duration: Histogram,
    end_to_end: Histogram,
    in_flight: Gauge,
}

impl RequestMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let family = Family::<Labels<1>, Counter>::default();
        let labels = Outcome::ALL.map(|outcome| [("outcome", outcome.as_str())]);
        let requests = Self {
            outcomes: resolved(&family, labels),
            duration: Histogram::new(DURATIONS),
            end_to_end: Histogram::new(END_TO_END),
            in_flight: Gauge::default(),
        };
        registry.register("handoff_requests", "Deliveries settled, by outcome", family);
        registry.register(
            "handoff_request_duration_seconds",
            "Time from receiving a delivery to settling it",
            requests.duration.clone(),
        );
        registry.register(
            "handoff_end_to_end_seconds",
            "Time from the AMQP timestamp of a request to its confirmed event",
            requests.end_to_end.clone(),
        );
        registry.register(
            "handoff_in_flight",
            "Deliveries being processed",
            requests.in_flight.clone(),
        );
        requests
    }

    /// Counts a delivery as in flight until the guard is dropped.
    pub(crate) fn in_flight(&self) -> InFlight {
        self.in_flight.inc();
        InFlight(self.in_flight.clone())
    }

    /// Counts a settled delivery.
    pub(crate) fn settled(&self, outcome: Outcome, duration: Duration) {
        self.outcomes[outcome as usize].inc();
        self.duration.observe(duration.as_secs_f64());
    }

    /// Records the time from publishing a request to its confirmed event.
    pub(crate) fn event_confirmed(&self, end_to_end: Duration) {
        self.end_to_end.observe(end_to_end.as_secs_f64());
    }
}

/// Counts a delivery as in flight until it is dropped.
#[derive(Debug)]
pub(crate) struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}
