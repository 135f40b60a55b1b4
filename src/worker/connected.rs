//! One connection and its deliveries, and what all connections share.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{AcquireError, OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{endings::EndingTask, process::Processor};
use crate::{
    broker::{BrokerSession, Delivery},
    config::AmqpNodes,
    health::Health,
};

/// How long to wait for deliveries in flight to settle before going on without them. Requests that wait
/// for the platform take longer; they are not poison.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);

/// What all connections share.
pub(super) struct Context {
    pub(super) processor: Arc<Processor>,
    /// The request queue's name, for the log.
    pub(super) queue: String,
    /// One permit for each request in flight.
    pub(super) slots: Arc<Semaphore>,
    /// The requests in flight, on all connections.
    pub(super) tasks: TaskTracker,
    /// Former connections that still settle their deliveries.
    pub(super) retiring: TaskTracker,
    pub(super) health: Arc<Health>,
    pub(super) shutdown: CancellationToken,
    /// Cancelled at shutdown, once RabbitMQ delivers nothing more: requests that are held are returned.
    pub(super) draining: CancellationToken,
}

/// A place among the requests in flight. The semaphore is never closed, so this is always `Ok`.
pub(super) type Slot = Result<OwnedSemaphorePermit, AcquireError>;

/// A connection, and the deliveries that arrived on it.
pub(super) struct Connected {
    pub(super) session: BrokerSession,
    /// The deliveries in flight.
    pub(super) in_flight: TaskTracker,
    /// When the prefetch window last changed.
    pub(super) grown_at: Instant,
    endings: EndingTask,
    /// The nodes and credentials of this connection.
    pub(super) nodes: AmqpNodes,
}

impl Connected {
    /// Starts to consume endings.
    pub(super) fn new(
        session: BrokerSession,
        nodes: AmqpNodes,
        processor: &Arc<Processor>,
    ) -> Self {
        let in_flight = TaskTracker::new();
        let endings = EndingTask::start(Arc::clone(processor), session.endings());
        Self { session, in_flight, grown_at: Instant::now(), endings, nodes }
    }

    /// Takes the parts that a drain needs.
    pub(super) fn into_parts(self) -> (BrokerSession, EndingTask) {
        (self.session, self.endings)
    }

    /// Serves a delivery in its own task, which keeps the slot until it ends.
    pub(super) fn spawn(&self, delivery: Delivery, slot: Slot, context: &Context) {
        let processor = Arc::clone(&context.processor);
        let publisher = self.session.publisher.clone();
        let lost = self.session.lost().clone();
        context.tasks.spawn(self.in_flight.track_future(async move {
            // Boxed: spawning copies the future several times, and this one has 4 KiB.
            Box::pin(processor.process(&delivery, &publisher, &lost)).await;
            drop(slot);
        }));
    }

    /// Stops consuming, keeps the connections until the deliveries are settled, and closes them.
    ///
    /// Where only the queue is gone, events can still be published here. Once a connection or the
    /// channel is broken, the deliveries are lost, so they are cut short.
    pub(super) async fn retire(mut self) {
        self.in_flight.close();
        tokio::join!(self.session.stop_consuming(), self.endings.stop());
        let lost = self.session.lost().clone();
        tokio::select! {
            () = self.in_flight.wait() => {}
            () = lost.cancelled() => self.session.disconnect_lost().await,
        }
        self.in_flight.wait().await;
        self.session.close().await;
    }
}

/// Waits until all deliveries are settled, at most for [`SETTLE_LIMIT`]. Returns whether they are. More may
/// arrive afterwards.
pub(super) async fn settled_in_time(in_flight: &TaskTracker) -> bool {
    in_flight.close();
    let settled = timeout(SETTLE_LIMIT, in_flight.wait()).await.is_ok();
    in_flight.reopen();
    settled
}
