//! The loop around the connection: connect, consume, reconnect, drain.

use std::{convert::Infallible, sync::Arc, time::Duration};

use tokio::{
    sync::{AcquireError, OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    connection_log::{News, Tries},
    prefetch::{Step, Width},
    process::Processor,
};
use crate::{
    broker::{BrokerError, BrokerSession, ConsumerCount, Delivery, FrameMax},
    config::BrokerSettings,
    health::Health,
    platform::ReplicaCount,
    retry::Backoff,
};

/// A connection that lasted this long was no failure to connect.
const STEADY: Duration = Duration::from_secs(1);
/// A queue that brings nothing for so long is empty.
const QUIET: Duration = Duration::from_millis(200);
/// How long a message that may do harm, or those beside it, are waited for. One that is held for the
/// platform takes longer, and does none meanwhile.
const CLEARING: Duration = Duration::from_secs(5);
/// Kept back from the grace period to close the connections in.
const CLOSING: Duration = Duration::from_secs(1);

fn connect_delays() -> Backoff {
    // Short to the end: back soon once RabbitMQ is, and a try costs it little.
    Backoff::between(Duration::from_millis(250), Duration::from_secs(1))
}

/// The loop around the connection.
pub(super) struct Run {
    pub(super) processor: Arc<Processor>,
    pub(super) broker: BrokerSettings,
    pub(super) prefetch: u16,
    pub(super) slots: Arc<Semaphore>,
    pub(super) tasks: TaskTracker,
    pub(super) health: Arc<Health>,
    pub(super) shutdown: CancellationToken,
    pub(super) grace: Duration,
    /// Counted where they share a limit.
    pub(super) replicas: Option<Arc<ReplicaCount>>,
}

/// A place among those in flight. The semaphore is never closed, so there is always one in it.
type Slot = Result<OwnedSemaphorePermit, AcquireError>;

/// Cause consuming came to an end.
enum End {
    Fault(BrokerError),
    Shutdown,
    /// What was to be taken with care is taken.
    Past,
    /// A delivery that may do harm came together with others.
    Suspect(Box<Delivery>, Slot),
}

/// How much is asked of RabbitMQ at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    Full,
    /// One message at a time, for as many as may have been in our hands when one of them broke the
    /// connection: so that one alone is counted each time, and soon goes to the dead queue, rather
    /// than all that were delivered together with it.
    Careful,
}

impl Run {
    pub(super) async fn until_shutdown(self) {
        let mut pace = Pace::Full;
        let mut frames = FrameMax::Small;
        let mut delays = connect_delays();
        let mut first = true;
        let mut news = News::none();
        while let Some(mut attached) = self.attach(frames).await {
            if !std::mem::take(&mut first) {
                self.processor.metrics.broker_reconnected();
            }
            self.health.set_consuming(true);
            news.consuming(&self.broker.queue, pace);
            let began = Instant::now();
            let deliveries = TaskTracker::new();
            let lost = CancellationToken::new();
            let headcount = attached.consumer_count();
            let end = tokio::select! {
                end = self.consume(&mut attached, pace, &deliveries, &lost) => end,
                end = self.count_replicas(headcount) => match end {},
            };
            self.health.set_consuming(false);
            match end {
                End::Shutdown => return self.drain_beating(Some(attached)).await,
                End::Past => {
                    news.done();
                    pace = Pace::Full;
                }
                End::Suspect(delivery, slot) => {
                    news.done();
                    let alone = self.alone(*delivery, slot, &mut attached, &deliveries, &lost);
                    self.health.heartbeat.while_waiting(alone).await;
                }
                End::Fault(fault) => {
                    news.lost(&fault);
                    let at_once = began.elapsed() < STEADY;
                    if fault.is_frame_too_large() && frames == FrameMax::Small {
                        // They do until something comes that does not fit.
                        frames = FrameMax::Server;
                    } else if fault.is_undecodable()
                        || (fault.is_connection_lost() && at_once && !deliveries.is_empty())
                    {
                        // Who breaks it once is likely to have been delivered just before.
                        pace = Pace::Careful;
                    }
                    if !at_once {
                        delays.reset();
                    } else if !fault.is_undecodable() {
                        self.pause(delays.next_delay()).await;
                    }
                }
            }
            tokio::spawn(retire(attached, deliveries, lost));
        }
        self.drain_beating(None).await;
    }

