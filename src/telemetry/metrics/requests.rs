//! Metrics of deliveries.

use std::time::Duration;

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use super::{
    labels::Outcome,
    register::{counters, durations, register},
};

/// Buckets in seconds, from a reused link to a request that went through every retry queue.
const END_TO_END: [f64; 15] = [
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 300.0, 1_800.0, 7_200.0, 21_600.0,
];

/// Buckets in seconds. A retry queue is on time to the second; then, the copy waits for a worker.
const LATENESS: [f64; 8] = [0.1, 1.0, 5.0, 10.0, 60.0, 300.0, 1_800.0, 21_600.0];

#[derive(Debug)]
pub(crate) struct RequestMetrics {
    outcomes: [Counter; 4],
    duration: Histogram,
    end_to_end: Histogram,
    retry_lateness: Histogram,
    in_flight: Gauge,
}

impl RequestMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let outcomes = Outcome::ALL.map(|outcome| [("outcome", outcome.as_str())]);
        let help = "Deliveries settled, by outcome";
        let outcomes = counters(registry, "handoff_requests", help, outcomes);
        let help = "Time from receiving a delivery to settling it";
        let duration = register(registry, "handoff_request_duration_seconds", help, durations());
        let end_to_end = Histogram::new(END_TO_END);
        let help = "Time from the AMQP timestamp of a request to its confirmed event";
        let end_to_end = register(registry, "handoff_end_to_end_seconds", help, end_to_end);
        let help = "How late copies are back from a retry queue";
        let lateness = Histogram::new(LATENESS);
        let retry_lateness = register(registry, "handoff_retry_late_seconds", help, lateness);
        let help = "Deliveries being processed";
        let in_flight = register(registry, "handoff_in_flight", help, Gauge::default());
        Self { outcomes, duration, end_to_end, retry_lateness, in_flight }
    }

    /// Counts a delivery as in flight until the guard is dropped.
    pub(crate) fn in_flight(&self) -> InFlightGuard {
        self.in_flight.inc();
        InFlightGuard(self.in_flight.clone())
    }

    /// Counts a settled delivery.
    pub(crate) fn settled(&self, outcome: Outcome, duration: Duration) {
        self.outcomes[outcome as usize].inc();
        self.duration.observe(duration.as_secs_f64());
    }

    /// Records how late a copy is back from its retry queue.
    pub(crate) fn retry_returned(&self, late: Duration) {
        self.retry_lateness.observe(late.as_secs_f64());
    }

    /// Records the time from publishing a request to its confirmed event.
    pub(crate) fn event_confirmed(&self, end_to_end: Duration) {
        self.end_to_end.observe(end_to_end.as_secs_f64());
    }
}

/// Counts a delivery as in flight until it is dropped.
#[derive(Debug)]
pub(crate) struct InFlightGuard(Gauge);

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}
