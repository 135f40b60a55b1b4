//! Keeps the topology declared while a worker consumes.
//!
//! A deleted queue ends its consumer, and a missing exchange fails a publish; both are noticed at
//! once. Two faults look like an empty queue instead: the request exchange or its binding was
//! deleted, so that no request arrives, or RabbitMQ has lost the consumer and keeps the channel
//! open (as in rabbitmq-server#641).

use std::{sync::Arc, time::Duration};

use lapin::Connection;
use tokio::time::sleep;

use super::{declare::QueueCounts, definition::Topology};
use crate::broker::{error::BrokerError, log};

/// How long these faults may go unnoticed.
///
/// Declaring existing objects costs RabbitMQ little.
const INTERVAL: Duration = Duration::from_secs(10);

/// Declares or checks the topology every 10 s, until RabbitMQ has lost the consumer.
///
/// Logs an error once and continues: requests can still be consumed.
pub(in crate::broker) async fn watch(
    topology: Arc<Topology>,
    connection: Arc<Connection>,
) -> BrokerError {
    let mut logged = None;
    loop {
        sleep(INTERVAL).await;
        let error = topology.ensure(&connection).await.err();
        // The session reports a lost connection.
        if let Some(error) = &error
            && connection.status().connected()
            && logged.as_ref() != Some(error)
        {
            log::topology_check_failed(error);
        }
        logged = error;
        // A queue without a leader reports 0 for both.
        if let Ok(QueueCounts { messages: 1.., consumers: 0 }) =
            topology.request_queue_counts(&connection).await
        {
            return BrokerError::new(
                "RabbitMQ lost the consumer: the queue has messages and no consumer",
            );
        }
    }
}
