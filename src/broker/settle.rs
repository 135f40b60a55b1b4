//! Settling a delivery: whatever became of it, RabbitMQ has it in writing before the request goes.

use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{
    Delivery, PublishError, Publisher,
    delivery::SUSPECT_REDELIVERIES,
    republish::{DeadReason, Tried, dead_letter, retry_copy},
};
use crate::{
    retry::Backoff,
    telemetry::{log_limit::LogLimit, metrics::PublishKind},
};

static NOT_TAKEN: LogLimit = LogLimit::new("RabbitMQ did not take a message", 1);

/// What is to become of a delivery.
#[derive(Clone, Copy, Debug)]
pub enum Settlement<'a> {
    /// It is done with: its event is confirmed.
    Done,
    /// It is tried again later.
    Retry {
        /// The retry queue.
        queue: &'a str,
        /// What its copy says.
        tried: Tried<'a>,
    },
    /// It cannot be served: it goes to the dead queue.
    DeadLetter {
        /// What its copy says.
        tried: Tried<'a>,
        /// And why.
        reason: DeadReason<'a>,
    },
    /// Somebody else shall have it. With what a copy says, should there be need of one.
    HandBack(Tried<'a>),
    /// It goes to the end of the request queue. Handing it back would count towards the delivery limit.
    Postpone {
        /// What its copy says.
        tried: Tried<'a>,
    },
}

/// What became of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It left the request queue.
    Gone,
    /// It is in the request queue still, or again.
    Back,
}

/// Settles a delivery.
///
/// A copy that RabbitMQ does not take is offered again and again, for as long as the connection
/// stands and `stop` does not come: the request stays unsettled meanwhile, so nothing is lost.
pub async fn settle(
    delivery: &Delivery,
    settlement: Settlement<'_>,
    publisher: &Publisher,
    stop: &CancellationToken,
) -> Settled {
    let frame_max = publisher.frame_max();
    let (kind, queue, properties) = match settlement {
        Settlement::Done => return acked(delivery),
        Settlement::HandBack(_) if delivery.redeliveries() < SUSPECT_REDELIVERIES => {
            delivery.hand_back();
            return Settled::Back;
        }
        Settlement::Retry { queue, tried } => {
            (PublishKind::Retry, queue, retry_copy(delivery.properties(), tried, frame_max))
        }
        // An older RabbitMQ counts what is handed back towards the delivery limit: one that came back
        // often goes by way of a copy, whose count begins anew.
        Settlement::HandBack(tried) | Settlement::Postpone { tried } => (
            PublishKind::Postponed,
            publisher.topology().request_queue(),
            retry_copy(delivery.properties(), tried, frame_max),
        ),
        Settlement::DeadLetter { tried, reason } => (
            PublishKind::DeadLetter,
            publisher.topology().dead_queue(),
            dead_letter(delivery.properties(), tried, reason, frame_max),
        ),
    };
    // Rare: all others need not have room for it.
    let copied = Box::pin(until_confirmed(stop, u32::MAX, move || {
        publisher.copy(kind, queue, properties.clone(), delivery.body())
    }));
    match copied.await {
        Ok(()) if matches!(settlement, Settlement::HandBack(_)) => {
            delivery.ack();
            Settled::Back
        }
        Ok(()) => acked(delivery),
        Err(_) => {
            delivery.hand_back();
            Settled::Back
        }
    }
}

fn acked(delivery: &Delivery) -> Settled {
    match delivery.ack() {
        true => Settled::Gone,
        false => Settled::Back,
    }
}

/// Publishes until it is confirmed, so many times at most, or until the connection is gone or `stop`
/// comes.
///
/// # Errors
/// The last error, when it gave up.
pub async fn until_confirmed<T, F: Future<Output = Result<T, PublishError>>>(
    stop: &CancellationToken,
    tries: u32,
    publish: impl Fn() -> F,
) -> Result<T, PublishError> {
    let mut delays = Backoff::between(Duration::from_millis(200), Duration::from_secs(5));
    let mut tried = 0;
    loop {
        let error = match publish().await {
            Ok(done) => return Ok(done),
            Err(PublishError::Disconnected) => return Err(PublishError::Disconnected),
            Err(error) => error,
        };
        tried += 1;
        if tried == 1 && NOT_TAKEN.permit() {
            tracing::warn!(%error, "RabbitMQ did not take a message; offering it again");
        }
        if tried >= tries {
            return Err(error);
        }
        tokio::select! {
            () = sleep(delays.next_delay()) => {}
            () = stop.cancelled() => return Err(error),
        }
    }
}
