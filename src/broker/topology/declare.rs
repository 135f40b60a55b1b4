//! Declares or checks the topology over a connection.

use lapin::{
    Channel, Connection, ExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::FieldTable,
};
use tokio::time::timeout;

use super::definition::{ExchangeDeclaration, QueueDeclaration, Topology};
use crate::{
    broker::{
        error::{BrokerError, SoftError, cause, soft_error},
        rpc::{RPC_TIMEOUT, answer, open_channel},
        values::object_name,
    },
    message::REQUESTED,
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
    /// # Errors
    /// The first object that is missing or differs, with the fix.
    pub(crate) async fn ensure(&self, connection: &Connection) -> Result<(), BrokerError> {
        let channel = open_channel(connection).await?;
        for exchange in &self.exchanges {
            self.ensure_exchange(&channel, exchange).await?;
        }
        for queue in &self.queues {
            self.ensure_queue(&channel, queue).await?;
        }
        if self.declare {
            self.bind(&channel).await?;
        }
        // Not used again, whether or not RabbitMQ answers.
        let _ = timeout(RPC_TIMEOUT, channel.close(200, "done".into())).await;
        Ok(())
    }

    async fn ensure_exchange(
        &self,
        channel: &Channel,
        exchange: &ExchangeDeclaration,
    ) -> Result<(), BrokerError> {
        let options = ExchangeDeclareOptions {
            passive: !self.declare,
            durable: true,
            ..ExchangeDeclareOptions::default()
        };
        let what = format!("the exchange `{}`", exchange.name);
        let declared = channel.exchange_declare(
            object_name(&exchange.name)?,
            ExchangeKind::Topic,
            options,
            FieldTable::default(),
        );
        self.checked(&what, exchange.setting, declared).await
    }

    async fn ensure_queue(
        &self,
        channel: &Channel,
        queue: &QueueDeclaration,
    ) -> Result<(), BrokerError> {
        let options =
            QueueDeclareOptions { passive: !self.declare, ..QueueDeclareOptions::durable() };
        let what = format!("the queue `{}`", queue.name);
        let declared =
            channel.queue_declare(object_name(&queue.name)?, options, queue.arguments.clone());
        self.checked(&what, QUEUE_SETTING, declared).await
    }

    async fn bind(&self, channel: &Channel) -> Result<(), BrokerError> {
        let request_queue = self.request_queue();
        let bound = channel.queue_bind(
            object_name(request_queue)?,
            object_name(self.request_exchange())?,
            REQUESTED.into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        let what = format!("the binding of the queue `{request_queue}`");
        self.checked(&what, QUEUE_SETTING, bound).await
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
            (Some(SoftError::PreconditionFailed), true) => format!(
                "it exists with other arguments; delete it once it is empty, or choose another name \
                 with {setting}, or set HANDOFF_DECLARE_TOPOLOGY=false to use it unchanged"
            ),
            (Some(SoftError::NotFound), false) => {
                "it does not exist; create it, or set HANDOFF_DECLARE_TOPOLOGY=true".to_owned()
            }
            (Some(SoftError::AccessRefused), true) => {
                "the user has no `configure` permission; grant it, or create the object yourself and \
                 set HANDOFF_DECLARE_TOPOLOGY=false"
                    .to_owned()
            }
            _ => return Err(BrokerError::during(&operation, &error)),
        };
        let cause = cause(&error);
        Err(BrokerError::new(format!("cannot {operation}: {fix} (RabbitMQ: {cause})")))
    }

    /// Counts messages and consumers of the request queue, which must exist.
    pub(crate) async fn request_queue_counts(
        &self,
        connection: &Connection,
    ) -> Result<QueueCounts, BrokerError> {
        queue_counts(connection, self.request_queue()).await
    }

    /// Counts the messages in the dead queue, which must exist.
    pub(crate) async fn count_dead_letters(
        &self,
        connection: &Connection,
    ) -> Result<u32, BrokerError> {
        Ok(queue_counts(connection, self.dead_queue()).await?.messages)
    }
}

async fn queue_counts(connection: &Connection, queue: &str) -> Result<QueueCounts, BrokerError> {
    let name = object_name(queue)?;
    let look_up = async {
        let channel = connection.create_channel().await?;
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
        let queue = channel.queue_declare(name, options, FieldTable::default()).await?;
        channel.close(200, "done".into()).await?;
        Ok(QueueCounts { messages: queue.message_count(), consumers: queue.consumer_count() })
    };
    let operation = format!("look up the queue `{queue}`");
    answer(&operation, look_up).await?.map_err(|error| match soft_error(&error) {
        Some(SoftError::NotFound) => BrokerError::new(format!(
            "cannot {operation}: it does not exist; start a worker, which declares it, or set \
             HANDOFF_QUEUE to its name"
        )),
        _ => BrokerError::during(&operation, &error),
    })
}
