//! Registers metrics. Series of common outcomes are created at once, so that recording one costs an
//! atomic addition instead of a lookup under a lock.

use prometheus_client::{
    metrics::{
        counter::Counter,
        family::{Family, MetricConstructor},
        histogram::Histogram,
    },
    registry::{Metric, Registry},
};

/// The name and the value of each label.
pub(super) type Labels<const N: usize> = [(&'static str, &'static str); N];

/// Buckets in seconds, from a cache hit to a call that timed out.
const DURATIONS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];

/// A histogram of durations within a delivery.
pub(super) fn durations() -> Histogram {
    Histogram::new(DURATIONS)
}

pub(super) fn register<M: Metric + Clone>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    metric: M,
) -> M {
    registry.register(name, help, metric.clone());
    metric
}

/// Creates the series with these labels, at zero.
pub(super) fn series<M: Clone, C: MetricConstructor<M>, const L: usize, const N: usize>(
    family: &Family<Labels<L>, M, C>,
    labels: [Labels<L>; N],
) -> [M; N] {
    labels.map(|labels| family.get_or_create_owned(&labels))
}

/// Registers counters of a fixed set of labels.
pub(super) fn counters<const L: usize, const N: usize>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    labels: [Labels<L>; N],
) -> [Counter; N] {
    series(&register(registry, name, help, Family::default()), labels)
}
