//! What all connections of a worker share.

use std::sync::Arc;

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{connected::Connected, process::Processor};
use crate::{broker::Delivery, health::Health};

/// What all connections of a worker share.
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
}

/// A place among the requests in flight. The semaphore is never closed, so this is always `Ok`.
pub(super) type Slot = Result<OwnedSemaphorePermit, AcquireError>;

impl Context {
    /// Serves a delivery in its own task, which keeps the slot until it ends.
    pub(super) fn spawn(&self, delivery: Delivery, slot: Slot, connected: &Connected) {
        let processor = Arc::clone(&self.processor);
        let publisher = connected.session.publisher.clone();
        let lost = connected.lost.clone();
        self.tasks.spawn(connected.in_flight.track_future(async move {
            // Boxed: spawning copies the future several times, and this one has 4 KiB.
            Box::pin(processor.process(&delivery, &publisher, &lost)).await;
            drop(slot);
        }));
    }
}
