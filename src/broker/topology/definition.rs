//! Names and arguments of the exchanges and queues.

use lapin::types::{AMQPValue, FieldTable};

use crate::{broker::values::long_string, config::BrokerSettings};

/// Redeliveries after which RabbitMQ dead-letters a request.
///
/// Ends a poison message that kills every worker it is delivered to.
const DELIVERY_LIMIT: i64 = 20;

/// Index of the request queue, which is declared after the dead queue it names.
const REQUEST_QUEUE: usize = 1;

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

/// An exchange, and the setting that names it.
pub(super) struct ExchangeDeclaration {
    pub(super) name: String,
    pub(super) setting: &'static str,
}

/// The exchanges and queues that a worker needs.
pub struct Topology {
    pub(super) declare: bool,
    pub(super) exchanges: [ExchangeDeclaration; 2],
    pub(super) queues: Vec<QueueDeclaration>,
    retry_queues: Vec<String>,
    dead_queue: String,
}

impl Topology {
    /// Reads the names from the settings. Declares nothing.
    pub fn new(settings: &BrokerSettings) -> Self {
        let request_queue = settings.queue.clone();
        let dead_queue = format!("{request_queue}.dead");
        let mut queues = vec![
            QueueDeclaration::quorum(dead_queue.clone(), []),
            QueueDeclaration::quorum(
                request_queue.clone(),
                [("x-delivery-limit", AMQPValue::LongLongInt(DELIVERY_LIMIT))]
                    .into_iter()
                    .chain(dead_lettering_to(&dead_queue)),
            ),
        ];
        let mut retry_queues = Vec::new();
        for delay in &settings.retry_delays {
            let name = format!("{request_queue}.retry.{}", delay.name());
            // The settings limit a delay to 32 bits of milliseconds.
            let ttl = i64::try_from(delay.duration().as_millis()).unwrap_or(i64::MAX);
            // A TTL per queue: with a TTL per message, RabbitMQ expires only the message at the
            // head, so a short delay would wait behind a long one.
            let ttl = [("x-message-ttl", AMQPValue::LongLongInt(ttl))];
            queues.push(QueueDeclaration::quorum(
                name.clone(),
                ttl.into_iter().chain(dead_lettering_to(&request_queue)),
            ));
            retry_queues.push(name);
        }
        let exchanges = [
            ExchangeDeclaration {
                name: settings.request_exchange.clone(),
                setting: "HANDOFF_REQUEST_EXCHANGE",
            },
            ExchangeDeclaration {
                name: settings.event_exchange.clone(),
                setting: "HANDOFF_EVENT_EXCHANGE",
            },
        ];
        Self { declare: settings.declare, exchanges, queues, retry_queues, dead_queue }
    }

    /// The retry queue after `attempts`, or `None` if no retry is left.
    pub(crate) fn retry_queue(&self, attempts: u32) -> Option<&str> {
        let index = usize::try_from(attempts).ok()?.checked_sub(1)?;
        self.retry_queues.get(index).map(String::as_str)
    }

    pub(crate) fn request_queue(&self) -> &str {
        &self.queues[REQUEST_QUEUE].name
    }

    pub(crate) fn dead_queue(&self) -> &str {
        &self.dead_queue
    }

    pub(crate) fn request_exchange(&self) -> &str {
        &self.exchanges[0].name
    }

    pub(crate) fn event_exchange(&self) -> &str {
        &self.exchanges[1].name
    }

    pub(crate) fn retry_queues(&self) -> &[String] {
        &self.retry_queues
    }

    /// The arguments of a queue, as JSON.
    pub(crate) fn arguments(&self, queue: &str) -> serde_json::Value {
        let queue = self.queues.iter().find(|one| one.name == queue);
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
///
/// RabbitMQ removes a message only when the other queue has confirmed it. With the default
/// overflow, `drop-head`, RabbitMQ would fall back to at-most-once.
fn dead_lettering_to(queue: &str) -> impl Iterator<Item = (&'static str, AMQPValue)> + use<> {
    [
        ("x-dead-letter-exchange", long_string("")),
        ("x-dead-letter-routing-key", long_string(queue)),
        ("x-dead-letter-strategy", long_string("at-least-once")),
        ("x-overflow", long_string("reject-publish")),
    ]
    .into_iter()
}