    /// Counts those who consume along with us, whenever somebody wants to know. Never ends.
    async fn count_replicas(&self, headcount: ConsumerCount) -> Infallible {
        let Some(replicas) = &self.replicas else { return std::future::pending().await };
        loop {
            if let Ok(consumers) = headcount.query().await {
                replicas.set(consumers);
            }
            replicas.count_requested().await;
        }
    }

    /// Connects, however long it takes. `None` on shutdown.
    async fn attach(&self, frames: FrameMax) -> Option<BrokerSession> {
        let mut delays = connect_delays();
        let mut tries = Tries::none();
        while !self.shutdown.is_cancelled() {
            let metrics = Arc::clone(&self.processor.metrics);
            let attach = BrokerSession::open(&self.broker, self.prefetch, frames, metrics);
            let attached = tokio::select! {
                attached = self.health.heartbeat.while_waiting(attach) => attached,
                () = self.shutdown.cancelled() => break,
            };
            match attached {
                Ok(attached) => return Some(attached),
                Err(error) => tries.failed(error),
            }
            self.pause(delays.next_delay()).await;
        }
        None
    }

    /// Waits, but not into a shutdown.
    async fn pause(&self, delay: Duration) {
        let _ = timeout(delay, self.shutdown.cancelled()).await;
        self.health.heartbeat.beat();
    }

    /// Takes deliveries until there is a reason not to.
    async fn consume(
        &self,
        attached: &mut BrokerSession,
        pace: Pace,
        deliveries: &TaskTracker,
        lost: &CancellationToken,
    ) -> End {
        let mut fault = std::pin::pin!(attached.wait_for_fault());
        let heartbeat = &self.health.heartbeat;
        let mut taken = 0;
        let mut width = Width::new(self.prefetch);
        while pace == Pace::Full || taken < self.prefetch {
            // The permit first: what is not taken yet may go to another replica.
            let slot = heartbeat.while_waiting(Arc::clone(&self.slots).acquire_owned());
            let slot = match self.unless_ended(slot, &mut fault).await {
                Ok(slot) => slot,
                Err(end) => return end,
            };
            let delivery = tokio::select! {
                delivery = heartbeat.while_waiting(attached.consumer.next()) => match delivery {
                    Ok(delivery) => delivery,
                    Err(fault) => return End::Fault(fault),
                },
                fault = &mut fault => return End::Fault(fault),
                () = self.shutdown.cancelled() => return End::Shutdown,
                // Nothing waits: so nothing waits that does harm. (In a block, a timer that is not
                // waited for is not even made.)
                () = async { sleep(STEADY).await }, if pace == Pace::Careful => break,
                () = async { sleep(QUIET).await }, if pace == Pace::Full && width.is_new() => {
                    if let Some(full) = width.quiet()
                        && let Some(end) = self.widen(attached, full, &mut fault).await
                    {
                        return end;
                    }
                    continue;
                }
            };
            taken += 1;
            let next = width.after(delivery.redeliveries());
            if next == Step::Alone && pace == Pace::Full {
                return End::Suspect(Box::new(delivery), slot);
            }
            self.process(delivery, slot, attached, deliveries, lost);
            if pace == Pace::Full
                && let Step::Widen { to, when_settled } = next
            {
                if when_settled && let Some(end) = self.settled(deliveries, &mut fault).await {
                    return end;
                }
                if let Some(end) = self.widen(attached, to, &mut fault).await {
                    return end;
                }
            }
        }
        // The last one may still be at work on this connection.
        self.settled(deliveries, &mut fault).await.unwrap_or(End::Past)
    }

    /// Has more fetched at a time, unless there is a reason not to.
    async fn widen(
        &self,
        attached: &mut BrokerSession,
        to: u16,
        fault: &mut (impl Future<Output = BrokerError> + Unpin),
    ) -> Option<End> {
        match self.unless_ended(attached.consumer.set_prefetch(to), fault).await {
            Ok(widened) => widened.err().map(End::Fault),
            Err(end) => Some(end),
        }
    }

