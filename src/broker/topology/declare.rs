//! Declares or checks the topology over a connection.

use std::sync::atomic::Ordering;

use lapin::{
    Channel, Connection, ExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    protocol::AMQPSoftError,
    types::{FieldTable, ShortString},
};

use super::{
    definition::{QueueDeclaration, Topology},
    difference::Difference,
};
use crate::{
    broker::{
        amqp::{answer, close_channel, object_name, open_channel},
        error::{BrokerError, cause, refusal_text, soft_error},
    },
    message::{ENDED, REQUESTED},
};

/// The setting whose value the names of all queues start with.
const QUEUE_SETTING: &str = "HANDOFF_QUEUE";

/// The counts in RabbitMQ's `queue.declare-ok`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QueueCounts {
    /// Messages ready for delivery. Unsettled deliveries do not count.
    pub(crate) messages: u32,
    pub(crate) consumers: u32,
}

impl Topology {
    /// Declares every object, or checks it if `HANDOFF_DECLARE_TOPOLOGY` is off.
    ///
    /// The error names the first object that is missing or differs, and the fix.
    pub(crate) async fn ensure(&self, connection: &Connection) -> Result<(), BrokerError> {
        let channel = open_channel(connection).await?;
        for (exchange, setting) in self.exchanges() {
            let declared = declare_exchange(&channel, object_name(exchange)?, !self.declare);
            self.checked(&format!("the exchange `{exchange}`"), setting, declared).await?;
        }
        for queue in &self.queues {
            self.ensure_queue(&channel, queue).await?;
        }
        if self.declare {
            self.bind(&channel, self.request_queue(), REQUESTED).await?;
        }
        self.ensured.store(true, Ordering::Relaxed);
        close_channel(&channel).await;
        Ok(())
    }

    /// Whether [`Self::ensure`] has succeeded once, on any connection.
    pub(in crate::broker) fn was_ensured(&self) -> bool {
        self.ensured.load(Ordering::Relaxed)
    }

    /// Declares the queue of endings, or checks it if `HANDOFF_DECLARE_TOPOLOGY` is off.
    pub(crate) async fn ensure_ended(&self, connection: &Connection) -> Result<(), BrokerError> {
        let channel = open_channel(connection).await?;
        self.ensure_queue(&channel, &self.ended).await?;
        if self.declare {
            self.bind(&channel, self.ended_queue(), ENDED).await?;
        }
        close_channel(&channel).await;
        Ok(())
    }

    async fn ensure_queue(
        &self,
        channel: &Channel,
        QueueDeclaration { name, arguments }: &QueueDeclaration,
    ) -> Result<(), BrokerError> {
        let declared = declare_queue(channel, object_name(name)?, !self.declare, arguments.clone());
        self.checked(&format!("the queue `{name}`"), QUEUE_SETTING, declared).await
    }

    async fn bind(&self, channel: &Channel, queue: &str, key: &str) -> Result<(), BrokerError> {
        let bound = channel.queue_bind(
            object_name(queue)?,
            object_name(&self.request_exchange)?,
            key.into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        self.checked(&format!("the binding of the queue `{queue}`"), QUEUE_SETTING, bound).await
    }

    /// Waits for a declaration, and adds the fix to a refusal.
    async fn checked<T>(
        &self,
        what: &str,
        setting: &str,
        declared: impl Future<Output = lapin::Result<T>>,
    ) -> Result<(), BrokerError> {
        let verb = if self.declare { "declare" } else { "check" };
        let operation = format!("{verb} {what}");
        let Err(error) = answer(&operation, declared).await? else { return Ok(()) };
        let fix = match (soft_error(&error), self.declare) {
            (Some(AMQPSoftError::PRECONDITIONFAILED), _)
                if !Difference::is_named_in(refusal_text(&error)) =>
            {
                return Err(BrokerError::during(&operation, &error));
            }
            (Some(AMQPSoftError::PRECONDITIONFAILED), true) => format!(
                "it exists with other arguments; delete it once it is empty, or choose another name \
                 with {setting}, or set HANDOFF_DECLARE_TOPOLOGY=false to use it unchanged"
            ),
            (Some(AMQPSoftError::NOTFOUND), false) => {
                "it does not exist; create it, or set HANDOFF_DECLARE_TOPOLOGY=true".to_owned()
            }
            (Some(AMQPSoftError::ACCESSREFUSED), true) => {
                "the user has no `configure` permission; grant it, or create the object yourself and \
                 set HANDOFF_DECLARE_TOPOLOGY=false"
                    .to_owned()
            }
            _ => return Err(BrokerError::during(&operation, &error)),
        };
        let cause = match soft_error(&error) {
            Some(AMQPSoftError::PRECONDITIONFAILED) => {
                Difference::parse(refusal_text(&error)).to_string()
            }
            _ => cause(&error),
        };
        Err(BrokerError::new(format!("cannot {operation}: {fix} (RabbitMQ: {cause})")))
    }
}

/// Declares a durable topic exchange, or checks that it exists if `passive`.
pub(super) async fn declare_exchange(
    channel: &Channel,
    name: ShortString,
    passive: bool,
) -> lapin::Result<()> {
    let options = ExchangeDeclareOptions { passive, durable: true, ..Default::default() };
    channel.exchange_declare(name, ExchangeKind::Topic, options, FieldTable::default()).await
}

/// Declares a durable queue, or checks that it exists if `passive`.
pub(super) async fn declare_queue(
    channel: &Channel,
    name: ShortString,
    passive: bool,
    arguments: FieldTable,
) -> lapin::Result<QueueCounts> {
    let options = QueueDeclareOptions { passive, ..QueueDeclareOptions::durable() };
    let queue = channel.queue_declare(name, options, arguments).await?;
    Ok(QueueCounts { messages: queue.message_count(), consumers: queue.consumer_count() })
}

/// Counts the messages and consumers of a queue, which must exist.
pub(crate) async fn queue_counts(
    connection: &Connection,
    queue: &str,
) -> Result<QueueCounts, BrokerError> {
    let name = object_name(queue)?;
    let look_up = async {
        let channel = connection.create_channel().await?;
        let counts = declare_queue(&channel, name, true, FieldTable::default()).await?;
        channel.close(200, "done".into()).await?;
        Ok(counts)
    };
    let operation = format!("look up the queue `{queue}`");
    answer(&operation, look_up).await?.map_err(|error| match soft_error(&error) {
        Some(AMQPSoftError::NOTFOUND) => BrokerError::new(format!(
            "cannot {operation}: it does not exist; start a worker, which declares it, or set \
             HANDOFF_QUEUE to its name"
        )),
        _ => BrokerError::during(&operation, &error),
    })
}
