//! Settles a delivery: its copy or dead letter is confirmed before it is acked.

use std::time::{Duration, SystemTime};

use futures_util::{StreamExt, stream};
use lapin::BasicProperties;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    amqp::RPC_TIMEOUT,
    delivery::Delivery,
    error::PublishError,
    log,
    publisher::Publisher,
    republish::{DeadLetterReason, Tried, dead_letter, retry_copy, untried_copy, with_due},
};
use crate::{
    message::{FailedReason, RequestId},
    retry::Backoff,
    telemetry::metrics::PublishKind,
};

const FIRST_DELAY: Duration = Duration::from_millis(200);
const LONGEST_DELAY: Duration = Duration::from_secs(5);

/// What happens to a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Settlement<'a> {
    /// Ack it: the request is served, and `handoff.ready` is confirmed.
    /// `reused`: the link was made for another request, or by an earlier attempt.
    Done { reused: bool },
    /// Ack it without a dead letter: `handoff.failed` has reported the failure.
    Discard(FailedReason),
    /// Publish a copy to a retry queue, then ack.
    /// `cause` says in the log why this attempt failed.
    Retry { queue: &'a str, cause: String },
    /// Publish a copy to the dead queue, then ack: the request cannot be served.
    DeadLetter(DeadLetterReason),
    /// Return it to the request queue, for any worker to take. Spends no attempt.
    Requeue,
    /// Publish a copy to the end of the request queue or to a retry queue, then ack. Spends no attempt.
    /// Unlike [`Self::Requeue`], this does not count towards the delivery limit.
    Postpone { queue: &'a str, reason: PostponeReason },
}

/// Why a request is postponed, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PostponeReason {
    HeldTooLong,
    MadeRoom,
    Deferred,
}

/// Where a delivery is after [`settle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    /// Acked: it has left the request queue.
    Acked,
    /// Still in the request queue, or back in it: a worker will receive it again.
    Requeued,
}

/// Settles a delivery.
///
/// Republishes an unconfirmed copy until RabbitMQ confirms it, the delivery is `lost` or `stop` is
/// cancelled. The delivery stays unsettled meanwhile, so no request is lost. Publishes nothing for a
/// lost delivery: RabbitMQ redelivers it, and the request would exist twice.
pub(crate) async fn settle(
    delivery: &Delivery,
    settlement: &Settlement<'_>,
    tried: Tried<'_>,
    publisher: &Publisher,
    lost: &CancellationToken,
    stop: &CancellationToken,
) -> Settled {
    let copy = |tried| retry_copy(delivery.properties(), tried, publisher.frame_max());
    let untried = Tried { attempts: tried.attempts.saturating_sub(1), ..tried };
    let (kind, queue, properties) = match settlement {
        Settlement::Done { .. } | Settlement::Discard(_) => return ack(delivery),
        Settlement::Requeue if !delivery.was_returned_often() => {
            return requeue(delivery, publisher, lost).await;
        }
        Settlement::Retry { queue, .. } => (PublishKind::Retry, *queue, copy(tried)),
        // Up to RabbitMQ 4.2, a nack counts towards the delivery limit. A delivery that has come
        // back often is therefore replaced by a copy, whose count starts at zero.
        Settlement::Requeue => {
            (PublishKind::Postponed, publisher.topology().request_queue(), copy(untried))
        }
        Settlement::Postpone { queue, .. } => (PublishKind::Postponed, *queue, copy(untried)),
        Settlement::DeadLetter(reason) => (
            PublishKind::DeadLetter,
            publisher.topology().dead_queue(),
            dead_letter(
                delivery.properties(),
                tried,
                reason,
                publisher.topology().request_queue(),
                SystemTime::now(),
                publisher.frame_max(),
            ),
        ),
    };
    let copy = (kind, queue, properties);
    // Boxed to keep the caller's future small; copies are rare.
    let replaced = Box::pin(replace(delivery, copy, tried.request_id, publisher, lost, stop)).await;
    if *settlement == Settlement::Requeue { Settled::Requeued } else { replaced }
}

