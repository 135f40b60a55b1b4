//! The run: take deliveries, serve them side by side, settle each, and end in good order.

use std::{
    any::Any,
    fmt,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::FutureExt;
use tokio::{
    net::TcpListener,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    broker::{
        Attached, BrokerError, Delivery, PublishError, Publisher, Settled, Settlement, insist,
        settle,
    },
    cache::{Cache, CacheError},
    config::{BrokerConfig, Settings},
    handoff::{Failure, Handoff, Job, Served},
    health::{self, Health},
    message::{
        Decoded, Event, EventBody, FailedReason, ReasonCode, RequestId, TraceContext,
        decode_request, format_date_time,
    },
    platform::{BadClient, Platform},
    retry::Delays,
    telemetry::metrics::{Metrics, Outcome},
};

/// How long the first requests may wait for Redis when the worker starts.
const CACHE_WARM_UP: Duration = Duration::from_secs(1);
/// Kept back from the grace period to close the connections in.
const CLOSING: Duration = Duration::from_secs(1);

/// Why the worker did not start.
#[derive(Debug)]
pub enum StartError {
    /// The HTTP client could not be made.
    Platform(BadClient),
    /// The Redis client could not be made.
    Cache(CacheError),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Platform(error) => error.fmt(f),
            Self::Cache(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for StartError {}

/// Runs until `shutdown`, then drains and returns. Probes and metrics are served on `listener`.
///
/// # Errors
/// Only before it has begun: later it reconnects for ever.
pub async fn run(
    settings: Settings,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<(), StartError> {
    let metrics = Metrics::new();
    let platform =
        Platform::new(&settings.platform, Arc::clone(&metrics)).map_err(StartError::Platform)?;
    let cache = Cache::new(&settings.cache, Arc::clone(&metrics)).map_err(StartError::Cache)?;
    let health = Health::new(Arc::clone(&metrics));

    if let Ok(addr) = listener.local_addr() {
        tracing::info!(%addr, "serving /livez, /readyz and /metrics");
    }
    let redis = {
        let cache = cache.clone();
        Box::new(move || cache.connected())
    };
    let probes = tokio::spawn(health::serve(listener, Arc::clone(&health), redis));
    cache.wait_connected(CACHE_WARM_UP).await;

    let worker = Arc::new(Worker {
        handoff: Handoff::new(
            platform,
            cache,
            settings.worker.retry,
            settings.platform.public_url,
            shutdown.clone(),
        ),
        metrics,
        max_message_bytes: settings.worker.max_message_bytes,
        default_workflow: settings.worker.workflow_id,
        overdue: CancellationToken::new(),
    });
    let run = Run {
        worker,
        broker: settings.broker,
        prefetch: settings.worker.concurrency,
        slots: Arc::new(Semaphore::new(settings.worker.concurrency.into())),
        tasks: TaskTracker::new(),
        health,
        shutdown,
        grace: settings.worker.shutdown_grace,
    };
    run.until_shutdown().await;
    probes.abort();
    Ok(())
}

/// The loop around the connection.
struct Run {
    worker: Arc<Worker>,
    broker: BrokerConfig,
    prefetch: u16,
    slots: Arc<Semaphore>,
    tasks: TaskTracker,
    health: Arc<Health>,
    shutdown: CancellationToken,
    grace: Duration,
}

impl Run {
    async fn until_shutdown(self) {
        while let Some(mut attached) = self.attach().await {
            self.health.set_consuming(true);
            tracing::info!(queue = self.broker.queue, prefetch = self.prefetch, "consuming");
            let fault = self.consume(&mut attached).await;
            self.health.set_consuming(false);
            match fault {
                Some(fault) => {
                    tracing::warn!(%fault, "lost RabbitMQ; reconnecting");
                    attached.close().await;
                }
                None => return self.drain(Some(attached)).await,
            }
        }
        self.drain(None).await;
    }

    /// Connects, however long it takes. `None` on shutdown.
    async fn attach(&self) -> Option<Attached> {
        let mut delays = Delays::between(Duration::from_millis(250), Duration::from_secs(2));
        let mut told = None;
        loop {
            let attached = tokio::select! {
                attached = Attached::attach(&self.broker, self.prefetch) => attached,
                () = self.shutdown.cancelled() => return None,
            };
            match attached {
                Ok(attached) => return Some(attached),
                Err(error) => {
                    // Each fault is told once, not with every try.
                    if told.as_ref() != Some(&error) {
                        tracing::error!(%error, "not consuming; trying again until it works");
                        told = Some(error);
                    }
                }
            }
            tokio::select! {
                () = sleep(delays.next()) => {}
                () = self.shutdown.cancelled() => return None,
            }
        }
    }

    /// Takes deliveries until something breaks, or `None`, on shutdown.
    async fn consume(&self, attached: &mut Attached) -> Option<BrokerError> {
        let mut fault = std::pin::pin!(attached.fault());
        loop {
            // The permit first: what is not taken yet may go to another replica.
            let slot = tokio::select! {
                slot = Arc::clone(&self.slots).acquire_owned() => slot.ok()?,
                fault = &mut fault => return Some(fault),
                () = self.shutdown.cancelled() => return None,
            };
            let delivery = tokio::select! {
                delivery = attached.consumer.next() => match delivery {
                    Ok(delivery) => delivery,
                    Err(fault) => return Some(fault),
                },
                fault = &mut fault => return Some(fault),
                () = self.shutdown.cancelled() => return None,
            };
            let (worker, publisher) = (Arc::clone(&self.worker), attached.publisher.clone());
            self.tasks.spawn(worker.attend(delivery, publisher, slot));
        }
    }

    /// Finishes what is in flight, hands back what does not finish in time, and closes.
    async fn drain(self, mut attached: Option<Attached>) {
        tracing::info!(in_flight = self.tasks.len(), "shutting down");
        self.tasks.close();
        let finish_by = Instant::now() + self.grace.saturating_sub(CLOSING.min(self.grace / 4));
        if let Some(attached) = &mut attached {
            attached.stop_consuming().await;
        }
        if tokio::time::timeout_at(finish_by, self.tasks.wait()).await.is_err() {
            tracing::warn!(in_flight = self.tasks.len(), "out of time; handing back what is left");
            self.worker.overdue.cancel();
            let _ = timeout(CLOSING / 2, self.tasks.wait()).await;
        }
        if let Some(attached) = attached {
            attached.close().await;
        }
        tracing::info!("stopped");
    }
}

/// What every delivery is worked on with.
struct Worker {
    handoff: Handoff,
    metrics: Arc<Metrics>,
    max_message_bytes: usize,
    default_workflow: Option<String>,
    /// The grace period is over: whatever is not settled yet is handed back.
    overdue: CancellationToken,
}

/// What the worker decides about a delivery.
enum Verdict {
    Served(Served),
    Retry(String),
    Fail(FailedReason),
    HandBack,
}

/// What is known of a delivery before its body is.
struct Envelope {
    request_id: RequestId,
    correlation_id: String,
    trace: TraceContext,
    /// Deliveries tried, this one included.
    attempts: u32,
}

impl Worker {
    /// Sees one delivery through, from decoding to settling. The slot is free again at the end.
    async fn attend(
        self: Arc<Self>,
        delivery: Delivery,
        publisher: Publisher,
        slot: OwnedSemaphorePermit,
    ) {
        let _in_flight = self.metrics.in_flight();
        let started = Instant::now();
        let Decoded { id, request } = decode_request(
            delivery.body(),
            self.max_message_bytes,
            self.default_workflow.as_deref(),
        );
        let envelope = Envelope::read(&delivery, id);

        let (verdict, user_id, workflow_id) = match &request {
            Ok(request) => {
                let job = Job {
                    request,
                    request_id: &envelope.request_id,
                    correlation_id: &envelope.correlation_id,
                    trace: &envelope.trace,
                };
                let verdict = self.judge(&job, &publisher, envelope.attempts).await;
                (verdict, Some(&request.user_id), Some(&request.workflow_id))
            }
            Err(invalid) => {
                let reason = failed(ReasonCode::InvalidRequest, invalid.message.clone());
                (Verdict::Fail(reason), invalid.user_id.as_ref(), invalid.workflow_id.as_ref())
            }
        };
        if let Verdict::Fail(reason) = &verdict {
            let body = EventBody::Failed {
                request_id: envelope.request_id.as_str(),
                user_id: user_id.map(String::as_str),
                workflow_id: workflow_id.map(String::as_str),
                reason,
                attempts: envelope.attempts,
            };
            if !self.tell_failed(&body, &envelope, &publisher).await {
                return delivery.hand_back().await;
            }
        }
        let settled = self.settle(&delivery, &verdict, &envelope, &publisher).await;
        self.record(&delivery, &verdict, &envelope, settled, started);
        drop(slot);
    }

    /// Serves the request and decides what its end means for the delivery.
    async fn judge(&self, job: &Job<'_>, publisher: &Publisher, attempts: u32) -> Verdict {
        let serving = AssertUnwindSafe(self.handoff.serve(job, publisher)).catch_unwind();
        let served = tokio::select! {
            served = serving => served,
            () = self.overdue.cancelled() => return Verdict::HandBack,
        };
        let why = match served.unwrap_or_else(panicked) {
            Ok(served) => return Verdict::Served(served),
            Err(Failure::Interrupted) => return Verdict::HandBack,
            Err(Failure::Expired) => {
                let message = "nobody waits any more: `expiresAt` has passed".to_owned();
                return Verdict::Fail(failed(ReasonCode::RequestExpired, message));
            }
            Err(Failure::Rejected(why)) => {
                return Verdict::Fail(failed(ReasonCode::PlatformRejected, why));
            }
            Err(Failure::Transient(why)) => why,
        };
        match publisher.topology().retry_queue(attempts) {
            Some(_) => Verdict::Retry(why),
            None => Verdict::Fail(failed(
                ReasonCode::RetriesExhausted,
                format!("the last of {attempts} attempts failed: {why}"),
            )),
        }
    }

    /// Publishes `handoff.failed`. That nobody is bound to hear it holds nothing up.
    async fn tell_failed(
        &self,
        body: &EventBody<'_>,
        envelope: &Envelope,
        publisher: &Publisher,
    ) -> bool {
        let event = Event::new(body, SystemTime::now());
        let told = insist(&self.overdue, || async {
            match publisher.event(&event, &envelope.correlation_id, &envelope.trace).await {
                Err(PublishError::Unroutable) => {
                    let request_id = envelope.request_id.short();
                    tracing::warn!(request_id, "no queue is bound to take `handoff.failed`");
                    Ok(())
                }
                told => told,
            }
        });
        told.await.is_ok()
    }

    async fn settle(
        &self,
        delivery: &Delivery,
        verdict: &Verdict,
        envelope: &Envelope,
        publisher: &Publisher,
    ) -> Settled {
        let (request_id, attempts) = (envelope.request_id.short(), envelope.attempts);
        let now = format_date_time(SystemTime::now());
        let settlement = match verdict {
            Verdict::Served(_) => Settlement::Done,
            Verdict::HandBack => Settlement::HandBack,
            // Nobody waits for an expired request, so nobody would want to replay it either.
            Verdict::Fail(FailedReason { code: ReasonCode::RequestExpired, .. }) => {
                Settlement::Done
            }
            Verdict::Fail(reason) => Settlement::Bury {
                request_id,
                attempts,
                reason: reason.code.as_str(),
                detail: &reason.message,
                failed_at: &now,
            },
            Verdict::Retry(_) => match publisher.topology().retry_queue(attempts) {
                Some(queue) => Settlement::Retry { queue, request_id, attempts },
                None => Settlement::HandBack, // `judge` has seen that there is one
            },
        };
        settle(delivery, settlement, publisher, &self.overdue).await
    }

    /// One line and one count for each delivery that is done with.
    fn record(
        &self,
        delivery: &Delivery,
        verdict: &Verdict,
        envelope: &Envelope,
        settled: Settled,
        started: Instant,
    ) {
        let request_id = envelope.request_id.short();
        let (outcome, reason, detail) = match verdict {
            _ if settled == Settled::Back => {
                return tracing::debug!(request_id, "handed back, or to be redelivered");
            }
            Verdict::Served(Served { reused: false }) => (Outcome::Ready, None, None),
            Verdict::Served(Served { reused: true }) => (Outcome::Reused, None, None),
            Verdict::Retry(why) => (Outcome::Retried, None, Some(why)),
            Verdict::Fail(reason) => {
                (Outcome::Failed, Some(reason.code.as_str()), Some(&reason.message))
            }
            Verdict::HandBack => return,
        };
        let took = started.elapsed();
        self.metrics.settled(outcome, took);
        if outcome != Outcome::Retried
            && let Some(published_at) = delivery.published_at()
        {
            self.metrics.told(SystemTime::now().duration_since(published_at).unwrap_or_default());
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
            "request finished"
        );
    }
}

impl Envelope {
    /// The body's own id comes first, then the message's, then what an earlier copy was given.
    fn read(delivery: &Delivery, id: Option<RequestId>) -> Self {
        let request_id = id.unwrap_or_else(|| {
            let known = delivery.message_id().or_else(|| delivery.copied_request_id());
            RequestId::new(known.map_or_else(|| uuid::Uuid::new_v4().to_string(), str::to_owned))
        });
        let correlation_id = delivery.correlation_id().unwrap_or(request_id.short()).to_owned();
        let trace =
            TraceContext::continued(delivery.header("traceparent"), delivery.header("tracestate"));
        let attempts = delivery.tried_before().saturating_add(1);
        Self { request_id, correlation_id, trace, attempts }
    }
}

fn failed(code: ReasonCode, message: String) -> FailedReason {
    FailedReason { code, message }
}

/// A panic is a failed attempt of its request. What it says may hold anything, so it is not repeated.
fn panicked(_: Box<dyn Any + Send>) -> Result<Served, Failure> {
    Err(Failure::Transient("the worker failed on it (a bug: see its log)".to_owned()))
}
