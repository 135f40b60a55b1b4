//! Deliveries, as RabbitMQ hands them out.

use std::{pin::Pin, sync::Arc};

use futures_util::{Stream, StreamExt, stream};
use lapin::{
    Channel, Connection,
    options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions},
    types::{FieldTable, ShortString},
};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::{
    BrokerError, Delivery,
    acks::Acks,
    log,
    rpc::{RPC_TIMEOUT, rpc},
    topology::short,
};

/// A subscription to the request queue.
pub struct Consumer {
    acks: Arc<Acks>,
    _acking: AbortOnDropHandle<()>,
    queue: ShortString,
    tag: ShortString,
    /// RabbitMQ has ended the subscription: there is nothing to stop any more.
    ended: bool,
    deliveries: Pin<Box<dyn Stream<Item = lapin::Result<lapin::message::Delivery>> + Send>>,
}

impl Consumer {
    /// Subscribes, for one delivery at a time until [`Self::set_prefetch`].
    pub(super) async fn start(connection: &Connection, queue: &str) -> Result<Self, BrokerError> {
        let queue = short(queue)?;
        let (channel, consumer) = rpc(&doing(&queue), async {
            let channel = connection.create_channel().await?;
            let consumer = subscribe(&channel, &queue, 1).await?;
            Ok((channel, consumer))
        })
        .await?;
        let tag = consumer.tag();
        let acks = Acks::new(channel);
        let acking = tokio::spawn(Arc::clone(&acks).keep_sending());
        Ok(Self {
            acks,
            _acking: AbortOnDropHandle::new(acking),
            queue,
            tag,
            ended: false,
            deliveries: Box::pin(consumer),
        })
    }

    /// From now on, at most `prefetch` deliveries are unsettled at any time, those before not counted.
    ///
    /// # Errors
    /// The channel broke, or the queue is gone.
    pub async fn set_prefetch(&mut self, prefetch: u16) -> Result<(), BrokerError> {
        let wider = rpc(&doing(&self.queue), async {
            let channel = self.acks.channel();
            channel.basic_cancel(self.tag.clone(), BasicCancelOptions::default()).await?;
            subscribe(channel, &self.queue, prefetch).await
        })
        .await?;
        log::prefetch_raised(prefetch);
        self.tag = wider.tag();
        // What the former subscription has brought still comes, first.
        let former = std::mem::replace(&mut self.deliveries, Box::pin(stream::empty()));
        self.deliveries = Box::pin(former.chain(wider));
        Ok(())
    }

    /// The next delivery. An empty queue lets this wait; only a fault ends it.
    ///
    /// # Errors
    /// The subscription ended: the channel broke, or the queue was deleted.
    pub async fn next(&mut self) -> Result<Delivery, BrokerError> {
        let next = self.deliveries.next().await;
        self.ended = !matches!(next, Some(Ok(_)));
        match next {
            Some(Ok(delivery)) => Ok(Delivery::new(delivery, &self.acks)),
            Some(Err(error)) => Err(BrokerError::connection_lost("consuming failed", &error)),
            None => {
                Err(BrokerError::new("RabbitMQ ended the subscription: was the queue deleted?"))
            }
        }
    }

    /// Whether its deliveries can still be settled.
    pub(super) fn is_open(&self) -> bool {
        self.acks.channel().status().connected()
    }

    /// Ends its channel, in order: RabbitMQ has dealt with all that was settled before.
    pub(super) async fn close(self) {
        self.acks.send();
        // Where it is closed already, there is nothing left to wait for.
        let _ = self.acks.channel().close(200, "done".into()).await;
    }

    /// Takes no more, and hands back what was fetched ahead.
    pub async fn stop(&mut self) {
        if self.ended {
            return;
        }
        let stop = async {
            let channel = self.acks.channel();
            let cancelled = channel.basic_cancel(self.tag.clone(), BasicCancelOptions::default());
            if cancelled.await.is_err() {
                return; // the channel is gone, and what was unsettled with it: it is redelivered
            }
            while let Some(Ok(delivery)) = self.deliveries.next().await {
                Delivery::new(delivery, &self.acks).requeue();
            }
        };
        // Past the limit, closing the connection hands the rest back.
        let _ = timeout(RPC_TIMEOUT, stop).await;
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        // However it ends, what is done with is said.
        self.acks.send();
    }
}

async fn subscribe(
    channel: &Channel,
    queue: &ShortString,
    prefetch: u16,
) -> lapin::Result<lapin::Consumer> {
    // Per consumer, not per channel: newer brokers refuse the latter.
    channel.basic_qos(prefetch, BasicQosOptions { global: false }).await?;
    let tag = ShortString::default(); // RabbitMQ makes one up
    let options = BasicConsumeOptions::default();
    channel.basic_consume(queue.clone(), tag, options, FieldTable::default()).await
}

fn doing(queue: &ShortString) -> String {
    format!("consume from the queue `{queue}`")
}
