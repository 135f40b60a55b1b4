//! Metrics of deliveries.

use std::time::Duration;

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use super::{
    DURATIONS, Metrics,
    labels::{Outcome, OutcomeLabel, resolved},
};

/// Buckets in seconds, from a reused link to a request that went through every retry queue.
const END_TO_END: [f64; 15] = [
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 300.0, 1_800.0, 7_200.0, 21_600.0,
];

#[derive(Debug)]
pub(super) struct Requests {
    outcomes: [Counter; 4],
    duration: Histogram,
    end_to_end: Histogram,
    in_flight: Gauge,
}

impl Requests {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let family = Family::<OutcomeLabel, Counter>::default();
        let labels = Outcome::ALL.map(|outcome| OutcomeLabel { outcome: outcome.as_str() });
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
}

impl Metrics {
    /// Counts a delivery as in flight until the guard is dropped.
    pub(crate) fn in_flight(&self) -> InFlight {
        self.requests.in_flight.inc();
        InFlight(self.requests.in_flight.clone())
    }

    /// Counts a settled delivery.
    pub(crate) fn settled(&self, outcome: Outcome, duration: Duration) {
        self.requests.outcomes[outcome as usize].inc();
        self.requests.duration.observe(duration.as_secs_f64());
    }

    /// Records the time from publishing a request to its confirmed event.
    pub(crate) fn event_confirmed(&self, end_to_end: Duration) {
        self.requests.end_to_end.observe(end_to_end.as_secs_f64());
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
