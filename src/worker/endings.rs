//! The ends of verifications: consumes them while Redis is available, and has the cache forget their links.

use std::{
    panic::AssertUnwindSafe,
    pin::pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{
    FutureExt, StreamExt,
    stream::{self, FuturesUnordered},
};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::AbortOnDropHandle,
};

use super::{log, metadata::Metadata, process::Processor};
use crate::{
    broker::{
        BrokerError, Consumer, DeadLetterReason, Delivery, EndingSettlement, EndingSource,
        Publisher, settle_ending,
    },
    cache::{CacheError, Ended, Forgotten},
    message::{Ending, decode_ending},
    telemetry::metrics::EndingOutcome,
    units::millis,
};

/// How long to wait after the queue of endings cannot be consumed from.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);
/// How long to wait after a consumer that worked, or a script, has failed.
const RESTART_DELAY: Duration = Duration::from_secs(1);
/// How long an ending from the request queue waits there for Redis.
const WAIT_FOR_REDIS: Duration = Duration::from_secs(5);
/// How long to wait until endings in hand are settled, before their connection is closed.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// The task that consumes endings on one connection.
pub(super) struct EndingTask {
    stop: DropGuard,
    task: AbortOnDropHandle<()>,
}

impl EndingTask {
    pub(super) fn start(processor: Arc<Processor>, source: EndingSource) -> Self {
        let stop = CancellationToken::new();
        let task = tokio::spawn(consume_endings(processor, source, stop.clone()));
        Self { stop: stop.drop_guard(), task: AbortOnDropHandle::new(task) }
    }

    /// Stops consuming, and waits until endings in hand are settled.
    pub(super) async fn stop(self) {
        drop(self.stop);
        // Else RabbitMQ redelivers them.
        let _ = timeout(STOP_LIMIT, self.task).await;
    }
}

/// Consumes endings while Redis is available, until `stop` is cancelled.
async fn consume_endings(processor: Arc<Processor>, source: EndingSource, stop: CancellationToken) {
    let mut logged = None;
    loop {
        let opened = stop.run_until_cancelled(async {
            processor.cache.until_available().await;
            source.open().await
        });
        let Some(opened) = opened.await else { return };
        let delay = match opened {
            Ok(mut consumer) => {
                if logged.take().is_some() {
                    log::endings_consumed_again();
                }
                let end = consume(&processor, &source, &mut consumer, &stop).await;
                source.stop(consumer).await;
                match end {
                    End::Stopped => return,
                    // If Redis refuses only the scripts of endings, requests soon find it available again:
                    // without a delay, an ending was copied 60 times a second.
                    End::RedisUnavailable => RESTART_DELAY,
                    End::Fault(error) => {
                        // A lost connection, which is logged elsewhere, may end this consumer first.
                        if timeout(RESTART_DELAY, ended(&stop, &source.lost)).await.is_ok() {
                            return;
                        }
                        log::endings_not_consumed(&error);
                        logged = Some(error);
                        continue;
                    }
                }
            }
            // With the connection, requests are not consumed either, which is logged.
            Err(_) if source.lost.is_cancelled() => return,
            Err(error) => {
                if logged.as_ref() != Some(&error) {
                    log::endings_not_consumed(&error);
                    logged = Some(error);
                }
                RETRY_INTERVAL
            }
        };
        if timeout(delay, stop.cancelled()).await.is_ok() {
            return;
        }
    }
}

/// Waits until either is cancelled.
async fn ended(stop: &CancellationToken, lost: &CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = lost.cancelled() => {}
    }
}

enum End {
    Stopped,
    RedisUnavailable,
    Fault(BrokerError),
}

async fn consume(
    processor: &Processor,
    source: &EndingSource,
    consumer: &mut Consumer,
    stop: &CancellationToken,
) -> End {
    let EndingSource { publisher, lost, .. } = source;
    let queue = publisher.topology().ended_queue();
    let mut in_hand = FuturesUnordered::new();
    // A stream keeps a pause for want of memory under way while the endings in hand go on: they hold the memory.
    let mut deliveries = pin!(stream::unfold(consumer, async |consumer| {
        let next = next(consumer).await;
        Some((next, consumer))
    }));
    let end = loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break End::Stopped,
            Some(processed) = in_hand.next() => if processed == Err(Unavailable) {
                break End::RedisUnavailable;
            },
            Some(next) = deliveries.next() => match next {
                Ok(delivery) => in_hand.push(async move {
                    let processed =
                        processor.process_ending(&delivery, queue, publisher, lost, Duration::ZERO);
                    let processed = AssertUnwindSafe(processed).catch_unwind().await;
                    processed.unwrap_or_else(|_| {
                        delivery.reject();
                        Ok(())
                    })
                }),
                Err(fault) => break End::Fault(fault),
            },
        }
    };
    while in_hand.next().await.is_some() {}
    end
}

