//! The consumer of the request queue.

use std::{pin::Pin, sync::Arc};

use futures_util::{Stream, StreamExt, stream};
use lapin::{
    Channel, Connection,
    options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions},
    types::{AMQPValue, FieldTable, ShortString},
};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::{
    acks::Acks,
    amqp::{RPC_TIMEOUT, object_name, rpc},
    delivery::Delivery,
    error::BrokerError,
    log,
};

/// How long a delivery may stay unsettled before RabbitMQ closes the channel: its own default of 30 minutes.
/// From 3.12 on, this wins over a shorter one that a policy or `rabbitmq.conf` sets; before, RabbitMQ
/// ignores it.
const CONSUMER_TIMEOUT_MS: i64 = 30 * 60 * 1000;

/// A consumer of the request queue, on its own channel.
pub(crate) struct Consumer {
    acks: Arc<Acks>,
    _ack_task: AbortOnDropHandle<()>,
    queue: ShortString,
    tag: ShortString,
    /// RabbitMQ has cancelled the consumer, so there is nothing left to cancel.
    ended: bool,
    deliveries: Pin<Box<dyn Stream<Item = lapin::Result<lapin::message::Delivery>> + Send>>,
}

impl Consumer {
    /// Starts to consume with a prefetch of 1.
    pub(super) async fn start(connection: &Connection, queue: &str) -> Result<Self, BrokerError> {
        let queue = object_name(queue)?;
        let (channel, consumer) = rpc(&operation(&queue), async {
            let channel = connection.create_channel().await?;
            let consumer = consume(&channel, &queue, 1).await?;
            Ok((channel, consumer))
        })
        .await?;
        let acks = Acks::new(channel);
        let ack_task = tokio::spawn(Arc::clone(&acks).run());
        Ok(Self {
            acks,
            _ack_task: AbortOnDropHandle::new(ack_task),
            queue,
            tag: consumer.tag(),
            ended: false,
            deliveries: Box::pin(consumer),
        })
    }

    /// Raises the prefetch. Deliveries received before do not count towards it.
    ///
    /// Replaces the consumer: RabbitMQ applies `basic.qos` to consumers started after it.
    pub(crate) async fn set_prefetch(&mut self, prefetch: u16) -> Result<(), BrokerError> {
        let consumer = rpc(&operation(&self.queue), async {
            let channel = &self.acks.channel;
            channel.basic_cancel(self.tag.clone(), BasicCancelOptions::default()).await?;
            consume(channel, &self.queue, prefetch).await
        })
        .await?;
        log::prefetch_raised(prefetch);
        self.tag = consumer.tag();
        // Deliveries that the former consumer has buffered come first.
        let former = std::mem::replace(&mut self.deliveries, Box::pin(stream::empty()));
        self.deliveries = Box::pin(former.chain(consumer));
        Ok(())
    }

    /// Waits for the next delivery, however long the queue is empty.
    ///
    /// The end of lapin's stream is a fault: the channel was closed, or the queue was deleted.
    pub(crate) async fn next(&mut self) -> Result<Delivery, BrokerError> {
        let next = self.deliveries.next().await;
        self.ended = !matches!(next, Some(Ok(_)));
        match next {
            Some(Ok(delivery)) => Ok(Delivery::new(delivery, &self.acks)),
            Some(Err(error)) => Err(BrokerError::connection_lost("the consumer failed", &error)),
            None => {
                Err(BrokerError::new("RabbitMQ cancelled the consumer: was the queue deleted?"))
            }
        }
    }

    /// Whether its deliveries can still be settled.
    pub(super) fn is_open(&self) -> bool {
        self.acks.channel.status().connected()
    }

    /// The channel that it consumes on.
    pub(super) fn channel(&self) -> Channel {
        self.acks.channel.clone()
    }

    /// Stops consuming, and returns the deliveries that were prefetched but not taken.
    ///
    /// Deliveries in flight can still be settled.
    pub(super) async fn stop(&mut self) -> Vec<Delivery> {
        let mut prefetched = Vec::new();
        if std::mem::replace(&mut self.ended, true) {
            return prefetched;
        }
        let stop = async {
            let channel = &self.acks.channel;
            let cancelled = channel.basic_cancel(self.tag.clone(), BasicCancelOptions::default());
            if cancelled.await.is_err() {
                return; // The channel is closed, so RabbitMQ requeues every unsettled delivery.
            }
            // After `basic.cancel`, lapin yields the prefetched deliveries and then ends the
            // stream.
            while let Some(Ok(delivery)) = self.deliveries.next().await {
                prefetched.push(Delivery::new(delivery, &self.acks));
            }
        };
        // After the timeout, RabbitMQ requeues the rest when the connection closes.
        let _ = timeout(RPC_TIMEOUT, stop).await;
        prefetched
    }

    /// Closes the channel after RabbitMQ has processed every settlement on it.
    pub(super) async fn close(self) {
        self.acks.send_pending();
        let _ = self.acks.channel.close(200, "done".into()).await;
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.acks.send_pending();
    }
}

async fn consume(
    channel: &Channel,
    queue: &ShortString,
    prefetch: u16,
) -> lapin::Result<lapin::Consumer> {
    // Per consumer: quorum queues do not support a limit per channel, and RabbitMQ 4.3 denies it by
    // default (rabbitmq-server#15460).
    channel.basic_qos(prefetch, BasicQosOptions { global: false }).await?;
    let options = BasicConsumeOptions {
        // A crash must not lose requests.
        no_ack: false,
        // Several workers consume from the same queue.
        exclusive: false,
        // A missing queue must be an error here.
        nowait: false,
        // RabbitMQ does not implement it.
        no_local: false,
    };
    let mut arguments = FieldTable::default();
    arguments.insert("x-consumer-timeout".into(), AMQPValue::LongLongInt(CONSUMER_TIMEOUT_MS));
    // An empty tag: RabbitMQ generates a unique one.
    channel.basic_consume(queue.clone(), ShortString::default(), options, arguments).await
}

fn operation(queue: &ShortString) -> String {
    format!("consume from the queue `{queue}`")
}
