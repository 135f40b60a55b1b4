//! Consumes the queue of endings, and settles them.
//!
//! The queue has a channel of its own on the consuming connection: a fault of it, or a missing queue, does not
//! concern requests.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::future::join_all;
use lapin::BasicProperties;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    amqp::RPC_TIMEOUT,
    consumer::Consumer,
    delivery::Delivery,
    error::BrokerError,
    publisher::Publisher,
    republish::{DeadLetterReason, Tried, dead_letter, ending_copy},
    settle::{Settled, hand_back_copy, replace},
};
use crate::{message::RequestId, telemetry::metrics::PublishKind, units::unix_millis};

/// Endings in hand: each waits for Redis and RabbitMQ only.
pub(crate) const ENDINGS_PREFETCH: u16 = 64;
/// A look at the queue that began before the consumer was there says nothing about it.
const LOOK_LIMIT: Duration = Duration::from_secs(5);

/// Where endings come from.
pub(crate) struct EndingSource {
    pub(super) consuming: Arc<lapin::Connection>,
    pub(super) publishing: Arc<lapin::Connection>,
    pub(crate) publisher: Publisher,
    /// Cancelled when a connection is lost.
    pub(crate) lost: CancellationToken,
}

/// How an ending is settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EndingSettlement {
    Done,
    /// To the end of the queue that it came from, as a confirmed copy: a nack would count towards the delivery
    /// limit.
    Requeue,
    DeadLetter(DeadLetterReason),
}

impl EndingSource {
    /// Declares or checks the queue, and starts to consume.
    pub(crate) async fn open(&self) -> Result<Consumer, BrokerError> {
        let topology = self.publisher.topology();
        topology.ensure_ended(&self.publishing).await?;
        Consumer::start(&self.consuming, topology.ended_queue(), ENDINGS_PREFETCH).await
    }

    /// Waits until RabbitMQ has lost the consumer, while it delivers nothing: the queue has messages and no
    /// consumer, though the channel is open.
    pub(crate) async fn until_consumer_is_forgotten(&self) -> BrokerError {
        sleep(LOOK_LIMIT).await;
        self.publisher.topology().ended_unconsumed.notified().await;
        BrokerError::new(
            "RabbitMQ lost the consumer of endings: the queue has messages and no consumer",
        )
    }

    /// Stops consuming, and hands back what was not taken or not processed.
    pub(crate) async fn stop(&self, mut consumer: Consumer, unprocessed: Vec<Delivery>) {
        let mut deliveries = consumer.stop().await;
        deliveries.extend(unprocessed);
        join_all(deliveries.iter().map(|delivery| self.hand_back(delivery))).await;
        if !self.lost.is_cancelled() {
            let _ = timeout(RPC_TIMEOUT, consumer.close()).await;
        }
    }

    async fn hand_back(&self, delivery: &Delivery) {
        let copy = copy_of(delivery, &self.publisher);
        let queue = self.publisher.topology().ended_queue();
        hand_back_copy(delivery, queue, copy, &self.publisher, &self.lost).await;
    }
}

/// Moves an ending from the request queue to that of endings, where it waits for Redis. Returns whether RabbitMQ has
/// confirmed it there.
pub(crate) async fn move_ending(
    delivery: &Delivery,
    publisher: &Publisher,
    lost: &CancellationToken,
) -> bool {
    let copy = copy_of(delivery, publisher);
    let queue = publisher.topology().ended_queue();
    let copied = publisher.republish(PublishKind::Postponed, queue, copy, delivery.body());
    // Without the queue, the copy is unroutable. RabbitMQ does not confirm during an alarm.
    let copied = timeout(RPC_TIMEOUT, lost.run_until_cancelled(copied)).await;
    matches!(copied, Ok(Some(Ok(())))) && delivery.ack()
}

/// Settles an ending that came from `queue`. Returns whether it has left the queue, or is there as a copy.
pub(crate) async fn settle_ending(
    delivery: &Delivery,
    settlement: &EndingSettlement,
    (queue, id): (&str, &RequestId),
    publisher: &Publisher,
    lost: &CancellationToken,
    stop: &CancellationToken,
) -> bool {
    let copy = match settlement {
        EndingSettlement::Done => return delivery.ack(),
        EndingSettlement::Requeue => (PublishKind::Postponed, queue, copy_of(delivery, publisher)),
        EndingSettlement::DeadLetter(reason) => {
            let tried = Tried { request_id: id, attempts: 0, deferrals: 0, event_refused: false };
            let of = copy_of(delivery, publisher);
            let now = SystemTime::now();
            let letter = dead_letter(&of, tried, reason, queue, now, publisher.frame_max());
            (PublishKind::DeadLetter, publisher.topology().dead_queue(), letter)
        }
    };
    replace(delivery, copy, id, publisher, lost, stop).await == Settled::Acked
}

/// The properties of a copy, which keeps the time of first receipt.
fn copy_of(delivery: &Delivery, publisher: &Publisher) -> BasicProperties {
    let received = delivery.first_received_ms();
    let received = received.unwrap_or_else(|| unix_millis(SystemTime::now()));
    ending_copy(delivery.properties(), received, publisher.frame_max())
}
