//! Consumes the queue of endings, and settles them.
//!
//! The queue has a channel of its own on the consuming connection: a fault of it, or a missing queue, does not
//! concern requests.

use std::{sync::Arc, time::SystemTime};

use futures_util::future::join_all;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{
    amqp::RPC_TIMEOUT,
    consumer::Consumer,
    delivery::Delivery,
    error::BrokerError,
    publisher::Publisher,
    republish::{DeadLetterReason, Tried, dead_letter, ending_copy},
    settle::until_confirmed,
    topology::Topology,
};
use crate::{message::RequestId, telemetry::metrics::PublishKind, units::unix_millis};

/// Endings in hand: each waits for Redis and RabbitMQ only.
const PREFETCH: u16 = 64;

/// Where endings come from.
pub(crate) struct EndingSource {
    pub(super) consuming: Arc<lapin::Connection>,
    pub(super) publishing: Arc<lapin::Connection>,
    pub(super) topology: Arc<Topology>,
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
        self.topology.ensure_ended(&self.publishing).await?;
        Consumer::start(&self.consuming, self.topology.ended_queue(), PREFETCH).await
    }

    /// Stops consuming, and hands back what was not taken.
    pub(crate) async fn stop(&self, mut consumer: Consumer) {
        let deliveries = consumer.stop().await;
        let all = join_all(deliveries.iter().map(|delivery| self.hand_back(delivery)));
        if self.lost.run_until_cancelled(all).await.is_some() {
            let _ = timeout(RPC_TIMEOUT, consumer.close()).await;
        }
    }

    /// Replaces an ending by a copy, or requeues it if RabbitMQ does not confirm that.
    async fn hand_back(&self, delivery: &Delivery) {
        let received_ms = received_ms(delivery);
        let copy = ending_copy(delivery.properties(), received_ms, self.publisher.frame_max());
        let queue = self.topology.ended_queue();
        let copied = self.publisher.republish(PublishKind::Postponed, queue, copy, delivery.body());
        if matches!(timeout(RPC_TIMEOUT, copied).await, Ok(Ok(()))) {
            delivery.ack();
        } else {
            delivery.requeue();
        }
    }
}

/// Settles an ending that came from `queue`. Returns whether it has left the queue, or is there as a copy.
///
/// Republishes an unconfirmed copy until RabbitMQ confirms it, the delivery is `lost` or `stop` is cancelled.
pub(crate) async fn settle_ending(
    delivery: &Delivery,
    settlement: &EndingSettlement,
    (queue, id): (&str, &RequestId),
    publisher: &Publisher,
    lost: &CancellationToken,
    stop: &CancellationToken,
) -> bool {
    let frame_max = publisher.frame_max();
    let (kind, to, properties) = match settlement {
        EndingSettlement::Done => return delivery.ack(),
        EndingSettlement::Requeue => (
            PublishKind::Postponed,
            queue,
            ending_copy(delivery.properties(), received_ms(delivery), frame_max),
        ),
        EndingSettlement::DeadLetter(reason) => {
            let tried = Tried { request_id: id, attempts: 0, deferrals: 0, event_refused: false };
            let of = ending_copy(delivery.properties(), received_ms(delivery), frame_max);
            let now = SystemTime::now();
            let letter = dead_letter(&of, tried, reason, queue, now, frame_max);
            (PublishKind::DeadLetter, publisher.topology().dead_queue(), letter)
        }
    };
    let copied = Box::pin(until_confirmed(id, u32::MAX, stop, || {
        publisher.republish(kind, to, properties.clone(), delivery.body())
    }));
    if lost.run_until_cancelled(copied).await.is_none_or(|copied| copied.is_err()) {
        delivery.requeue();
        return false;
    }
    delivery.ack()
}

/// When a worker first received the ending.
fn received_ms(delivery: &Delivery) -> u64 {
    delivery.first_received_ms().unwrap_or_else(|| unix_millis(SystemTime::now()))
}
