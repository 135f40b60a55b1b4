//! One delivery, from decoding to settling.

use std::{
    any::Any,
    panic::AssertUnwindSafe,
    pin::pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::FutureExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::metadata::Envelope;
use crate::{
    broker::{
        Delivery, PublishError, Publisher, Settled, Settlement, Tried, settle, until_confirmed,
    },
    handoff::{Failure, Handoff, Job, Served},
    message::{
        Decoded, Event, EventBody, FailedReason, InvalidRequest, ReasonCode, Request,
        decode_request,
    },
    telemetry::{
        log_limit::LogLimit,
        metrics::{Metrics, Outcome},
        traces::Traces,
    },
};

static UNHEARD: LogLimit = LogLimit::new("no queue is bound to take `handoff.failed`", 1);
static UNTAKEN: LogLimit = LogLimit::new("`handoff.failed` was not taken", 1);
/// How often `handoff.failed` is offered: over a second or two where it is refused at once.
const TELL_TRIES: u32 = 4;

/// What every delivery is processed with.
pub(super) struct Processor {
    pub(super) handoff: Handoff,
    pub(super) metrics: Arc<Metrics>,
    pub(super) traces: Traces,
    pub(super) max_message_bytes: usize,
    pub(super) default_workflow: Option<String>,
    /// How long a request is held while the platform takes no calls.
    pub(super) hold_limit: Duration,
    /// The grace period is over: whatever is not settled yet is handed back.
    pub(super) overdue: CancellationToken,
}

/// What is decided about a delivery.
enum Verdict {
    Served(Served),
    /// Cause, and the retry queue that is next.
    Retry(String, String),
    Fail(FailedReason),
    HandBack,
    /// Back to the end of the queue, with nothing spent.
    Postpone,
}

impl Processor {
    /// Sees a delivery through. Whatever happens, it is settled after, or its channel is gone, which
    /// `lost` tells.
    pub(super) async fn process(
        &self,
        delivery: &Delivery,
        publisher: &Publisher,
        lost: &CancellationToken,
    ) {
        let _in_flight = self.metrics.in_flight();
        let processed = pin!(self.see_through(delivery, publisher, lost));
        if AssertUnwindSafe(processed).catch_unwind().await.is_err() {
            // Not in serving the request, then: that is caught further in, and is a failed attempt.
            delivery.reject();
        }
    }

    async fn see_through(
        &self,
        delivery: &Delivery,
        publisher: &Publisher,
        lost: &CancellationToken,
    ) {
        let started = Instant::now();
        let queue = publisher.topology().request_queue();
        let mut envelope = Envelope::read(delivery, queue, &self.traces);
        let Decoded { id, request } = decode_request(
            delivery.body(),
            self.max_message_bytes,
            self.default_workflow.as_deref(),
        );
        envelope.request_id = id.unwrap_or(envelope.request_id);
        envelope.span.set_request(&envelope.request_id, envelope.attempts);

        let verdict = match &request {
            Ok(request) => self.serve(request, &envelope, publisher, lost).await,
            Err(invalid) => Verdict::failed(ReasonCode::InvalidRequest, invalid.message.clone()),
        };
        let heard = match &verdict {
            Verdict::Served(_) => true,
            Verdict::Retry(..) | Verdict::HandBack | Verdict::Postpone => false,
            Verdict::Fail(reason) => {
                // Rare: all others need not have room for it.
                let told = Box::pin(self.tell_failed(reason, &request, &envelope, publisher));
                match told.await {
                    Ok(heard) => heard,
                    Err(_) => {
                        delivery.requeue();
                        return self.record(&verdict, envelope, Settled::Requeued, started);
                    }
                }
            }
        };
        // A date in the future, such as one in milliseconds, is none.
        if heard
            && let Some(published_at) = delivery.published_at()
            && let Ok(end_to_end) = SystemTime::now().duration_since(published_at)
        {
            self.metrics.event_confirmed(end_to_end);
        }
        let settled = self.settle(delivery, &verdict, heard, &envelope, publisher).await;
        self.record(&verdict, envelope, settled, started);
    }

    /// Serves a request and decides what its end means for the delivery.
    async fn serve(
        &self,
        request: &Request,
        envelope: &Envelope,
        publisher: &Publisher,
        lost: &CancellationToken,
    ) -> Verdict {
        let Envelope { request_id, span, attempts, .. } = envelope;
        let correlation_id = envelope.correlation_id();
        let hold_until = Instant::now() + self.hold_limit;
        let job = Job { request, request_id, correlation_id, span, hold_until, lost };
        let serving = pin!(self.handoff.serve(&job, publisher));
        let served = tokio::select! {
            served = AssertUnwindSafe(serving).catch_unwind() => served,
            () = self.overdue.cancelled() => return Verdict::HandBack,
        };
        let why = match served.unwrap_or_else(panicked) {
            Ok(served) => return Verdict::Served(served),
            Err(Failure::Interrupted) => return Verdict::HandBack,
            Err(Failure::Postponed) => return Verdict::Postpone,
            Err(Failure::Expired) => {
                let message = "nobody waits any more: `expiresAt` has passed".to_owned();
                return Verdict::failed(ReasonCode::RequestExpired, message);
            }
            Err(Failure::Rejected(why)) => {
                return Verdict::failed(ReasonCode::PlatformRejected, why);
            }
            Err(Failure::Transient(why)) => why,
        };
        match publisher.topology().retry_queue(*attempts) {
            Some(queue) => Verdict::Retry(why, queue.to_owned()),
            None => Verdict::failed(
                ReasonCode::RetriesExhausted,
                format!("the last of {attempts} attempts failed: {why}"),
            ),
        }
    }

    /// Publishes `handoff.failed`, and returns whether a queue took it. That none does holds nothing up:
    /// the dead letter tells of it then.
    async fn tell_failed(
        &self,
        reason: &FailedReason,
        request: &Result<Request, InvalidRequest>,
        envelope: &Envelope,
        publisher: &Publisher,
    ) -> Result<bool, PublishError> {
        let (user_id, workflow_id) = match request {
            Ok(request) => (Some(&request.user_id), Some(&request.workflow_id)),
            Err(invalid) => (invalid.user_id.as_ref(), invalid.workflow_id.as_ref()),
        };
        let body = EventBody::Failed {
            request_id: envelope.request_id.as_str(),
            user_id: user_id.map(String::as_str),
            workflow_id: workflow_id.map(String::as_str),
            reason,
            attempts: envelope.attempts,
        };
        let event = Event::new(&body, SystemTime::now());
        let told = until_confirmed(&envelope.request_id, TELL_TRIES, &self.overdue, || async {
            match publisher.publish_event(&event, envelope.correlation_id(), &envelope.span).await {
                Ok(()) => Ok(true),
                Err(PublishError::Unroutable) => {
                    let request_id = envelope.request_id.short();
                    if UNHEARD.permit() {
                        tracing::warn!(request_id, "no queue is bound to take `handoff.failed`");
                    }
                    Ok(false)
                }
                Err(error) => Err(error),
            }
        });
        match told.await {
            Err(error) if error != PublishError::Disconnected && !self.overdue.is_cancelled() => {
                if UNTAKEN.permit() {
                    let request_id = envelope.request_id.short();
                    tracing::warn!(request_id, %error, "`handoff.failed` was not taken");
                }
                Ok(false)
            }
            told => told,
        }
    }

    async fn settle(
        &self,
        delivery: &Delivery,
        verdict: &Verdict,
        heard: bool,
        envelope: &Envelope,
        publisher: &Publisher,
    ) -> Settled {
        let tried = Tried { request_id: &envelope.request_id, attempts: envelope.attempts };
        let settlement = match verdict {
            Verdict::Served(_) => Settlement::Ack,
            Verdict::HandBack => Settlement::Requeue,
            Verdict::Postpone => Settlement::Postpone,
            Verdict::Retry(why, queue) => Settlement::Retry { queue, cause: why.clone() },
            // Nobody waits for an expired request, so nobody would want to replay it either. But if
            // nobody has heard of its end, it leaves a trace.
            Verdict::Fail(FailedReason { code: ReasonCode::RequestExpired, .. }) if heard => {
                Settlement::Ack
            }
            Verdict::Fail(reason) => Settlement::DeadLetter(reason.clone()),
        };
        settle(delivery, &settlement, tried, publisher, &self.overdue).await
    }

    /// One line and one count for each delivery that is done with.
    fn record(&self, verdict: &Verdict, envelope: Envelope, settled: Settled, started: Instant) {
        let Envelope { request_id, mut span, .. } = envelope;
        let request_id = request_id.short();
        let (outcome, reason, detail) = match verdict {
            _ if settled == Settled::Requeued => {
                return tracing::debug!(request_id, "handed back, or to be redelivered");
            }
            Verdict::Served(Served { reused: false }) => (Outcome::Ready, None, None),
            Verdict::Served(Served { reused: true }) => (Outcome::Reused, None, None),
            Verdict::Retry(why, _) => (Outcome::Retried, None, Some(why)),
            Verdict::Fail(reason) => {
                (Outcome::Failed, Some(reason.code.as_str()), Some(&reason.message))
            }
            Verdict::Postpone => {
                let why = "the platform takes no calls";
                return tracing::info!(request_id, why, "back to the end of the queue");
            }
            Verdict::HandBack => return,
        };
        let took = started.elapsed();
        self.metrics.settled(outcome, took);
        span.set_outcome(outcome.as_str());
        if let Some(kind) = reason.or((outcome == Outcome::Retried).then_some("transient")) {
            span.set_error(kind);
        }
        let (outcome, attempt) = (outcome.as_str(), envelope.attempts);
        let duration_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        tracing::info!(
            request_id,
            outcome,
            attempt,
            duration_ms,
            reason,
            detail,
            trace_id = span.trace_id(),
            "request finished"
        );
    }
}

impl Verdict {
    fn failed(code: ReasonCode, message: String) -> Self {
        Self::Fail(FailedReason { code, message })
    }
}

/// A panic is a failed attempt of its request. What it says may hold anything, so it is not repeated.
fn panicked(_: Box<dyn Any + Send>) -> Result<Served, Failure> {
    Err(Failure::Transient("the worker failed on it (a bug: see its log)".to_owned()))
}
