//! A consumer of a queue.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::poll_fn,
    mem::{replace, take},
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_util::{FutureExt, StreamExt};
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
    large::IN_HAND,
    log,
};

/// How long a delivery may stay unsettled before RabbitMQ closes the channel: its own default of 30 minutes.
/// From 3.12 on, this wins over a shorter one that a policy or `rabbitmq.conf` sets; before, RabbitMQ
/// ignores it.
const CONSUMER_TIMEOUT_MS: i64 = 30 * 60 * 1000;

/// A consumer of a queue, on its own channel.
pub(crate) struct Consumer {
    acks: Arc<Acks>,
    _ack_task: AbortOnDropHandle<()>,
    queue: ShortString,
    prefetch: u16,
    subscription: Subscription,
    /// The subscription's deliveries, and before them those of former ones that lapin still holds.
    streams: VecDeque<lapin::Consumer>,
    /// Received, but not taken.
    received: VecDeque<Delivery>,
    /// Emptied for want of memory. Requeued once there is room.
    emptied: Vec<Delivery>,
    failure: Option<BrokerError>,
}

enum Subscription {
    /// With its consumer tag.
    Active(ShortString),
    /// Cancelled until there is room; goes on with this prefetch.
    Paused(u16),
    /// Cancelled by this worker or by RabbitMQ.
    Ended,
}

impl Consumer {
    /// Starts to consume.
    pub(super) async fn start(
        connection: &Connection,
        queue: &str,
        prefetch: u16,
    ) -> Result<Self, BrokerError> {
        let queue = object_name(queue)?;
        let (channel, consumer) = rpc(&operation(&queue), async {
            let channel = connection.create_channel().await?;
            let consumer = consume(&channel, &queue, prefetch).await?;
            Ok((channel, consumer))
        })
        .await?;
        let acks = Acks::new(channel);
        let ack_task = tokio::spawn(Arc::clone(&acks).run());
        Ok(Self {
            acks,
            _ack_task: AbortOnDropHandle::new(ack_task),
            queue,
            prefetch,
            subscription: Subscription::Active(consumer.tag()),
            streams: VecDeque::from([consumer]),
            received: VecDeque::new(),
            emptied: Vec::new(),
            failure: None,
        })
    }

    /// The prefetch of the last subscription.
    pub(crate) fn prefetch(&self) -> u16 {
        self.prefetch
    }

    /// Changes the prefetch. Deliveries received before do not count towards it.
    ///
    /// Replaces the subscription: RabbitMQ applies `basic.qos` to those that start after it.
    pub(crate) async fn set_prefetch(&mut self, prefetch: u16) -> Result<(), BrokerError> {
        self.cancel().await?;
        self.subscribe(prefetch).await
    }

    /// Stops fetching until [`Self::resume`], which goes on with this prefetch.
    ///
    /// Does not wait for RabbitMQ: its answer comes after everything it has sent, which can be a full
    /// prefetch window of large messages.
    pub(crate) fn pause(&mut self, prefetch: u16) {
        let former = replace(&mut self.subscription, Subscription::Paused(prefetch));
        if let Subscription::Active(tag) = former {
            // The first poll queues the frame in lapin. The stream ends with RabbitMQ's answer.
            let cancelling = self.acks.channel.basic_cancel(tag, BasicCancelOptions::default());
            let _ = cancelling.now_or_never();
        }
    }

    pub(crate) fn is_paused(&self) -> bool {
        matches!(self.subscription, Subscription::Paused(_))
    }

    /// Ends a pause, once there is memory for more large messages.
    pub(crate) async fn resume(&mut self) -> Result<(), BrokerError> {
        let Subscription::Paused(prefetch) = self.subscription else { return Ok(()) };
        IN_HAND.wait_for_room().await;
        self.requeue_emptied();
        self.subscribe(prefetch).await
    }

