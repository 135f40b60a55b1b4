//! A worker's session with RabbitMQ: two connections, a consumer and a publisher.
//!
//! Two connections, because RabbitMQ blocks one that publishes while a memory or disk alarm is on,
//! and lapin then writes nothing on it, acks included. If either is lost, both are replaced.

use std::{pin::pin, sync::Arc};

use futures_util::{StreamExt, stream};
use lapin::Event;
use tokio::time::{sleep, timeout};

use super::{
    connection::{CLOSE_TIMEOUT, Connection, FrameMax, Role, STATUS_INTERVAL},
    consumer::Consumer,
    error::BrokerError,
    log,
    publisher::Publisher,
    topology::{Topology, watch},
};
use crate::{
    config::BrokerSettings,
    telemetry::{log_limit::Outage, metrics::Metrics},
};

pub(crate) struct BrokerSession {
    consuming: Connection,
    publishing: Connection,
    topology: Arc<Topology>,
    pub(crate) consumer: Consumer,
    pub(crate) publisher: Publisher,
}

impl BrokerSession {
    /// Opens both connections, declares or checks the topology, and starts to consume.
    pub(crate) async fn open(
        settings: &BrokerSettings,
        concurrency: u16,
        frame_max: FrameMax,
        metrics: Arc<Metrics>,
    ) -> Result<Self, BrokerError> {
        // In sequence: while RabbitMQ is down, each try costs one connection attempt instead of
        // two.
        let publishing = Connection::open(&settings.url, Role::Publisher(frame_max)).await?;
        let consuming = Connection::open(&settings.url, Role::Consumer(frame_max)).await?;
        let topology = Arc::new(Topology::new(settings));
        topology.ensure(&publishing.lapin).await?;
        let consumer = Consumer::start(&consuming.lapin, &settings.queue).await?;
        let connection = Arc::clone(&publishing.lapin);
        let publisher = Publisher::new(connection, Arc::clone(&topology), concurrency, metrics);
        Ok(Self { consuming, publishing, topology, consumer, publisher })
    }

    /// Waits until a connection or the consumer is lost.
    ///
    /// Keeps the topology declared meanwhile.
    pub(crate) fn wait_for_fault(&self) -> impl Future<Output = BrokerError> + Send + 'static {
        let connections = [&self.consuming, &self.publishing].map(|one| Arc::clone(&one.lapin));
        let [consuming, publishing] =
            connections.each_ref().map(|one| one.events_listener().boxed());
        let mut events = stream::select(consuming, publishing);
        // On the consuming connection, which RabbitMQ never blocks.
        let watch = watch(Arc::clone(&self.topology), Arc::clone(&self.consuming.lapin));
        async move {
            let mut watch = pin!(watch);
            let mut outage = Outage::new(&log::PUBLISHING_BLOCKED_LIMIT);
            let connected = || connections.iter().all(|connection| connection.status().connected());
            loop {
                tokio::select! {
                    event = events.next() => match event {
                        // lapin also reports the error of a single channel here; its user handles
                        // that.
                        Some(Event::Error(error)) => if !connected() {
                            return BrokerError::connection_lost("connection lost", &error);
                        },
                        Some(Event::ConnectionBlocked(_)) => log::publishing_blocked(&mut outage),
                        Some(Event::ConnectionUnblocked) => log::publishing_unblocked(&mut outage),
                        Some(_) => {}
                        None => return BrokerError::new("connection lost"),
                    },
                    // Does not rely on events alone.
                    () = sleep(STATUS_INTERVAL) => if !connected() {
                        return BrokerError::new("connection closed");
                    },
                    lost = &mut watch => return lost,
                }
            }
        }
    }

    /// Whether deliveries in flight can still be settled.
    ///
    /// If not, RabbitMQ redelivers them.
    pub(crate) fn can_settle(&self) -> bool {
        self.consumer.is_open() && self.publishing.lapin.status().connected()
    }

    /// Waits until [`Self::can_settle`] is false.
    pub(crate) async fn wait_until_lost(&mut self) {
        while self.can_settle() {
            sleep(STATUS_INTERVAL).await;
        }
    }

    /// Closes both connections, within 2 s.
    pub(crate) async fn close(self) {
        // The consuming channel first. RabbitMQ can drop acks that arrive just before a connection
        // is closed, and redeliver what they acked (rabbitmq-server#10327, open).
        let _ = timeout(CLOSE_TIMEOUT, self.consumer.close()).await;
        tokio::join!(self.consuming.close(), self.publishing.close());
    }
}
