//! One delivery: decode → obtain → publish the event → settle → record.

use std::{any::Any, panic::AssertUnwindSafe, pin::pin, sync::Arc, time::Duration};

use futures_util::FutureExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{events::Events, log, metadata::Metadata};
use crate::{
    broker::{Delivery, Publisher, Settled, Settlement, settle},
    handoff::{Failure, Handoff, Job, with_background},
    message::{Decoded, FailedReason, InvalidRequest, ReasonCode, Request, decode_request},
    telemetry::{
        metrics::{Metrics, Outcome},
        traces::Traces,
    },
    units::millis,
};

/// Processes deliveries.
pub(super) struct Processor {
    pub(super) handoff: Handoff,
    pub(super) events: Events,
    pub(super) metrics: Arc<Metrics>,
    pub(super) traces: Traces,
    pub(super) max_message_bytes: usize,
    pub(super) default_workflow: Option<String>,
    /// How long a request may wait for the platform before it goes to the end of the queue.
    pub(super) hold_limit: Duration,
    /// Cancelled when the shutdown's grace period ends: requests in flight are requeued.
    pub(super) grace_over: CancellationToken,
}

impl Processor {
    /// Processes a delivery and settles it. `connection_lost` is cancelled once the delivery
    /// can no longer be settled on this connection; a request that waits at the gate then gives up.
    pub(super) async fn process(
        &self,
        delivery: &Delivery,
        publisher: &Publisher,
        connection_lost: &CancellationToken,
    ) {
        let _in_flight = self.metrics.requests.in_flight();
        let processed = pin!(self.process_inner(delivery, publisher, connection_lost));
        if AssertUnwindSafe(processed).catch_unwind().await.is_err() {
            // `serve` catches panics in serving a request. This one came from elsewhere, so publishing a
            // copy might panic, too. Every RabbitMQ counts `reject` towards the delivery limit (`nack` no
            // longer counts since 4.3): a message that always panics is dead-lettered in the end.
            delivery.reject();
        }
    }

    async fn process_inner(
        &self,
        delivery: &Delivery,
        publisher: &Publisher,
        connection_lost: &CancellationToken,
    ) {
        let started = Instant::now();
        let queue = publisher.topology().request_queue();
        let mut metadata = Metadata::read(delivery, queue, &self.traces);
        let workflow = self.default_workflow.as_deref();
        let Decoded { id, request } =
            decode_request(delivery.body(), self.max_message_bytes, workflow);
        metadata.set_decoded_id(id);

        let served = match &request {
            Ok(request) => self.serve(request, &metadata, publisher, connection_lost).await,
            Err(invalid) => Err(failed(ReasonCode::InvalidRequest, invalid.message.clone())),
        };
        let settlement = match served {
            Ok(settlement) => settlement,
            // Boxed to keep this future small: failures are rare.
            Err(reason) => {
                Box::pin(self.publish_failed(reason, &request, &metadata, publisher)).await
            }
        };
        let settled =
            settle(delivery, &settlement, metadata.tried(), publisher, &self.grace_over).await;
        self.record(&settlement, settled, metadata, started);
    }

