//! One connection's life: what was delivered on it, and how it is retired.

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::broker::BrokerSession;

/// A connection, and the deliveries that arrived on it.
pub(super) struct Connected {
    pub(super) session: BrokerSession,
    /// The deliveries in flight.
    pub(super) in_flight: TaskTracker,
    /// Cancelled when the deliveries can no longer be settled: RabbitMQ redelivers them.
    pub(super) lost: CancellationToken,
}

impl Connected {
    pub(super) fn new(session: BrokerSession) -> Self {
        Self { session, in_flight: TaskTracker::new(), lost: CancellationToken::new() }
    }

    /// Keeps the connection until its deliveries are settled, and closes it.
    ///
    /// Where only the queue is gone, events can still be published here. Once the connection is broken,
    /// its deliveries are lost: RabbitMQ redelivers them, so they are cut short.
    pub(super) async fn retire(mut self) {
        self.in_flight.close();
        if self.session.can_settle() {
            self.session.stop_consuming().await;
        }
        tokio::select! {
            () = self.in_flight.wait() => {}
            () = self.session.wait_until_lost() => self.lost.cancel(),
        }
        self.in_flight.wait().await;
        self.session.close().await;
    }
}

/// Waits until all deliveries are settled. More may arrive afterwards.
pub(super) async fn all_settled(in_flight: &TaskTracker) {
    in_flight.close();
    in_flight.wait().await;
    in_flight.reopen();
}
