//! One delivery: decode → obtain → publish the event → settle → record.

use std::{any::Any, panic::AssertUnwindSafe, pin::pin, sync::Arc};

use futures_util::FutureExt;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{events::Events, hold::HoldLimit, log, metadata::Metadata};
use crate::{
    broker::{
        DeadLetterReason, Delivery, PostponeReason, Publisher, Settled, Settlement, Topology,
        settle,
    },
    cache::Cache,
    handoff::{Failure, Handoff, Job},
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
    pub(super) cache: Cache,
    pub(super) events: Events,
    pub(super) metrics: Arc<Metrics>,
    pub(super) traces: Traces,
    pub(super) max_message_bytes: usize,
    pub(super) default_workflow: Option<String>,
    pub(super) hold: HoldLimit,
    /// One permit for each request in flight.
    pub(super) slots: Arc<Semaphore>,
    /// Cancelled when the shutdown's grace period ends: requests in flight are requeued.
    pub(super) grace_over: CancellationToken,
}

impl Processor {
    /// Processes a delivery and settles it. `lost` is cancelled once RabbitMQ redelivers it, or will when
    /// it is requeued: the request then finishes the platform call that it is in, and publishes nothing.
    pub(super) async fn process(
        &self,
        delivery: &Delivery,
        publisher: &Publisher,
        lost: &CancellationToken,
    ) {
        let _in_flight = self.metrics.requests.in_flight();
        if let Some(queue) = delivery.came_from() {
            publisher.topology().copy_returned(queue);
            if let Some(late) = delivery.retry_lateness() {
                self.metrics.requests.retry_returned(late);
            }
        }
        let processed = pin!(self.process_inner(delivery, publisher, lost));
        if AssertUnwindSafe(processed).catch_unwind().await.is_err() {
            // This panic did not come from serving the request, which is caught below, so publishing a copy
            // might panic, too. `reject` requeues the message, and counts towards the delivery limit in
            // every RabbitMQ (`nack` does not since 4.3): in the end it is dead-lettered.
            delivery.reject();
        }
    }

    async fn process_inner(
        &self,
        delivery: &Delivery,
        publisher: &Publisher,
        lost: &CancellationToken,
    ) {
        let started = Instant::now();
        let queue = publisher.topology().request_queue();
        let workflow = self.default_workflow.as_deref();
        let decoded = if delivery.is_ending() {
            None
        } else {
            Some(decode_request(delivery.body(), self.max_message_bytes, workflow))
        };
        let Some(Decoded { id, mut request, is_ending: false }) = decoded else {
            // Boxed to keep this future small: endings have a queue of their own. If Redis is unavailable, it is
            // in one of the queues.
            let _ = Box::pin(self.process_ending(delivery, queue, publisher, lost)).await;
            return;
        };
        let mut metadata = Metadata::read(delivery, queue, &self.traces);
        metadata.set_decoded_id(id);
        if let Err(invalid) = &mut request {
            invalid.add_hint(delivery.content_encoding(), delivery.header_names());
        }

        let decided = match &request {
            Ok(request) => {
                let served = if metadata.was_returned_often {
                    // Boxed to keep this future small: few are returned often.
                    let serving = self.serve_briefly(delivery, request, &metadata, publisher, lost);
                    match Box::pin(serving).await {
                        Ok(served) => served,
                        Err((replaced, settled)) => {
                            return self.record(&replaced, settled, metadata, started);
                        }
                    }
                } else {
                    self.obtain_and_publish(request, &metadata, publisher, lost).await
                };
                decide(served, metadata.attempts, publisher.topology())
            }
            Err(invalid) => Err(failed(ReasonCode::InvalidRequest, invalid.message.clone())),
        };
        let settlement = match decided {
            Ok(settlement) => settlement,
            // Boxed to keep this future small: failures are rare.
            Err(reason) => {
                Box::pin(self.publish_failed(reason, &request, &metadata, publisher, lost)).await
            }
        };
        let tried = metadata.tried();
        let settled = settle(delivery, &settlement, tried, publisher, lost, &self.grace_over).await;
        self.record(&settlement, settled, metadata, started);
    }