/// Acks a delivery once RabbitMQ has confirmed its copy, or requeues it.
///
/// Republishes an unconfirmed copy until RabbitMQ confirms it, the delivery is `lost` or `stop` is cancelled.
pub(super) async fn replace(
    delivery: &Delivery,
    (kind, queue, properties): (PublishKind, &str, BasicProperties),
    request_id: &RequestId,
    publisher: &Publisher,
    lost: &CancellationToken,
    stop: &CancellationToken,
) -> Settled {
    let delay = publisher.topology().delay_of(queue);
    let copied = until_confirmed(request_id, u32::MAX, stop, || {
        // From this attempt: an earlier one may have waited for its confirm.
        let properties = with_due(properties.clone(), delay, SystemTime::now());
        publisher.republish(kind, queue, properties, delivery.body())
    });
    if lost.run_until_cancelled(copied).await.is_none_or(|copied| copied.is_err()) {
        return requeue(delivery, publisher, lost).await;
    }
    ack(delivery)
}

/// Requeues a delivery. Without the publishing connection, waits until the consumer has stopped: RabbitMQ
/// would deliver it to the same consumer at once, and the next publish would fail, too.
async fn requeue(delivery: &Delivery, publisher: &Publisher, lost: &CancellationToken) -> Settled {
    if !publisher.is_connected() {
        lost.cancelled().await;
    }
    delivery.requeue();
    Settled::Requeued
}

/// Hands back deliveries whose requests have not been started.
///
/// As for [`Settlement::Requeue`], one that has come back often is replaced by a copy, unless RabbitMQ
/// does not confirm it.
pub(super) async fn hand_back(
    deliveries: Vec<Delivery>,
    publisher: &Publisher,
    lost: &CancellationToken,
) {
    let (often, others): (Vec<_>, Vec<_>) =
        deliveries.into_iter().partition(Delivery::was_returned_often);
    others.iter().for_each(Delivery::requeue);
    let copy = async |delivery: Delivery| {
        let queue = publisher.topology().request_queue();
        let properties = untried_copy(delivery.properties(), publisher.frame_max());
        hand_back_copy(&delivery, queue, properties, publisher, lost).await;
    };
    stream::iter(often).for_each_concurrent(None, copy).await;
}

/// Replaces a delivery by a copy at the end of its queue, or requeues it if RabbitMQ does not confirm that in time.
pub(super) async fn hand_back_copy(
    delivery: &Delivery,
    queue: &str,
    properties: BasicProperties,
    publisher: &Publisher,
    lost: &CancellationToken,
) {
    let copied = publisher.republish(PublishKind::Postponed, queue, properties, delivery.body());
    // RabbitMQ does not confirm during an alarm.
    let copied = timeout(RPC_TIMEOUT, lost.run_until_cancelled(copied)).await;
    if matches!(copied, Ok(Some(Ok(())))) {
        delivery.ack();
    } else {
        delivery.requeue();
    }
}

fn ack(delivery: &Delivery) -> Settled {
    if delivery.ack() { Settled::Acked } else { Settled::Requeued }
}

/// Repeats a publish, with backoff, until RabbitMQ confirms it.
/// Returns the last error after `max_attempts`, a lost connection or a cancelled `stop`.
pub(crate) async fn until_confirmed<T, F: Future<Output = Result<T, PublishError>>>(
    request_id: &RequestId,
    max_attempts: u32,
    stop: &CancellationToken,
    publish: impl Fn() -> F,
) -> Result<T, PublishError> {
    let mut delays = Backoff::between(FIRST_DELAY, LONGEST_DELAY);
    let mut attempts = 0;
    loop {
        let error = match publish().await {
            Ok(confirmed) => return Ok(confirmed),
            Err(PublishError::Disconnected) => return Err(PublishError::Disconnected),
            Err(error) => error,
        };
        attempts += 1;
        if attempts == 1 {
            log::publish_not_confirmed(request_id, &error);
        }
        if attempts >= max_attempts {
            return Err(error);
        }
        tokio::select! {
            () = sleep(delays.next_delay()) => {}
            () = stop.cancelled() => return Err(error),
        }
    }
}
