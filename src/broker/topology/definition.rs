//! Names and arguments of the exchanges and queues.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use lapin::types::{AMQPValue, FieldTable};
use tokio::sync::Notify;

use crate::{broker::amqp::long_string, config::BrokerSettings};

/// Redeliveries after which RabbitMQ dead-letters a request.
/// Ends a poison message that kills every worker it is delivered to.
const DELIVERY_LIMIT: i64 = 20;

/// Indexes of the queues: a queue is declared after the one that it dead-letters to.
const DEAD_QUEUE: usize = 0;
const REQUEST_QUEUE: usize = 1;
const FIRST_RETRY_QUEUE: usize = 2;

/// A queue and the arguments that it is declared with.
pub(super) struct QueueDeclaration {
    pub(super) name: String,
    pub(super) arguments: FieldTable,
}

impl QueueDeclaration {
    /// A quorum queue: durable, and replicated over the nodes of a cluster.
    fn quorum(
        name: String,
        arguments: impl IntoIterator<Item = (&'static str, AMQPValue)>,
    ) -> Self {
        let mut table = FieldTable::default();
        table.insert("x-queue-type".into(), long_string("quorum"));
        for (key, value) in arguments {
            table.insert(key.into(), value);
        }
        Self { name, arguments: table }
    }
}

/// A retry queue, apart from its declaration.
pub(super) struct Retry {
    /// How long messages wait in it.
    pub(super) delay: Duration,
    /// The copies that this worker has received from it.
    returned: AtomicU64,
}

impl Retry {
    pub(super) fn returned(&self) -> u64 {
        self.returned.load(Ordering::Relaxed)
    }
}

/// The exchanges and queues that a worker needs.
pub struct Topology {
    pub(super) declare: bool,
    pub(crate) request_exchange: String,
    pub(crate) event_exchange: String,
    /// The queues that requests need.
    pub(super) queues: Vec<QueueDeclaration>,
    /// The queue of endings. Requests are served without it, too.
    pub(super) ended: QueueDeclaration,
    /// Of each retry queue, in the same order.
    retries: Vec<Retry>,
    /// Whether it was declared or checked once.
    pub(super) ensured: AtomicBool,
    /// Notified when the queue of endings has messages and no consumer.
    pub(in crate::broker) ended_unconsumed: Notify,
}

impl Topology {
    /// Reads the names from the settings. Declares nothing.
    pub fn new(settings: &BrokerSettings) -> Self {
        let request_queue = &settings.queue;
        let dead_queue = format!("{request_queue}.dead");
        let limit = [("x-delivery-limit", AMQPValue::LongLongInt(DELIVERY_LIMIT))];
        let arguments = limit.into_iter().chain(dead_lettering_to(&dead_queue));
        let ended = QueueDeclaration::quorum(format!("{request_queue}.ended"), arguments.clone());
        let mut queues = vec![
            QueueDeclaration::quorum(dead_queue, []),
            QueueDeclaration::quorum(request_queue.clone(), arguments),
        ];
        for delay in &settings.retry_delays {
            // The settings limit a delay to 32 bits of milliseconds.
            let ttl = i64::try_from(delay.duration.as_millis()).unwrap_or(i64::MAX);
            // A TTL per queue: with a TTL per message, RabbitMQ expires only the message at the
            // head, so a short delay would wait behind a long one.
            let ttl = [("x-message-ttl", AMQPValue::LongLongInt(ttl))];
            queues.push(QueueDeclaration::quorum(
                format!("{request_queue}.retry.{}", delay.name),
                ttl.into_iter().chain(dead_lettering_to(request_queue)),
            ));
        }
        Self {
            declare: settings.declare,
            request_exchange: settings.request_exchange.clone(),
            event_exchange: settings.event_exchange.clone(),
            queues,
            ended,
            retries: settings
                .retry_delays
                .iter()
                .map(|delay| Retry { delay: delay.duration, returned: AtomicU64::new(0) })
                .collect(),
            ensured: AtomicBool::new(false),
            ended_unconsumed: Notify::new(),
        }
    }

