//! Exchanges and queues: what there must be, declared or checked, with the remedy where it is not so.

mod difference;
mod survey;
mod watch;

use lapin::{
    Channel, Connection, ExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable, ShortString},
};
use tokio::time::timeout;

pub(super) use self::watch::watch;
pub use self::{
    difference::Difference,
    survey::{ObjectKind, ObjectState, Survey, SurveyedObject},
};
use super::{
    BrokerError,
    error::{Refusal, refusal},
    rpc::{RPC_TIMEOUT, open_channel},
};
use crate::{config::BrokerSettings, message::REQUESTED};

/// Redeliveries after which RabbitMQ itself moves a request to the dead queue: the way out for one
/// that keeps killing the worker.
const DELIVERY_LIMIT: i64 = 20;

/// A queue and how it is declared.
struct Queue {
    name: String,
    arguments: FieldTable,
    /// Which setting renames it.
    setting: &'static str,
}

/// What goes on at the request queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueCounts {
    /// Requests that wait, those in the hands of a consumer not counted.
    pub messages: u32,
    /// Consumers at the moment.
    pub consumers: u32,
}

/// Where the request queue stands among the queues: after the dead queue that it refers to.
const REQUESTS: usize = 1;

/// Everything on RabbitMQ that the worker needs.
pub struct Topology {
    declare: bool,
    exchanges: [(String, &'static str); 2],
    queues: Vec<Queue>,
    retry_queues: Vec<String>,
    dead_queue: String,
}

impl Topology {
    /// The topology by its names. Nothing is declared yet.
    pub fn new(config: &BrokerSettings) -> Self {
        let request_queue = config.queue.clone();
        let dead_queue = format!("{request_queue}.dead");
        let mut queues = vec![
            Queue::new(dead_queue.clone(), []),
            Queue::new(
                request_queue.clone(),
                [("x-delivery-limit", AMQPValue::LongLongInt(DELIVERY_LIMIT))]
                    .into_iter()
                    .chain(dead_lettering_to(&dead_queue)),
            ),
        ];
        let mut retry_queues = Vec::new();
        for delay in &config.retry_delays {
            let name = format!("{request_queue}.retry.{}", delay.name());
            // The settings keep delays within 32 bits of milliseconds.
            let ttl = i64::try_from(delay.duration().as_millis()).unwrap_or(i64::MAX);
            let ttl = [("x-message-ttl", AMQPValue::LongLongInt(ttl))];
            queues.push(Queue::new(
                name.clone(),
                ttl.into_iter().chain(dead_lettering_to(&request_queue)),
            ));
            retry_queues.push(name);
        }
        let exchanges = [
            (config.request_exchange.clone(), "HANDOFF_REQUEST_EXCHANGE"),
            (config.event_exchange.clone(), "HANDOFF_EVENT_EXCHANGE"),
        ];
        Self { declare: config.declare, exchanges, queues, retry_queues, dead_queue }
    }

    /// The queue a copy waits in after so many attempts, or `None` where those were all.
    pub fn retry_queue(&self, attempts: u32) -> Option<&str> {
        let before = usize::try_from(attempts).ok()?.checked_sub(1)?;
        self.retry_queues.get(before).map(String::as_str)
    }

    /// The queue that requests come from.
    pub fn request_queue(&self) -> &str {
        &self.queues[REQUESTS].name
    }

    /// The queue of what could not be served.
    pub fn dead_queue(&self) -> &str {
        &self.dead_queue
    }

    /// The exchange that requests are published to.
    pub fn request_exchange(&self) -> &str {
        &self.exchanges[0].0
    }

    /// The exchange that events are published to.
    pub fn event_exchange(&self) -> &str {
        &self.exchanges[1].0
    }

    /// The queues that requests wait in before they are tried again.
    pub fn retry_queues(&self) -> &[String] {
        &self.retry_queues
    }

    /// The arguments that a queue is declared with, text and numbers.
    pub fn arguments(&self, queue: &str) -> serde_json::Value {
        let queue = self.queues.iter().find(|one| one.name == queue);
        let arguments = queue.into_iter().flat_map(|queue| queue.arguments.inner());
        let json = arguments.map(|(name, value)| {
            let value = match value {
                AMQPValue::LongString(text) => text.to_string().into(),
                AMQPValue::LongLongInt(number) => (*number).into(),
                // There are no others.
                _ => serde_json::Value::Null,
            };
            (name.to_string(), value)
        });
        json.collect::<serde_json::Map<_, _>>().into()
    }

    /// What goes on at the request queue, which must exist.
    ///
    /// # Errors
    /// The queue does not exist, or the connection is lost.
    pub async fn request_queue_counts(
        &self,
        connection: &Connection,
    ) -> Result<QueueCounts, BrokerError> {
        self.look(connection, self.request_queue()).await
    }

    async fn look(&self, connection: &Connection, queue: &str) -> Result<QueueCounts, BrokerError> {
        let name = short(queue)?;
        let look = async {
            let channel = connection.create_channel().await?;
            let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
            let queue = channel.queue_declare(name, options, FieldTable::default()).await?;
            channel.close(200, "done".into()).await?;
            Ok(QueueCounts { messages: queue.message_count(), consumers: queue.consumer_count() })
        };
        let doing = format!("look at the queue `{queue}`");
        timeout(RPC_TIMEOUT, look).await.map_err(|_| BrokerError::timeout(&doing))?.map_err(
            |error| match refusal(&error) {
                Some(Refusal::NotFound) => BrokerError::new(format!(
                    "cannot {doing}: it does not exist; a worker declares it when it starts, or \
                     HANDOFF_QUEUE names another"
                )),
                _ => BrokerError::during(&doing, &error),
            },
        )
    }

    /// How many messages the dead queue holds, which must exist.
    ///
    /// # Errors
    /// The queue does not exist, or the connection is lost.
    pub async fn dead_letters(&self, connection: &Connection) -> Result<u32, BrokerError> {
        Ok(self.look(connection, &self.dead_queue).await?.messages)
    }

    /// Declares everything, or, where declaring is off, checks that it exists.
    ///
    /// # Errors
    /// The first object that is not as it must be, by name, with the remedy.
    pub async fn ensure(&self, connection: &Connection) -> Result<(), BrokerError> {
        let channel = open_channel(connection).await?;
        for (name, setting) in &self.exchanges {
            self.exchange(&channel, name, setting).await?;
        }
        for queue in &self.queues {
            self.queue(&channel, queue).await?;
        }
        if self.declare {
            self.bind(&channel).await?;
        }
        // Unanswered or not, the channel is not used again.
        let _ = timeout(RPC_TIMEOUT, channel.close(200, "done".into())).await;
        Ok(())
    }

    async fn exchange(
        &self,
        channel: &Channel,
        name: &str,
        setting: &str,
    ) -> Result<(), BrokerError> {
        let options = ExchangeDeclareOptions {
            passive: !self.declare,
            durable: true,
            ..ExchangeDeclareOptions::default()
        };
        let what = format!("the exchange `{name}`");
        let declared = channel.exchange_declare(
            short(name)?,
            ExchangeKind::Topic,
            options,
            FieldTable::default(),
        );
        self.checked(&what, setting, declared).await
    }

    async fn queue(&self, channel: &Channel, queue: &Queue) -> Result<(), BrokerError> {
        let options =
            QueueDeclareOptions { passive: !self.declare, ..QueueDeclareOptions::durable() };
        let what = format!("the queue `{}`", queue.name);
        let declared = channel.queue_declare(short(&queue.name)?, options, queue.arguments.clone());
        self.checked(&what, queue.setting, declared).await
    }

    async fn bind(&self, channel: &Channel) -> Result<(), BrokerError> {
        let request_queue = self.request_queue();
        let bound = channel.queue_bind(
            short(request_queue)?,
            short(self.request_exchange())?,
            REQUESTED.into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        let what = format!("the binding of the queue `{request_queue}`");
        self.checked(&what, "HANDOFF_QUEUE", bound).await
    }

    /// Waits for a declaration and turns a refusal into a sentence that helps.
    async fn checked<T>(
        &self,
        what: &str,
        setting: &str,
        declared: impl Future<Output = lapin::Result<T>>,
    ) -> Result<(), BrokerError> {
        let doing = if self.declare { "declare" } else { "check" };
        let error = match timeout(RPC_TIMEOUT, declared).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => error,
            Err(_) => return Err(BrokerError::timeout(&format!("{doing} {what}"))),
        };
        let remedy = match (refusal(&error), self.declare) {
            (Some(Refusal::PreconditionFailed), true) => format!(
                "it exists with other arguments; delete it once it is empty, or choose another name \
                 with {setting}, or set HANDOFF_DECLARE_TOPOLOGY=false to use it as it is"
            ),
            (Some(Refusal::NotFound), false) => {
                "it does not exist; create it, or set HANDOFF_DECLARE_TOPOLOGY=true".to_owned()
            }
            (Some(Refusal::AccessRefused), true) => {
                "the user may not; grant the `configure` permission, or create it yourself and set \
                 HANDOFF_DECLARE_TOPOLOGY=false"
                    .to_owned()
            }
            _ => return Err(BrokerError::during(&format!("{doing} {what}"), &error)),
        };
        let why = super::error::cause(&error);
        Err(BrokerError::new(format!("cannot {doing} {what}: {remedy} (RabbitMQ says: {why})")))
    }
}

impl Queue {
    /// A quorum queue: replicated, durable, and no message is lost with a node.
    fn new(name: String, arguments: impl IntoIterator<Item = (&'static str, AMQPValue)>) -> Self {
        let mut table = FieldTable::default();
        table.insert("x-queue-type".into(), text("quorum"));
        for (key, value) in arguments {
            table.insert(key.into(), value);
        }
        Self { name, arguments: table, setting: "HANDOFF_QUEUE" }
    }
}

/// Through the default exchange, and at least once: a message leaves this queue when the other has it.
/// RabbitMQ asks for `reject-publish` with that, lest a full queue drop its oldest message.
fn dead_lettering_to(queue: &str) -> impl Iterator<Item = (&'static str, AMQPValue)> + use<> {
    [
        ("x-dead-letter-exchange", text("")),
        ("x-dead-letter-routing-key", text(queue)),
        ("x-dead-letter-strategy", text("at-least-once")),
        ("x-overflow", text("reject-publish")),
    ]
    .into_iter()
}

/// A text as tables carry it.
pub(super) fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

/// A name as AMQP carries it. The settings keep names within 255 bytes.
pub(super) fn short(name: &str) -> Result<ShortString, BrokerError> {
    ShortString::try_new(name).map_err(|_| BrokerError::new("a name is longer than 255 bytes"))
}
