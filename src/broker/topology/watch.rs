//! Watches the topology and the queues' depths while a worker consumes.

use std::{sync::Arc, time::Duration};

use lapin::{Channel, Connection, types::FieldTable};
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    declare::{QueueCounts, declare_queue},
    definition::Topology,
    progress::{Change, Progress},
};
use crate::{
    broker::{
        amqp::{answer, close_channel, object_name, open_channel},
        error::BrokerError,
        log,
    },
    telemetry::metrics::{Metrics, QueueDepths},
};

/// How long [`watch`] may miss a fault. Declaring existing objects costs RabbitMQ little.
const WATCH_INTERVAL: Duration = Duration::from_secs(10);

/// Limit of declaring or checking, so that the next look comes before the last one is too old.
const ENSURE_LIMIT: Duration = Duration::from_secs(4);
const ENSURE: &str = "declare or check the topology";

/// Removes the depths from the metrics when the watch ends, with its connection.
struct Watching(Arc<Metrics>);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.queues.clear();
    }
}

/// Declares or checks the topology every 10 s, and at first unless `ensured`, until RabbitMQ has lost the
/// consumer, and records how long the queues are.
///
/// A deleted queue ends its consumer, and a missing exchange fails a publish; both are noticed at
/// once. Two faults look like an empty queue instead: the request exchange or its binding was
/// deleted, so that no request arrives, or RabbitMQ has lost the consumer and keeps the channel
/// open (as in rabbitmq-server#641).
///
/// Logs an error once and continues: requests can still be consumed.
pub(in crate::broker) async fn watch(
    topology: Arc<Topology>,
    connection: Arc<Connection>,
    metrics: Arc<Metrics>,
    ensured: bool,
) -> BrokerError {
    let watching = Watching(metrics);
    let mut logged = None;
    let mut progress: Vec<_> = topology.retries().map(|_| Progress::default()).collect();
    if ensured {
        look(&topology, &connection, &watching.0, &mut progress).await;
        sleep(WATCH_INTERVAL).await;
    }
    loop {
        let limit = Instant::now() + ENSURE_LIMIT;
        let ensure = timeout_at(limit, topology.ensure(&connection)).await;
        if topology.declare {
            // Without its binding, the queue of endings looks empty, too, and its consumer does not notice. What
            // prevents a declaration is logged where it is consumed from.
            let _ = timeout_at(limit, topology.ensure_ended(&connection)).await;
        }
        let error = ensure.unwrap_or_else(|_| Err(BrokerError::timeout(ENSURE))).err();
        // The session reports a lost connection.
        if let Some(error) = &error
            && connection.status().connected()
            && logged.as_ref() != Some(error)
        {
            log::topology_check_failed(error);
        }
        logged = error;
        // A queue without a leader reports 0 for both.
        if let Some(QueueCounts { messages: 1.., consumers: 0 }) =
            look(&topology, &connection, &watching.0, &mut progress).await
        {
            return BrokerError::new(
                "RabbitMQ lost the consumer: the queue has messages and no consumer",
            );
        }
        sleep(WATCH_INTERVAL).await;
    }
}

/// Counts the messages of each queue, and records them. Returns the counts of the request queue.
async fn look(
    topology: &Topology,
    connection: &Connection,
    metrics: &Metrics,
    progress: &mut [Progress],
) -> Option<QueueCounts> {
    let mut channel = None;
    let request = counts(topology.request_queue(), connection, &mut channel).await;
    let dead = counts(topology.dead_queue(), connection, &mut channel).await;
    let ended = counts(topology.ended_queue(), connection, &mut channel).await;
    if let Some(QueueCounts { messages: 1.., consumers: 0 }) = ended {
        topology.ended_unconsumed.notify_waiters();
    }
    let mut retry = Some(0_u32);
    for ((queue, retry_queue), progress) in topology.retries().zip(&mut *progress) {
        let messages = counts(queue, connection, &mut channel).await.map(|counts| counts.messages);
        if let Some(messages) = messages {
            match progress.look(retry_queue.delay, messages, retry_queue.returned(), Instant::now())
            {
                Change::None => {}
                Change::Stuck { for_time } => log::retries_stuck(queue, messages, for_time),
                Change::Moving => log::retries_moving(queue),
            }
        }
        // A sum without one of its queues would look like progress.
        retry = retry.zip(messages).map(|(sum, messages)| sum.saturating_add(messages));
    }
    if let Some(channel) = channel {
        close_channel(&channel).await;
    }
    metrics.queues.set(QueueDepths {
        request: request.map(|counts| counts.messages),
        retry,
        ended: ended.map(|counts| counts.messages),
        dead: dead.map(|counts| counts.messages),
        consumers: request.map(|counts| counts.consumers),
        stuck: progress.iter().filter(|progress| progress.is_stuck()).count(),
    });
    request
}

/// Counts the messages and consumers of a queue. `None` if it cannot be seen.
async fn counts(
    queue: &str,
    connection: &Connection,
    channel: &mut Option<Channel>,
) -> Option<QueueCounts> {
    if !connection.status().connected() {
        return None;
    }
    // RabbitMQ closes the channel if a queue does not exist.
    let open = match channel.take().filter(|channel| channel.status().connected()) {
        Some(open) => open,
        None => open_channel(connection).await.ok()?,
    };
    let name = object_name(queue).ok()?;
    let declared = declare_queue(&open, name, true, FieldTable::default());
    // A channel that was refused or does not answer is not used again.
    let counts = answer("look up a queue", declared).await.ok()?.ok()?;
    *channel = Some(open);
    Some(counts)
}