    /// Serves a request that RabbitMQ has redelivered often. `Err`: a platform call takes long, so a copy has
    /// taken the delivery's place. The call was finished and its link stored; the copy publishes it.
    async fn serve_briefly<'a>(
        &self,
        delivery: &Delivery,
        request: &Request,
        metadata: &Metadata,
        publisher: &'a Publisher,
        lost: &CancellationToken,
    ) -> Result<Result<bool, Failure>, (Settlement<'a>, Settled)> {
        let replaced = lost.child_token();
        let mut serving = pin!(self.obtain_and_publish(request, metadata, publisher, &replaced));
        if let Ok(served) = timeout(self.hold.with_call(), &mut serving).await {
            return Ok(served);
        }
        replaced.cancel();
        let postpone = postponed(publisher.topology(), PostponeReason::HeldTooLong);
        let tried = metadata.tried();
        let settling = settle(delivery, &postpone, tried, publisher, lost, &self.grace_over);
        let (settled, _) = tokio::join!(settling, serving);
        Err((postpone, settled))
    }

    /// Obtains the session and publishes `handoff.ready`. Returns whether the link is reused.
    async fn obtain_and_publish(
        &self,
        request: &Request,
        metadata: &Metadata,
        publisher: &Publisher,
        lost: &CancellationToken,
    ) -> Result<bool, Failure> {
        let Metadata { request_id, span, deferrals, was_returned_often, .. } = metadata;
        let delivered_at = Instant::now();
        let hold_until = delivered_at + self.hold.get(*was_returned_often);
        let job = Job {
            request,
            request_id,
            span,
            delivered_at,
            hold_until,
            was_returned_often: *was_returned_often,
            may_be_repeat: metadata.may_be_repeat,
            lost,
            deferrals,
            slots: &self.slots,
        };
        let serving = pin!(async {
            let obtained = self.handoff.obtain(&job).await?;
            job.check_not_lost()?;
            let publish = self.events.ready(request, &obtained, metadata, publisher, lost);
            let (published, ()) = tokio::join!(publish, self.handoff.record(&job, &obtained));
            published?;
            Ok(obtained.reused)
        });
        tokio::select! {
            served = AssertUnwindSafe(serving).catch_unwind() => served.unwrap_or_else(panicked),
            // A lease that the request holds expires within seconds.
            () = self.grace_over.cancelled() => Err(Failure::Interrupted),
        }
    }

    /// Publishes `handoff.failed`, unless `handoff.ready` may have been received. Then decides how to settle
    /// the delivery.
    async fn publish_failed(
        &self,
        reason: FailedReason,
        request: &Result<Request, InvalidRequest>,
        metadata: &Metadata,
        publisher: &Publisher,
        lost: &CancellationToken,
    ) -> Settlement<'static> {
        if metadata.event_refused() {
            return Settlement::DeadLetter(DeadLetterReason::event_refused(&reason));
        }
        match self.events.failed(&reason, request, metadata, publisher, lost).await {
            // Replaying an expired request is pointless, so it is discarded if a queue took its event.
            // Otherwise it is dead-lettered, so that it does not vanish silently.
            Ok(true) if reason.code == ReasonCode::RequestExpired => Settlement::Discard(reason),
            Ok(_taken) => Settlement::DeadLetter(reason.into()),
            Err(_lost_or_grace_over) => Settlement::Requeue,
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
            // Always `Requeued`, too.
            Settlement::Requeue => return log::requeued(&metadata),
            Settlement::Done { reused: false } => (Outcome::Ready, None, None),
            Settlement::Done { reused: true } => (Outcome::Reused, None, None),
            Settlement::Retry { cause, .. } => (Outcome::Retried, None, Some(cause)),
            Settlement::DeadLetter(reason) => {
                (Outcome::Failed, Some(reason.code), Some(&reason.message))
            }
            Settlement::Discard(reason) => {
                (Outcome::Failed, Some(reason.code.as_str()), Some(&reason.message))
            }
            Settlement::Postpone { reason, .. } => return log::postponed(&metadata, *reason),
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

/// Decides how a delivery is settled. `Err`: the request has failed for good, and `handoff.failed` must
/// report it first.
fn decide(
    served: Result<bool, Failure>,
    attempts: u32,
    topology: &Topology,
) -> Result<Settlement<'_>, FailedReason> {
    let postpone = |reason| postponed(topology, reason);
    match served {
        Ok(reused) => Ok(Settlement::Done { reused }),
        Err(Failure::Interrupted) => Ok(Settlement::Requeue),
        Err(Failure::Postponed) => Ok(postpone(PostponeReason::HeldTooLong)),
        Err(Failure::MadeRoom) => Ok(postpone(PostponeReason::MadeRoom)),
        Err(Failure::Deferred(wait)) => {
            let queue = topology.queue_to_wait_in(wait);
            Ok(Settlement::Postpone { queue, reason: PostponeReason::Deferred })
        }
        Err(Failure::Expired) => {
            let message = "the request's `expiresAt` has passed".to_owned();
            Err(failed(ReasonCode::RequestExpired, message))
        }
        Err(Failure::Rejected(cause)) => Err(failed(ReasonCode::PlatformRejected, cause)),
        Err(Failure::Transient(cause)) => match topology.retry_queue(attempts) {
            Some(queue) => Ok(Settlement::Retry { queue, cause }),
            None => {
                let message = format!("the last of {attempts} attempts failed: {cause}");
                Err(failed(ReasonCode::RetriesExhausted, message))
            }
        },
    }
}

fn postponed(topology: &Topology, reason: PostponeReason) -> Settlement<'_> {
    Settlement::Postpone { queue: topology.request_queue(), reason }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The size of the future that a function returns.
    fn size_of_future<A, F: Future>(_: impl FnOnce(A) -> F) -> usize {
        size_of::<F>()
    }

    type Borrowed =
        (&'static Processor, &'static Delivery, &'static Publisher, &'static CancellationToken);

    #[test]
    fn future_of_a_request_is_smaller_than_4_kib() {
        let bytes = size_of_future(|(processor, delivery, publisher, lost): Borrowed| {
            processor.process(delivery, publisher, lost)
        });
        assert!(bytes < 4_096, "{bytes} bytes");
    }
}
