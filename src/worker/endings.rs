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
use tokio::time::{Instant, timeout};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::AbortOnDropHandle,
};

use super::{
    log::{self, EndingsLog},
    metadata::Metadata,
    prefetch::{Next, PrefetchWindow},
    process::Processor,
};
use crate::{
    broker::{
        BrokerError, Consumer, DeadLetterReason, Delivery, ENDINGS_PREFETCH, EndingSettlement,
        EndingSource, Publisher, move_ending, settle_ending,
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
/// A lost connection is noticed within half of this.
const LOSS_NOTICED: Duration = Duration::from_secs(2);
/// How long an ending from the request queue waits for Redis where the queue of endings does not take it.
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
    let mut log = EndingsLog::new();
    loop {
        let opened = stop.run_until_cancelled(async {
            processor.cache.until_available().await;
            source.open().await
        });
        let Some(opened) = opened.await else { return };
        let delay = match opened {
            Ok(mut consumer) => {
                log.consumed();
                let (end, unprocessed) = consume(&processor, &source, &mut consumer, &stop).await;
                source.stop(consumer, unprocessed).await;
                match end {
                    End::Stopped => return,
                    // If Redis refuses only the scripts of endings, requests soon find it available again:
                    // without a delay, an ending was copied 60 times a second.
                    End::RedisUnavailable => RESTART_DELAY,
                    End::Fault(error) => {
                        if is_lost(&stop, &source).await {
                            return;
                        }
                        log.not_consumed(error);
                        continue;
                    }
                }
            }
            Err(error) => {
                if is_lost(&stop, &source).await {
                    return;
                }
                log.not_consumed(error);
                RETRY_INTERVAL
            }
        };
        if timeout(delay, stop.cancelled()).await.is_ok() {
            return;
        }
    }
}

/// Whether the connection is lost, too: then requests are not consumed either, which is logged elsewhere. Waits until
/// that would be known.
async fn is_lost(stop: &CancellationToken, source: &EndingSource) -> bool {
    let ended = async {
        tokio::select! {
            () = stop.cancelled() => {}
            () = source.lost.cancelled() => {}
        }
    };
    timeout(LOSS_NOTICED, ended).await.is_ok()
}

enum End {
    Stopped,
    RedisUnavailable,
    Fault(BrokerError),
}

/// Also returns the endings that met an unavailable Redis: copies would come back to a consumer that has not stopped.
async fn consume(
    processor: &Processor,
    source: &EndingSource,
    consumer: &mut Consumer,
    stop: &CancellationToken,
) -> (End, Vec<Delivery>) {
    let EndingSource { publisher, lost, .. } = source;
    let queue = publisher.topology().ended_queue();
    let mut in_hand = FuturesUnordered::new();
    let mut unprocessed = Vec::new();
    // A stream keeps a pause for want of memory under way while the endings in hand go on: they hold the memory.
    let window = PrefetchWindow::open(ENDINGS_PREFETCH);
    let mut deliveries =
        pin!(stream::unfold((consumer, window), async |(consumer, mut window)| {
            let next = next(source, consumer, &mut window).await;
            Some((next, (consumer, window)))
        }));
    let end = loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break End::Stopped,
            Some(processed) = in_hand.next() => if let Err(delivery) = processed {
                unprocessed.push(delivery);
                break End::RedisUnavailable;
            },
            Some(next) = deliveries.next() => match next {
                Ok(delivery) => in_hand.push(async move {
                    let processed = processor.process_ending(&delivery, queue, publisher, lost);
                    match AssertUnwindSafe(processed).catch_unwind().await {
                        Ok(Ok(())) => Ok(()),
                        Ok(Err(Unavailable)) => Err(delivery),
                        Err(_panic) => {
                            delivery.reject();
                            Ok(())
                        }
                    }
                }),
                Err(fault) => break End::Fault(fault),
            },
        }
    };
    while let Some(processed) = in_hand.next().await {
        unprocessed.extend(processed.err());
    }
    (end, unprocessed)
}

/// The next ending, after a pause if there is too little memory for large messages.
async fn next(
    source: &EndingSource,
    consumer: &mut Consumer,
    window: &mut PrefetchWindow,
) -> Result<Delivery, BrokerError> {
    let mut forgotten = pin!(source.until_consumer_is_forgotten());
    loop {
        let received = tokio::select! {
            biased;
            received = consumer.next() => received?,
            error = &mut forgotten => return Err(error),
        };
        let next = match &received {
            // It was fetched before the pause.
            Some(_) if consumer.is_paused() => Next::Keep,
            Some(delivery) => window.on_delivery(0, delivery.large_bytes()),
            None if consumer.is_paused() => Next::Resume,
            None => window.on_no_room(),
        };
        match next {
            Next::Grow { to, .. } => consumer.set_prefetch(to).await?,
            Next::Narrow { to } => consumer.pause(to),
            Next::Resume => consumer.resume().await?,
            // The window isolates none.
            Next::Keep | Next::ServeAlone => {}
        }
        if let Some(delivery) = received {
            return Ok(delivery);
        }
    }
}

/// Redis was not available.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unavailable;

impl Processor {
    /// Processes an ending that came from `queue`, and settles it.
    ///
    /// # Errors
    /// Redis was not available. If it came from the queue of endings, it is not settled; else it is there now, or in
    /// its queue again.
    pub(super) async fn process_ending(
        &self,
        delivery: &Delivery,
        queue: &str,
        publisher: &Publisher,
        lost: &CancellationToken,
    ) -> Result<(), Unavailable> {
        let started = Instant::now();
        let mut metadata = Metadata::read(delivery, queue, &self.traces);
        let workflow = self.default_workflow.as_deref();
        let decoded = decode_ending(delivery.body(), self.max_message_bytes, workflow);
        metadata.set_decoded_id(decoded.id);
        let (settlement, outcome) = match decoded.ending {
            Ok(ending) => {
                match self.end(&ending, delivery).await {
                    Ok(forgotten) => (EndingSettlement::Done, Some(outcome(forgotten))),
                    Err(_) if queue == publisher.topology().ended_queue() => {
                        return Err(Unavailable);
                    }
                    // It must not keep a request's slot until Redis is back.
                    Err(_) if move_ending(delivery, publisher, lost).await => {
                        return Err(Unavailable);
                    }
                    Err(_) => {
                        // It would come back at once.
                        let _ = timeout(WAIT_FOR_REDIS, lost.cancelled()).await;
                        (EndingSettlement::Requeue, None)
                    }
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