/// The next ending, after a pause if there is too little memory for large messages.
async fn next(consumer: &mut Consumer) -> Result<Delivery, BrokerError> {
    loop {
        match consumer.next().await? {
            Some(delivery) => return Ok(delivery),
            None if consumer.is_paused() => consumer.resume().await?,
            None => consumer.pause(1),
        }
    }
}

/// Redis was not available.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unavailable;

impl Processor {
    /// Processes an ending that came from `queue`, and settles it. Waits for Redis for so long.
    ///
    /// # Errors
    /// Redis was not available: the ending is in its queue again.
    pub(super) async fn process_ending(
        &self,
        delivery: &Delivery,
        queue: &str,
        publisher: &Publisher,
        lost: &CancellationToken,
        wait: Duration,
    ) -> Result<(), Unavailable> {
        let started = Instant::now();
        let mut metadata = Metadata::read(delivery, queue, &self.traces);
        let workflow = self.default_workflow.as_deref();
        let decoded = decode_ending(delivery.body(), self.max_message_bytes, workflow);
        metadata.set_decoded_id(decoded.id);
        let (settlement, outcome) = match decoded.ending {
            Ok(ending) => {
                let mut forgotten = self.end(&ending, delivery).await;
                if forgotten.is_err() && !wait.is_zero() {
                    // The delay is for a Redis that refuses only the scripts of endings.
                    let available = async {
                        sleep(RESTART_DELAY).await;
                        self.cache.until_available().await;
                    };
                    let available = timeout(wait, available);
                    if let Some(Ok(())) = lost.run_until_cancelled(available).await {
                        forgotten = self.end(&ending, delivery).await;
                    }
                }
                match forgotten {
                    Ok(forgotten) => (EndingSettlement::Done, Some(outcome(forgotten))),
                    Err(_) => (EndingSettlement::Requeue, None),
                }
            }
            Err(message) => {
                log::invalid_ending(&metadata, &message);
                let reason = DeadLetterReason::invalid_ending(message);
                (EndingSettlement::DeadLetter(reason), Some(EndingOutcome::Invalid))
            }
        };
        let from = (queue, &metadata.request_id);
        let is_settled =
            settle_ending(delivery, &settlement, from, publisher, lost, &self.grace_over).await;
        let Some(outcome) = outcome else { return Err(Unavailable) };
        if is_settled {
            let duration = started.elapsed();
            self.metrics.endings.settled(outcome);
            metadata.span.set_outcome(outcome.as_str());
            tracing::info!(
                request_id = metadata.request_id.short(),
                outcome = outcome.as_str(),
                duration_ms = millis(duration),
                trace_id = metadata.span.trace_id(),
                "ending finished"
            );
        }
        Ok(())
    }

    /// Waits for Redis before an ending in the request queue goes back to it.
    pub(super) async fn process_ending_among_requests(
        &self,
        delivery: &Delivery,
        publisher: &Publisher,
        lost: &CancellationToken,
    ) {
        let queue = publisher.topology().request_queue();
        // It comes back once Redis is available.
        let _ = self.process_ending(delivery, queue, publisher, lost, WAIT_FOR_REDIS).await;
    }

    async fn end(&self, ending: &Ending, delivery: &Delivery) -> Result<Forgotten, CacheError> {
        let Ending { user, session_id } = ending;
        let keys = user.as_ref().map(|(user, workflow)| self.cache.keys(user, workflow));
        let ended = match (session_id, &keys) {
            (Some(id), keys) => Ended::Session(id, keys.as_ref()),
            (None, Some(keys)) => Ended::Until(keys, ended_at(delivery, SystemTime::now())),
            // `decode_ending` returns one of the two.
            (None, None) => return Ok(Forgotten::Unknown),
        };
        self.cache.end(&ended).await
    }
}

/// When a verification ended, as far as its message says: not in the future.
fn ended_at(delivery: &Delivery, now: SystemTime) -> SystemTime {
    let received = delivery
        .first_received_ms()
        .and_then(|ms| SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(ms)));
    delivery.published_at().or(received).map_or(now, |at| at.min(now))
}

fn outcome(forgotten: Forgotten) -> EndingOutcome {
    match forgotten {
        Forgotten::Yes => EndingOutcome::Forgotten,
        Forgotten::Kept => EndingOutcome::Kept,
        Forgotten::Unknown => EndingOutcome::Unknown,
    }
}