    /// Waits for the next delivery, however long the queue is empty.
    ///
    /// `None`: large messages had to be emptied for want of memory, so it must pause; or it is paused and has
    /// nothing left, so it must resume. The end of lapin's stream is a fault: the channel was closed, or the
    /// queue was deleted.
    pub(crate) async fn next(&mut self) -> Result<Option<Delivery>, BrokerError> {
        poll_fn(|context| {
            loop {
                if let Some(delivery) = self.received.pop_front() {
                    return Poll::Ready(Ok(Some(delivery)));
                }
                if let Some(failure) = self.failure.take() {
                    return Poll::Ready(Err(failure));
                }
                let must_resume = self.is_paused() && self.streams.is_empty();
                let must_pause = !self.is_paused() && !self.emptied.is_empty();
                if must_resume || must_pause {
                    return Poll::Ready(Ok(None));
                }
                ready!(self.poll_receive(context));
            }
        })
        .await
    }

    /// Receives deliveries for [`Self::next`], so that large ones do not pile up in lapin while none can be
    /// taken.
    pub(crate) async fn receive(&mut self) -> Infallible {
        poll_fn(|context| {
            while self.failure.is_none() {
                ready!(self.poll_receive(context));
            }
            Poll::Pending
        })
        .await
    }

    /// Receives one delivery, or the end of a subscription.
    fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(stream) = self.streams.front_mut() else { return Poll::Pending };
        match ready!(stream.poll_next_unpin(context)) {
            Some(Ok(delivery)) => self.keep(delivery),
            Some(Err(error)) => {
                self.fail(BrokerError::connection_lost("the consumer failed", &error))
            }
            None => {
                self.streams.pop_front();
                if self.streams.is_empty() && matches!(self.subscription, Subscription::Active(_)) {
                    let cause = "RabbitMQ cancelled the consumer: was the queue deleted?";
                    self.fail(BrokerError::new(cause));
                }
            }
        }
        Poll::Ready(())
    }

    fn keep(&mut self, delivery: lapin::message::Delivery) {
        let delivery = Delivery::new(delivery, &self.acks).within_memory();
        if delivery.is_emptied() {
            self.emptied.push(delivery);
        } else {
            self.received.push_back(delivery);
        }
    }

    fn fail(&mut self, failure: BrokerError) {
        self.failure = Some(failure);
        self.subscription = Subscription::Ended;
        self.streams.clear();
    }

    /// Receives what RabbitMQ sent before it cancelled the subscription.
    async fn receive_rest(&mut self) {
        poll_fn(|context| {
            while !self.streams.is_empty() {
                ready!(self.poll_receive(context));
            }
            Poll::Ready(())
        })
        .await;
    }

    async fn cancel(&mut self) -> Result<(), BrokerError> {
        let former = replace(&mut self.subscription, Subscription::Ended);
        let Subscription::Active(tag) = former else { return Ok(()) };
        let channel = self.acks.channel.clone();
        let operation = operation(&self.queue);
        let cancelling = channel.basic_cancel(tag, BasicCancelOptions::default());
        tokio::select! {
            cancelled = rpc(&operation, cancelling) => cancelled,
            never = self.receive() => match never {},
        }
    }

    async fn subscribe(&mut self, prefetch: u16) -> Result<(), BrokerError> {
        let consuming = consume(&self.acks.channel, &self.queue, prefetch);
        let consumer = rpc(&operation(&self.queue), consuming).await?;
        log::prefetch_changed(prefetch);
        self.prefetch = prefetch;
        self.subscription = Subscription::Active(consumer.tag());
        self.streams.push_back(consumer);
        Ok(())
    }

    fn requeue_emptied(&mut self) {
        self.emptied.drain(..).for_each(|delivery| delivery.requeue());
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
        let stop = async {
            // Without an answer the channel is closed, so RabbitMQ requeues every unsettled delivery.
            if self.cancel().await.is_ok() {
                self.receive_rest().await;
            }
        };
        // After the timeout, RabbitMQ requeues the rest when the connection closes.
        let _ = timeout(RPC_TIMEOUT, stop).await;
        self.requeue_emptied();
        take(&mut self.received).into()
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
