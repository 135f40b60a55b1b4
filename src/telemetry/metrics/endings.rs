//! Metrics of endings.

use prometheus_client::{metrics::counter::Counter, registry::Registry};

use super::{labels::EndingOutcome, register::counters};

#[derive(Debug)]
pub(crate) struct EndingMetrics([Counter; 4]);

impl EndingMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let outcomes = EndingOutcome::ALL.map(|outcome| [("outcome", outcome.as_str())]);
        let help = "Ends of verifications, by what became of the link";
        Self(counters(registry, "handoff_endings", help, outcomes))
    }

    /// Counts an ending, at its end.
    pub(crate) fn settled(&self, outcome: EndingOutcome) {
        self.0[outcome as usize].inc();
    }
}
