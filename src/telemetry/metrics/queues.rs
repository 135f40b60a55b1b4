//! Depths of the queues, as the worker last saw them; absent without a recent look.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, gauge::ConstGauge},
    registry::Registry,
};
use tokio::time::Instant;

/// An older look is not exported: a stale depth looks like a queue that does not move.
const MAX_AGE: Duration = Duration::from_secs(15);

/// What one look at the queues found. `None`: that queue could not be seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct QueueDepths {
    pub(crate) request: Option<u32>,
    /// The sum over the retry queues.
    pub(crate) retry: Option<u32>,
    pub(crate) ended: Option<u32>,
    pub(crate) dead: Option<u32>,
    /// Consumers of the request queue.
    pub(crate) consumers: Option<u32>,
    /// The retry queues whose messages do not leave.
    pub(crate) stuck: usize,
}

/// The last look at the queues.
#[derive(Clone, Debug, Default)]
pub(crate) struct QueueMetrics(Arc<Mutex<Option<(Instant, QueueDepths)>>>);

impl QueueMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register_collector(Box::new(metrics.clone()));
        metrics
    }

    pub(crate) fn set(&self, depths: QueueDepths) {
        *self.0.lock() = Some((Instant::now(), depths));
    }

    /// Removes the series: the worker is not connected.
    pub(crate) fn clear(&self) {
        *self.0.lock() = None;
    }

    fn recent(&self) -> Option<QueueDepths> {
        let look = *self.0.lock();
        look.filter(|(at, _)| at.elapsed() <= MAX_AGE).map(|(_, depths)| depths)
    }
}

impl Collector for QueueMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let Some(QueueDepths { request, retry, ended, dead, consumers, stuck }) = self.recent()
        else {
            return Ok(());
        };
        let help = "Retry queues that keep messages after their time.";
        let stuck = ConstGauge::new(u64::try_from(stuck).unwrap_or(u64::MAX));
        let name = "handoff_retry_queues_stuck";
        stuck.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        let mut gauge = |name, help, series: &[(&'static str, Option<u32>)]| {
            if series.iter().all(|(_, value)| value.is_none()) {
                return Ok(());
            }
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (queue, value) in series {
                if let Some(value) = value {
                    let gauge = ConstGauge::new(u64::from(*value));
                    gauge.encode(family.encode_family(&[("queue", *queue)])?)?;
                }
            }
            Ok(())
        };
        gauge(
            "handoff_queue_messages",
            "Messages ready in RabbitMQ; the retry queues together.",
            &[("request", request), ("retry", retry), ("ended", ended), ("dead", dead)],
        )?;
        gauge(
            "handoff_queue_consumers",
            "Consumers of the queue, of all replicas together.",
            &[("request", consumers)],
        )
    }
}
