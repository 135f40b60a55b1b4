//! A worker's session with RabbitMQ: two connections, a consumer and a publisher.
//!
//! Two connections, because RabbitMQ blocks one that publishes while a memory or disk alarm is on,
//! and lapin then writes nothing on it, acks included. If either is lost, both are replaced.

use std::{pin::pin, sync::Arc};

use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    connection::{CLOSE_TIMEOUT, Connection, FrameMax, Role},
    consumer::Consumer,
    delivery::Delivery,
    error::BrokerError,
    log,
    loss::{Lifeline, Notice},
    nodes::NodeCursor,
    publisher::Publisher,
    settle::hand_back,
    topology::{Topology, watch},
};
use crate::{
    config::{AmqpNodes, BrokerSettings},
    telemetry::{log_limit::Outage, metrics::Metrics},
};

pub(crate) struct BrokerSession {
    consuming: Connection,
    publishing: Connection,
    topology: Arc<Topology>,
    pub(crate) consumer: Consumer,
    pub(crate) publisher: Publisher,
    lifeline: Lifeline,
    metrics: Arc<Metrics>,
    lost: CancellationToken,
    /// Cancelled when RabbitMQ delivers nothing more.
    stopped: CancellationToken,
    _loss_watch: AbortOnDropHandle<()>,
}

impl BrokerSession {
    /// Opens both connections to one node, declares or checks the topology, and starts to consume.
    pub(crate) async fn open(
        settings: &BrokerSettings,
        nodes: &AmqpNodes,
        cursor: &NodeCursor,
        concurrency: u16,
        frame_max: FrameMax,
        metrics: Arc<Metrics>,
    ) -> Result<Self, BrokerError> {
        // In sequence: while RabbitMQ is down, each try costs one connection attempt instead of
        // two.
        let publishing = Connection::open(nodes, cursor, Role::Publisher(frame_max)).await?;
        let consuming = publishing.open_second(nodes, cursor, Role::Consumer(frame_max)).await?;
        let topology = Arc::new(Topology::new(settings));
        topology.ensure(&publishing.lapin).await?;
        let consumer = Consumer::start(&consuming.lapin, &settings.queue).await?;
        let lifeline = Lifeline::new(
            Arc::clone(&consuming.lapin),
            Arc::clone(&publishing.lapin),
            consumer.channel(),
        );
        let lost = CancellationToken::new();
        let stopped = CancellationToken::new();
        let loss_watch = lifeline.cancel_when_lost(lost.clone(), stopped.clone());
        let connection = Arc::clone(&publishing.lapin);
        let publisher =
            Publisher::new(connection, Arc::clone(&topology), concurrency, Arc::clone(&metrics));
        Ok(Self {
            consuming,
            publishing,
            topology,
            consumer,
            publisher,
            lifeline,
            metrics,
            lost,
            stopped,
            _loss_watch: loss_watch,
        })
    }

    /// Waits until a connection or the consumer is lost.
    ///
    /// Keeps the topology declared meanwhile.
    pub(crate) fn wait_for_fault(&self) -> impl Future<Output = BrokerError> + Send + 'static {
        let mut losses = self.lifeline.watch();
        // On the consuming connection, which RabbitMQ never blocks.
        let watch = watch(
            Arc::clone(&self.topology),
            Arc::clone(&self.consuming.lapin),
            Arc::clone(&self.metrics),
        );
        async move {
            let mut watch = pin!(watch);
            let mut outage = Outage::new(&log::PUBLISHING_BLOCKED_LIMIT);
            loop {
                tokio::select! {
                    notice = losses.next() => match notice {
                        Notice::Lost(error) => return error,
                        Notice::Blocked => log::publishing_blocked(&mut outage),
                        Notice::Unblocked => log::publishing_unblocked(&mut outage),
                    },
                    lost = &mut watch => return lost,
                }
            }
        }
    }

    /// Cancelled as soon as the worker knows that the deliveries in flight are lost: RabbitMQ
    /// redelivers them, or will once they are requeued. Nothing may be published for them.
    pub(crate) fn lost(&self) -> &CancellationToken {
        &self.lost
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