    /// Each exchange, and the setting that names it.
    pub(super) fn exchanges(&self) -> [(&str, &'static str); 2] {
        [
            (&self.request_exchange, "HANDOFF_REQUEST_EXCHANGE"),
            (&self.event_exchange, "HANDOFF_EVENT_EXCHANGE"),
        ]
    }

    /// The retry queue after `attempts`, or `None` if no retry is left.
    pub(crate) fn retry_queue(&self, attempts: u32) -> Option<&str> {
        let index = usize::try_from(attempts).ok()?.checked_sub(1)?;
        self.retry_queues().nth(index)
    }

    /// The queue that keeps a message for most of `wait`, but not longer.
    pub(crate) fn queue_to_wait_in(&self, wait: Duration) -> &str {
        let queues = self.retries().filter(|(_, retry)| retry.delay <= wait);
        let found = queues.max_by_key(|(_, retry)| retry.delay);
        found.map_or(self.request_queue(), |(queue, _)| queue)
    }

    /// How long messages wait in a queue; `None` if it is no retry queue.
    pub(crate) fn delay_of(&self, queue: &str) -> Option<Duration> {
        self.retry(queue).map(|retry| retry.delay)
    }

    pub(crate) fn retry_queues(&self) -> impl Iterator<Item = &str> {
        self.queues[FIRST_RETRY_QUEUE..].iter().map(|queue| queue.name.as_str())
    }

    /// Counts a copy that is back from a queue, if it is a retry queue.
    pub(crate) fn copy_returned(&self, queue: &str) {
        if let Some(retry) = self.retry(queue) {
            retry.returned.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Each retry queue's name, and what belongs to it.
    pub(super) fn retries(&self) -> impl Iterator<Item = (&str, &Retry)> {
        self.retry_queues().zip(&self.retries)
    }

    fn retry(&self, queue: &str) -> Option<&Retry> {
        self.retries().find(|(name, _)| *name == queue).map(|(_, retry)| retry)
    }

    pub(crate) fn request_queue(&self) -> &str {
        &self.queues[REQUEST_QUEUE].name
    }

    pub(crate) fn dead_queue(&self) -> &str {
        &self.queues[DEAD_QUEUE].name
    }

    pub(crate) fn ended_queue(&self) -> &str {
        &self.ended.name
    }

    /// Every queue, after the one that it dead-letters to.
    pub(crate) fn all_queues(&self) -> impl Iterator<Item = &str> {
        self.queues.iter().chain([&self.ended]).map(|queue| queue.name.as_str())
    }

    /// The arguments of a queue, as JSON.
    pub(crate) fn arguments(&self, queue: &str) -> serde_json::Value {
        let queue = self.queues.iter().chain([&self.ended]).find(|one| one.name == queue);
        let arguments = queue.into_iter().flat_map(|queue| queue.arguments.inner());
        let json = arguments.map(|(name, value)| {
            let value = match value {
                AMQPValue::LongString(text) => text.to_string().into(),
                AMQPValue::LongLongInt(number) => (*number).into(),
                // No queue has an argument of another type.
                _ => serde_json::Value::Null,
            };
            (name.to_string(), value)
        });
        json.collect::<serde_json::Map<_, _>>().into()
    }
}

/// Dead-letters to a queue through the default exchange, at least once.
/// RabbitMQ removes a message only when the other queue has confirmed it. With the default
/// overflow, `drop-head`, RabbitMQ would fall back to at-most-once.
fn dead_lettering_to(
    queue: &str,
) -> impl Iterator<Item = (&'static str, AMQPValue)> + Clone + use<> {
    [
        ("x-dead-letter-exchange", long_string("")),
        ("x-dead-letter-routing-key", long_string(queue)),
        ("x-dead-letter-strategy", long_string("at-least-once")),
        ("x-overflow", long_string("reject-publish")),
    ]
    .into_iter()
}
