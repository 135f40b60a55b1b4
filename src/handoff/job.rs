//! A request in progress, and why it may end without a session.

use std::{
    sync::atomic::AtomicU32,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    cache::Stamp,
    message::{Request, RequestId},
    telemetry::traces::Span,
};

/// A request in progress.
pub(crate) struct Job<'a> {
    pub(crate) request: &'a Request,
    pub(crate) request_id: &'a RequestId,
    /// The delivery's span, parent of the platform calls' spans.
    pub(crate) span: &'a Span<'a>,
    /// When it was delivered, or a little later.
    pub(crate) delivered_at: Instant,
    /// The end of the time a request may wait for the platform; then it returns to RabbitMQ, before
    /// RabbitMQ's consumer time-out (30 minutes by default) closes the channel.
    pub(crate) hold_until: Instant,
    /// RabbitMQ has redelivered it so often that it must not be held for long.
    pub(crate) was_returned_often: bool,
    /// Cancelled when the delivery is lost: RabbitMQ redelivers the request.
    pub(crate) lost: &'a CancellationToken,
    /// An earlier delivery, of this message or of one that it copies, may have called the platform.
    pub(crate) may_be_repeat: bool,
    /// How often the platform deferred this request alone, over all its deliveries.
    pub(crate) deferrals: &'a AtomicU32,
    /// The places for requests in flight: without a free one, requests in the queue wait for this one.
    pub(crate) slots: &'a Semaphore,
}

/// Why a request was not served by this delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// A later attempt may succeed. The text says what happened and holds no secret.
    Transient(String),
    /// No attempt can succeed. The text says what happened and holds no secret.
    Rejected(String),
    /// The request's `expiresAt` has passed.
    Expired,
    /// The worker drains, or has lost the delivery: RabbitMQ delivers the request again.
    Interrupted,
    /// The request has waited for the platform until `hold_until`: it goes to the end of the queue, and
    /// spends no attempt.
    Postponed,
    /// The request fails in an outage and makes room for others: it goes to the end of the queue, and spends
    /// no attempt.
    MadeRoom,
    /// The platform wants no call for this request for this long, and others need its place: it goes
    /// through a retry queue, and spends no attempt.
    Deferred(Duration),
}

impl Job<'_> {
    /// What a cached link remembers of this request.
    pub(super) fn stamp(&self) -> Stamp {
        Stamp::of(self.request_id.as_str())
    }

    /// Returns whether requests may be waiting in the queue for this one's place.
    pub(super) fn holds_last_slot(&self) -> bool {
        self.slots.available_permits() == 0
    }

    /// Fails once the delivery is lost. Nothing more is begun or published then.
    pub(crate) fn check_not_lost(&self) -> Result<(), Failure> {
        if self.lost.is_cancelled() { Err(Failure::Interrupted) } else { Ok(()) }
    }

    /// Fails once the request has expired or must return to RabbitMQ.
    pub(super) fn check_deadline(&self) -> Result<(), Failure> {
        match self.deadline() {
            (Duration::ZERO, failure) => Err(failure),
            _ => Ok(()),
        }
    }

    /// Waits for `future` until the request expires or must return to RabbitMQ.
    pub(super) async fn within_deadline<T>(
        &self,
        future: impl Future<Output = T>,
    ) -> Result<T, Failure> {
        let (left, failure) = self.deadline();
        timeout(left, future).await.map_err(|_| failure)
    }

    /// The same for another request's result; also ends once the delivery is lost, since nothing was begun
    /// for it.
    pub(super) async fn result_of<T>(&self, future: impl Future<Output = T>) -> Result<T, Failure> {
        let result = self.within_deadline(self.lost.run_until_cancelled(future));
        result.await?.ok_or(Failure::Interrupted)
    }

    /// The time left, and the failure once it is over.
    fn deadline(&self) -> (Duration, Failure) {
        let hold = self.hold_until.saturating_duration_since(Instant::now());
        let wanted = self
            .request
            .expires_at
            .map(|end| end.duration_since(SystemTime::now()).unwrap_or_default());
        match wanted {
            Some(wanted) if wanted <= hold => (wanted, Failure::Expired),
            _ => (hold, Failure::Postponed),
        }
    }
}
