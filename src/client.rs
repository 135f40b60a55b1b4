//! A client of the worker: publishes requests and receives their events.
//!
//! `handoff request`, `forget` and `demo` use it. It can serve as a model for your own producer.

use std::sync::Arc;

use futures_util::StreamExt;
use lapin::{
    BasicProperties,
    options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions},
    types::FieldTable,
};
use serde::Deserialize;

use crate::{
    broker::{
        BrokerError, Connection, PublishError, Publisher, QueueCounts, Topology, queue_counts, rpc,
        short_string,
    },
    config::BrokerSettings,
    message::{ENDED, FAILED, READY, REQUESTED},
    telemetry::metrics::Metrics,
};

/// Maximum number of unconfirmed publishes.
const CONCURRENCY: u16 = 64;

/// A connection that publishes requests, and a subscription to all events.
pub(crate) struct Client {
    connection: Connection,
    pub(crate) requester: Requester,
    events: lapin::Consumer,
}

/// Publishes requests. A clone can publish while the client waits for events.
#[derive(Clone)]
pub(crate) struct Requester(Publisher);

/// A connection that publishes ends of verifications. It declares nothing, as long as the exchange exists.
pub(crate) struct EndingClient {
    connection: Connection,
    publisher: Publisher,
}

/// The parts of an event that the commands use.
#[derive(Deserialize)]
pub(crate) struct ReceivedEvent {
    /// `handoff.ready` or `handoff.failed`.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) data: ReceivedData,
    /// The whole event, on one line.
    #[serde(skip)]
    pub(crate) json: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ReceivedData {
    pub(crate) request_id: String,
    /// Missing if the request has no valid user id.
    pub(crate) user_id: Option<String>,
    pub(crate) session_id: Option<String>,
    /// The link of `handoff.ready`. A bearer secret.
    pub(crate) url: Option<String>,
    /// Missing in events of release 0.1.
    pub(crate) mobile_url: Option<String>,
    /// Of `handoff.ready`: whether the link existed before.
    pub(crate) reused: Option<bool>,
    /// Of `handoff.failed`: why there is no link.
    pub(crate) reason: Option<ReceivedReason>,
}

#[derive(Deserialize)]
pub(crate) struct ReceivedReason {
    pub(crate) message: String,
}

impl Client {
    /// Connects, ensures the topology, and subscribes to all events published from now on.
    pub(crate) async fn connect(settings: &BrokerSettings) -> Result<Self, BrokerError> {
        let (connection, publisher) = open(settings).await?;
        let topology = publisher.topology();
        topology.ensure(&connection.lapin).await?;
        let subscribed = subscribe(&connection.lapin, &topology.event_exchange);
        let events = rpc("subscribe to events", subscribed).await?;
        Ok(Self { connection, requester: Requester(publisher), events })
    }

    /// Ensures the queue of endings as well, and counts the consumers and messages of both queues that workers
    /// consume from. Also returns their names.
    pub(crate) async fn ensure_all_queues(&self) -> Result<[(&str, QueueCounts); 2], BrokerError> {
        let (connection, topology) = (&self.connection.lapin, self.requester.0.topology());
        topology.ensure_ended(connection).await?;
        let (requests, endings) = (topology.request_queue(), topology.ended_queue());
        let counts = queue_counts(connection, requests).await?;
        Ok([(requests, counts), (endings, queue_counts(connection, endings).await?)])
    }

    /// Waits for the next event, of any request.
    pub(crate) async fn next_event(&mut self) -> Result<ReceivedEvent, BrokerError> {
        while let Some(delivery) = self.events.next().await {
            let delivery =
                delivery.map_err(|error| BrokerError::during("wait for events", &error))?;
            // Skips messages of other kinds that are published to this exchange.
            if let Some(event) = parse(&delivery.data) {
                return Ok(event);
            }
        }
        Err(BrokerError::new("RabbitMQ ended the subscription to events"))
    }

    /// Closes the connection. RabbitMQ then deletes the exclusive queue of the subscription.
    pub(crate) async fn close(self) {
        self.connection.close().await;
    }
}

impl Requester {
    /// Publishes a request's data object with an id, and waits for RabbitMQ's confirm.
    pub(crate) async fn publish(&self, id: &str, body: &[u8]) -> Result<(), PublishError> {
        publish(&self.0, REQUESTED, id, body).await
    }

    /// Publishes an ending's data object with an id, and waits for RabbitMQ's confirm.
    pub(crate) async fn publish_ending(&self, id: &str, body: &[u8]) -> Result<(), PublishError> {
        publish(&self.0, ENDED, id, body).await
    }
}

impl EndingClient {
    pub(crate) async fn connect(settings: &BrokerSettings) -> Result<Self, BrokerError> {
        let (connection, publisher) = open(settings).await?;
        Ok(Self { connection, publisher })
    }

    /// The queue that a worker declares for endings.
    pub(crate) fn queue(&self) -> &str {
        self.publisher.topology().ended_queue()
    }

    /// Publishes an ending's data object with an id, and waits for RabbitMQ's confirm.
    pub(crate) async fn publish(&self, id: &str, body: &[u8]) -> Result<(), PublishError> {
        publish(&self.publisher, ENDED, id, body).await
    }

    pub(crate) async fn close(self) {
        self.connection.close().await;
    }
}

/// Connects to the first node that serves. Declares nothing.
async fn open(settings: &BrokerSettings) -> Result<(Connection, Publisher), BrokerError> {
    let connection = Connection::open_any(&settings.nodes.current()).await?;
    let topology = Arc::new(Topology::new(settings));
    // Not exported: a command serves no metrics.
    let metrics = Metrics::new();
    let publisher = Publisher::new(Arc::clone(&connection.lapin), topology, CONCURRENCY, metrics);
    Ok((connection, publisher))
}

/// Publishes a data object as a persistent message, and waits for RabbitMQ's confirm.
async fn publish(
    publisher: &Publisher,
    routing_key: &str,
    id: &str,
    body: &[u8],
) -> Result<(), PublishError> {
    let now = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
    let properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_delivery_mode(2)
        .with_message_id(short_string(id))
        .with_timestamp(now.unwrap_or_default().as_secs());
    let exchange = &publisher.topology().request_exchange;
    publisher.publish(exchange, routing_key, properties, body).await
}

/// Subscribes with an exclusive queue, which RabbitMQ deletes with the connection.
async fn subscribe(
    connection: &lapin::Connection,
    exchange: &str,
) -> lapin::Result<lapin::Consumer> {
    let channel = connection.create_channel().await?;
    let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
    let queue = channel.queue_declare("".into(), options, FieldTable::default()).await?;
    let queue = queue.name();
    for kind in [READY, FAILED] {
        let exchange = short_string(exchange);
        let options = QueueBindOptions::default();
        channel
            .queue_bind(queue.clone(), exchange, kind.into(), options, FieldTable::default())
            .await?;
    }
    let options = BasicConsumeOptions { no_ack: true, exclusive: true, ..Default::default() };
    channel.basic_consume(queue.clone(), "".into(), options, FieldTable::default()).await
}

fn parse(body: &[u8]) -> Option<ReceivedEvent> {
    let mut event: ReceivedEvent = serde_json::from_slice(body).ok()?;
    let json = std::str::from_utf8(body).ok()?;
    // Kept byte for byte, unless it must be brought onto one line.
    event.json = if json.contains(['\n', '\r']) {
        serde_json::from_str::<serde_json::Value>(json).ok()?.to_string()
    } else {
        json.to_owned()
    };
    Some(event)
}