    /// Serves a valid request, and decides how its delivery is settled. `Err`: the request has failed for
    /// good, and `handoff.failed` must report it.
    async fn serve<'q>(
        &self,
        request: &Request,
        metadata: &Metadata,
        publisher: &'q Publisher,
        connection_lost: &CancellationToken,
    ) -> Result<Settlement<'q>, FailedReason> {
        let Metadata { request_id, span, attempts, .. } = metadata;
        let hold_until = Instant::now() + self.hold_limit;
        let job = Job { request, request_id, span, hold_until, connection_lost };
        let serving = pin!(self.obtain_and_publish(&job, metadata, publisher));
        let served = tokio::select! {
            served = AssertUnwindSafe(serving).catch_unwind() => served.unwrap_or_else(panicked),
            () = self.grace_over.cancelled() => return Ok(Settlement::Requeue),
        };
        match served {
            Ok(reused) => Ok(Settlement::Done { reused }),
            Err(Failure::Interrupted) => Ok(Settlement::Requeue),
            Err(Failure::Postponed) => Ok(Settlement::Postpone),
            Err(Failure::Expired) => {
                let message = "the request's `expiresAt` has passed".to_owned();
                Err(failed(ReasonCode::RequestExpired, message))
            }
            Err(Failure::Rejected(cause)) => Err(failed(ReasonCode::PlatformRejected, cause)),
            Err(Failure::Transient(cause)) => match publisher.topology().retry_queue(*attempts) {
                Some(queue) => Ok(Settlement::Retry { queue, cause }),
                None => {
                    let message = format!("the last of {attempts} attempts failed: {cause}");
                    Err(failed(ReasonCode::RetriesExhausted, message))
                }
            },
        }
    }

    /// Obtains the session and publishes `handoff.ready`. Returns whether the link is reused.
    async fn obtain_and_publish(
        &self,
        job: &Job<'_>,
        metadata: &Metadata,
        publisher: &Publisher,
    ) -> Result<bool, Failure> {
        let obtained = self.handoff.obtain(job).await?;
        let publish = pin!(self.events.ready(job.request, &obtained, metadata, publisher));
        if job.request.renew && obtained.reused {
            // Alongside the publish, so that a reused link waits for one round trip to Redis only: the
            // claim. Best effort: the publish does not wait for the stamp.
            with_background(publish, pin!(self.handoff.stamp_renewal(job))).await?;
        } else {
            publish.await?;
        }
        Ok(obtained.reused)
    }

    /// Publishes `handoff.failed`, then decides how to settle the delivery.
    async fn publish_failed(
        &self,
        reason: FailedReason,
        request: &Result<Request, InvalidRequest>,
        metadata: &Metadata,
        publisher: &Publisher,
    ) -> Settlement<'static> {
        match self.events.failed(&reason, request, metadata, publisher).await {
            // Replaying an expired request is pointless, so it is discarded if a queue took its event.
            // Otherwise it is dead-lettered, so that it does not vanish silently.
            Ok(true) if reason.code == ReasonCode::RequestExpired => Settlement::Discard(reason),
            Ok(_taken) => Settlement::DeadLetter(reason),
            Err(_disconnected_or_grace_over) => Settlement::Requeue,
        }
    }

    /// Logs and counts how a delivery ended.
    fn record(
        &self,
        settlement: &Settlement<'_>,
        settled: Settled,
        mut metadata: Metadata,
        started: Instant,
    ) {
        let (outcome, reason, error) = match settlement {
            _ if settled == Settled::Requeued => return log::requeued(&metadata),
            Settlement::Requeue => return log::requeued(&metadata),
            Settlement::Done { reused: false } => (Outcome::Ready, None, None),
            Settlement::Done { reused: true } => (Outcome::Reused, None, None),
            Settlement::Retry { cause, .. } => (Outcome::Retried, None, Some(cause)),
            Settlement::DeadLetter(reason) | Settlement::Discard(reason) => {
                (Outcome::Failed, Some(reason.code.as_str()), Some(&reason.message))
            }
            Settlement::Postpone => return log::postponed(&metadata),
        };
        let duration = started.elapsed();
        self.metrics.requests.settled(outcome, duration);
        metadata.span.set_outcome(outcome.as_str());
        if let Some(kind) = reason.or((outcome == Outcome::Retried).then_some("transient")) {
            metadata.span.set_error(kind);
        }
        tracing::info!(
            request_id = metadata.request_id.short(),
            outcome = outcome.as_str(),
            attempt = metadata.attempts,
            duration_ms = millis(duration),
            reason,
            error,
            trace_id = metadata.span.trace_id(),
            "request finished"
        );
    }
}

fn failed(code: ReasonCode, message: String) -> FailedReason {
    FailedReason { code, message }
}

/// A panic is a failed attempt of its request. The payload may contain a secret, so it is left out.
fn panicked(_: Box<dyn Any + Send>) -> Result<bool, Failure> {
    Err(Failure::Transient(
        "the worker panicked while serving the request (a bug: see the worker's log)".to_owned(),
    ))
}
