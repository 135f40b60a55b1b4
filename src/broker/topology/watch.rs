//! Looking after the topology while requests are taken.
//!
//! A queue that is deleted ends the subscription, and a missing exchange fails a publish; both are
//! mended at once. Two things show nowhere, though, but look like an empty queue: that nobody can
//! publish requests, since their exchange or its binding is gone, and that RabbitMQ has forgotten the
//! subscription.

use std::{sync::Arc, time::Duration};

use lapin::Connection;
use tokio::time::sleep;

use super::{QueueCounts, Topology};
use crate::broker::{error::BrokerError, log};

/// How long that may last. Declaring what is there costs RabbitMQ little.
const EVERY: Duration = Duration::from_secs(10);

/// Declares the topology again and again, or, where declaring is off, checks it. What does not work
/// is told once, and ends nothing: requests are still taken. Ends when the subscription is forgotten.
pub(crate) async fn watch(topology: Arc<Topology>, connection: Arc<Connection>) -> BrokerError {
    let mut told = None;
    loop {
        sleep(EVERY).await;
        let error = topology.ensure(&connection).await.err();
        // A connection that broke is told by whoever mends it.
        if let Some(error) = &error
            && connection.status().connected()
            && told.as_ref() != Some(error)
        {
            log::topology_check_failed(error);
        }
        told = error;
        // A queue without a leader has nothing to tell either: both are 0 then.
        if let Ok(QueueCounts { messages: 1.., consumers: 0 }) =
            topology.request_queue_counts(&connection).await
        {
            return BrokerError::new(
                "RabbitMQ lost the consumer: the queue has messages and no consumer",
            );
        }
    }
}
