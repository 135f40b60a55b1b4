//! A worker's session with RabbitMQ: two connections, a consumer and a publisher.
//!
//! Two connections, because RabbitMQ blocks one that publishes while a memory or disk alarm is on,
//! and lapin then writes nothing on it, acks included. If either is lost, both are replaced.

use std::sync::Arc;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{
    connection::{CLOSE_TIMEOUT, Connection, FrameMax, Role},
    consumer::Consumer,
    delivery::Delivery,
    endings::EndingSource,
    error::BrokerError,
    loss::{Lifeline, LossWatch},
    nodes::NodeCursor,
    publisher::Publisher,
    settle::hand_back,
    topology::{Topology, watch},
};
use crate::{config::AmqpNodes, telemetry::metrics::Metrics};

pub(crate) struct BrokerSession {
    consuming: Connection,
    publishing: Connection,
    topology: Arc<Topology>,
    pub(crate) consumer: Consumer,
    pub(crate) publisher: Publisher,
    loss_watch: LossWatch,
    /// Whether the topology was declared or checked on these connections.
    ensured: bool,
    metrics: Arc<Metrics>,
    lost: CancellationToken,
    /// Cancelled when RabbitMQ delivers nothing more.
    stopped: CancellationToken,
}

impl BrokerSession {
    /// Opens both connections to one node, and starts to consume with this `prefetch`. At most this many
    /// `copies` are published at once.
    pub(crate) async fn open(
        topology: Arc<Topology>,
        nodes: &AmqpNodes,
        cursor: &NodeCursor,
        copies: u16,
        prefetch: u16,
        frame_max: FrameMax,
        metrics: Arc<Metrics>,
    ) -> Result<Self, BrokerError> {
        // In sequence: while RabbitMQ is down, each try costs one connection attempt instead of
        // two.
        let publishing = Connection::open(nodes, cursor, Role::Publisher(frame_max)).await?;
        let consuming = publishing.open_second(nodes, cursor, Role::Consumer(frame_max)).await?;
        let (consumer, ensured) =
            start_consumer(&topology, &publishing, &consuming, prefetch).await?;
        let connection = Arc::clone(&publishing.lapin);
        let publisher =
            Publisher::new(connection, Arc::clone(&topology), copies, Arc::clone(&metrics));
        let lifeline = Lifeline::new(
            Arc::clone(&consuming.lapin),
            Arc::clone(&publishing.lapin),
            consumer.channel(),
            publisher.close_reason(),
        );
        let lost = CancellationToken::new();
        let stopped = CancellationToken::new();
        let loss_watch = lifeline.watch(lost.clone(), stopped.clone());
        Ok(Self {
            consuming,
            publishing,
            topology,
            consumer,
            publisher,
            loss_watch,
            ensured,
            metrics,
            lost,
            stopped,
        })
    }

    /// Waits until a connection or the consumer is lost.
    ///
    /// Keeps the topology declared meanwhile.
    pub(crate) fn wait_for_fault(&self) -> impl Future<Output = BrokerError> + Send + 'static {
        let loss = self.loss_watch.wait();
        // On the consuming connection, which RabbitMQ never blocks.
        let watch = watch(
            Arc::clone(&self.topology),
            Arc::clone(&self.consuming.lapin),
            Arc::clone(&self.metrics),
            self.ensured,
        );
        async move {
            tokio::select! {
                lost = loss => lost,
                lost = watch => lost,
            }
        }
    }

    /// Cancelled as soon as the worker knows that the deliveries in flight are lost: RabbitMQ
    /// redelivers them, or will once they are requeued. Nothing may be published for them.
    pub(crate) fn lost(&self) -> &CancellationToken {
        &self.lost
    }

    /// Where endings come from.
    pub(crate) fn endings(&self) -> EndingSource {
        EndingSource {
            consuming: Arc::clone(&self.consuming.lapin),
            publishing: Arc::clone(&self.publishing.lapin),
            publisher: self.publisher.clone(),
            lost: self.lost.clone(),
        }
    }

    /// Stops consuming, and hands back the deliveries that were prefetched but not taken. One that has
    /// come back often is replaced by a copy.
    ///
    /// Deliveries in flight can still be settled.
    pub(crate) async fn stop_consuming(&mut self) {
        let consumer = &mut self.consumer;
        if !consumer.is_open() {
            return;
        }
        let prefetched = consumer.stop().await;
        self.stopped.cancel();
        hand_back(prefetched, &self.publisher, &self.lost).await;
    }

    /// Hands back a delivery whose request was not started.
    pub(crate) async fn hand_back(&mut self, delivery: Delivery) {
        hand_back(vec![delivery], &self.publisher, &self.lost).await;
    }

    /// Closes what is of no use any more once the deliveries are lost, so that RabbitMQ redelivers at
    /// once even those that a request in flight has not let go yet.
    pub(crate) async fn disconnect_lost(&mut self) {
        if self.consumer.is_open() {
            // The consuming channel still takes nacks.
            return self.publishing.disconnect().await;
        }
        tokio::join!(self.consuming.disconnect(), self.publishing.disconnect());
    }

    /// Closes both connections, within 2 s.
    pub(crate) async fn close(self) {
        // The consuming channel first. RabbitMQ can drop acks that arrive just before a connection
        // is closed, and redeliver what they acked (rabbitmq-server#10327, open).
        let _ = timeout(CLOSE_TIMEOUT, self.consumer.close()).await;
        tokio::join!(self.consuming.close(), self.publishing.close());
    }
}

/// Starts to consume, and returns whether the topology was declared or checked before.
///
/// That waits until later if this worker has done it before, or if RabbitMQ does not answer. While a node of a
/// cluster is frozen, RabbitMQ 3.10 does not answer a declaration of the binding, for as long as the other nodes
/// wait for that node (Erlang's `net_ticktime`: 45 to 75 s), but it delivers.
async fn start_consumer(
    topology: &Topology,
    publishing: &Connection,
    consuming: &Connection,
    prefetch: u16,
) -> Result<(Consumer, bool), BrokerError> {
    let start = || Consumer::start(&consuming.lapin, topology.request_queue(), prefetch);
    if topology.was_ensured() {
        // Fails if the queue was deleted meanwhile.
        match start().await {
            Err(error) if consuming.lapin.status().connected() && !error.is_timeout() => {}
            started => return Ok((started?, false)),
        }
    }
    match topology.ensure(&publishing.lapin).await {
        Ok(()) => Ok((start().await?, true)),
        Err(unanswered) if unanswered.is_timeout() => match start().await {
            Ok(consumer) => Ok((consumer, false)),
            Err(_) => Err(unanswered),
        },
        Err(refused) => Err(refused),
    }
}