    /// Waits until these are settled, for a while, or there is a reason to wait no longer.
    async fn settled(
        &self,
        deliveries: &TaskTracker,
        fault: &mut (impl Future<Output = BrokerError> + Unpin),
    ) -> Option<End> {
        deliveries.close();
        let settled = self.health.heartbeat.while_waiting(timeout(CLEARING, deliveries.wait()));
        let settled = self.unless_ended(settled, fault).await;
        deliveries.reopen();
        settled.err()
    }

    /// Waits for something, unless consuming comes to an end before.
    async fn unless_ended<T>(
        &self,
        waiting: impl Future<Output = T>,
        fault: &mut (impl Future<Output = BrokerError> + Unpin),
    ) -> Result<T, End> {
        tokio::select! {
            done = waiting => Ok(done),
            fault = fault => Err(End::Fault(fault)),
            () = self.shutdown.cancelled() => Err(End::Shutdown),
        }
    }

    fn process(
        &self,
        delivery: Delivery,
        slot: Slot,
        attached: &BrokerSession,
        deliveries: &TaskTracker,
        lost: &CancellationToken,
    ) {
        let (processor, publisher) = (Arc::clone(&self.processor), attached.publisher.clone());
        let lost = lost.clone();
        self.tasks.spawn(deliveries.track_future(async move {
            // In a box of its own: what is spawned is moved about a good deal.
            Box::pin(processor.process(&delivery, &publisher, &lost)).await;
            drop(slot);
        }));
    }

    /// Processes a delivery that may kill the worker while as little else as may be is in its hands.
    async fn alone(
        &self,
        delivery: Delivery,
        slot: Slot,
        attached: &mut BrokerSession,
        deliveries: &TaskTracker,
        lost: &CancellationToken,
    ) {
        let fault = attached.wait_for_fault();
        attached.stop_consuming().await;
        deliveries.close();
        tokio::select! {
            _ = timeout(CLEARING, deliveries.wait()) => {}
            () = self.shutdown.cancelled() => {}
        }
        self.process(delivery, slot, attached, deliveries, lost);
        tokio::select! {
            _ = timeout(CLEARING, deliveries.wait()) => {}
            () = self.shutdown.cancelled() => {}
            _ = fault => {}
        }
    }

    async fn drain_beating(self, attached: Option<BrokerSession>) {
        let health = Arc::clone(&self.health);
        health.heartbeat.while_waiting(self.drain(attached)).await;
    }

    /// Finishes what is in flight, hands back what does not finish in time, and closes.
    async fn drain(self, mut attached: Option<BrokerSession>) {
        tracing::info!(in_flight = self.tasks.len(), "shutting down");
        self.tasks.close();
        let end = Instant::now() + self.grace;
        let closing = CLOSING.min(self.grace / 4);
        let stop = async {
            if let Some(attached) = &mut attached {
                attached.stop_consuming().await;
            }
        };
        let finish = async { tokio::join!(stop, self.tasks.wait()) };
        if timeout_at(end - closing, finish).await.is_err() {
            tracing::warn!(in_flight = self.tasks.len(), "out of time; handing back what is left");
            self.processor.overdue.cancel();
            let _ = timeout_at(end - closing / 2, self.tasks.wait()).await;
        }
        let close = async {
            if let Some(attached) = attached {
                attached.close().await;
            }
        };
        let flush = self.processor.traces.shut_down();
        let _ = timeout_at(end, async { tokio::join!(close, flush) }).await;
        tracing::info!("stopped");
    }
}

/// Keeps connections that are of no more use to new deliveries until the old ones are settled, as far
/// as they can be: where only the queue is gone, a link can still be told. Where they cannot, they are
/// lost to us: RabbitMQ delivers them again, and they are not to be kept here.
async fn retire(mut attached: BrokerSession, deliveries: TaskTracker, lost: CancellationToken) {
    deliveries.close();
    if attached.can_settle() {
        attached.stop_consuming().await;
    }
    tokio::select! {
        () = deliveries.wait() => {}
        () = attached.wait_until_lost() => lost.cancel(),
    }
    deliveries.wait().await;
    attached.close().await;
}
