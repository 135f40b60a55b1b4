//! The worker's two connections, and what runs on them.

use std::sync::Arc;

use futures_util::{StreamExt, stream};
use lapin::Event;
use tokio::time::{sleep, timeout};

use super::{
    connection::{CLOSE_LIMIT, Connection, FrameMax, LOOK_EVERY, Role},
    consumer::Consumer,
    error::BrokerError,
    log,
    publisher::Publisher,
    topology::{Topology, watch},
};
use crate::{config::BrokerSettings, telemetry::metrics::Metrics};

/// Both connections, with the consumer and the publisher on them.
pub struct BrokerSession {
    consuming: Connection,
    publishing: Connection,
    topology: Arc<Topology>,
    /// Where deliveries come from.
    pub consumer: Consumer,
    /// Where events, retry copies and dead letters go.
    pub publisher: Publisher,
}

impl BrokerSession {
    /// Connects twice, declares or checks the topology, and starts to consume.
    ///
    /// # Errors
    /// The first thing that does not work. Nothing of it is left behind.
    pub async fn open(
        config: &BrokerSettings,
        concurrency: u16,
        frames: FrameMax,
        metrics: Arc<Metrics>,
    ) -> Result<Self, BrokerError> {
        // One after the other: where there is no answer, one attempt is enough to find out.
        let publishing = Connection::open(&config.url, Role::Publisher(frames)).await?;
        let consuming = Connection::open(&config.url, Role::Consumer(frames)).await?;
        let topology = Arc::new(Topology::new(config));
        topology.ensure(publishing.lapin()).await?;
        let consumer = Consumer::start(consuming.lapin(), &config.queue).await?;
        let publisher = Publisher::new(
            Arc::clone(publishing.lapin()),
            Arc::clone(&topology),
            concurrency,
            metrics,
        );
        Ok(Self { consuming, publishing, topology, consumer, publisher })
    }

    /// Waits until one of the connections breaks, and says how. Looks after the topology meanwhile.
    pub fn wait_for_fault(&self) -> impl Future<Output = BrokerError> + Send + 'static {
        let connections = [&self.consuming, &self.publishing].map(|one| Arc::clone(one.lapin()));
        let [consuming, publishing] =
            connections.each_ref().map(|one| one.events_listener().boxed());
        let mut events = stream::select(consuming, publishing);
        // On the connection that is never blocked.
        let upkeep = watch(Arc::clone(&self.topology), Arc::clone(self.consuming.lapin()));
        async move {
            let mut upkeep = std::pin::pin!(upkeep);
            let mut publishing = log::PublishingLog::new();
            let connected = || connections.iter().all(|connection| connection.status().connected());
            loop {
                tokio::select! {
                    event = events.next() => match event {
                        // One channel's trouble comes along here, too, and is told elsewhere.
                        Some(Event::Error(error)) => if !connected() {
                            return BrokerError::connection_lost("the connection broke", &error);
                        },
                        Some(Event::ConnectionBlocked(_)) => publishing.blocked(),
                        Some(Event::ConnectionUnblocked) => publishing.unblocked(),
                        Some(_) => {}
                        None => return BrokerError::new("the connection is gone"),
                    },
                    // Should an event ever be missed, this is noticed all the same.
                    () = sleep(LOOK_EVERY) => if !connected() {
                        return BrokerError::new("the connection is closed");
                    },
                    forgotten = &mut upkeep => return forgotten,
                }
            }
        }
    }

    /// Counts those who consume from the request queue.
    pub fn consumer_count(&self) -> ConsumerCount {
        ConsumerCount(self.publisher.clone())
    }

    /// Waits until what was delivered cannot be answered any more.
    pub async fn wait_until_lost(&mut self) {
        while self.can_settle() {
            sleep(LOOK_EVERY).await;
        }
    }

    /// Whether what was delivered can still be answered. If not, RabbitMQ delivers it again.
    pub fn can_settle(&self) -> bool {
        self.consumer.is_open() && self.publishing.lapin().status().connected()
    }

    /// Takes no more deliveries and hands back what was fetched ahead. What is in flight can still be
    /// settled.
    pub async fn stop_consuming(&mut self) {
        self.consumer.stop().await;
    }

    /// Closes both connections in good order, or at least quickly.
    pub async fn close(self) {
        // First, and by itself: what ends a connection overtakes acknowledgements within RabbitMQ.
        let _ = timeout(CLOSE_LIMIT, self.consumer.close()).await;
        tokio::join!(self.consuming.close(), self.publishing.close());
    }
}

/// Counts those who consume from the request queue, for as long as the connection stands.
pub struct ConsumerCount(Publisher);

impl ConsumerCount {
    /// How many there are now.
    ///
    /// # Errors
    /// The connection is lost, or the queue is gone.
    pub async fn query(&self) -> Result<u32, BrokerError> {
        self.0.request_queue_counts().await.map(|traffic| traffic.consumers)
    }
}
