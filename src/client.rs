//! The other side of the queue: publish requests, and hear what becomes of them.
//!
//! What `handoff request` and `handoff demo` are made of, and a pattern for a producer of your own.

use std::sync::Arc;

use futures_util::StreamExt;
use lapin::{
    BasicProperties,
    options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions},
    types::{FieldTable, ShortString},
};
use serde::Deserialize;

use crate::{
    broker::{
        BrokerError, Connection, PublishError, Publisher, QueueCounts, Role, Topology, rpc,
        short_string,
    },
    config::BrokerSettings,
    message::{FAILED, READY, REQUESTED},
    telemetry::metrics::Metrics,
};

/// Requests published at once.
const CONCURRENCY: u16 = 64;

/// A connection that publishes requests and a subscription to all events.
pub(crate) struct Client {
    connection: Connection,
    publisher: Publisher,
    request_exchange: String,
    events: lapin::Consumer,
}

/// An event, as far as it is read here.
#[derive(Deserialize)]
pub(crate) struct Received {
    /// `handoff.ready` or `handoff.failed`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What it says.
    pub data: ReceivedData,
    /// The whole event, on one line.
    #[serde(skip)]
    pub json: String,
}

/// What an event says, as far as it is read here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ReceivedData {
    /// The request it answers.
    pub request_id: String,
    /// Who it is for, where that is known.
    pub user_id: Option<String>,
    /// The link, with `handoff.ready`. A bearer secret.
    pub url: Option<String>,
    /// Whether the link was there before, with `handoff.ready`.
    pub reused: Option<bool>,
    /// Cause there is none, with `handoff.failed`.
    pub reason: Option<ReceivedReason>,
}

/// Cause there is no link.
#[derive(Deserialize)]
pub(crate) struct ReceivedReason {
    /// For people.
    pub message: String,
}

impl Client {
    /// Connects, makes sure that the topology is there, and subscribes to all events. From here on
    /// none is missed.
    ///
    /// # Errors
    /// The first thing that does not work.
    pub(crate) async fn connect(config: &BrokerSettings) -> Result<Self, BrokerError> {
        let connection = Connection::open(&config.url, Role::Client).await?;
        let topology = Arc::new(Topology::new(config));
        topology.ensure(connection.lapin()).await?;
        let subscribed = subscribe(connection.lapin(), topology.event_exchange());
        let events = rpc("subscribe to events", subscribed).await?;
        let request_exchange = topology.request_exchange().to_owned();
        // Nobody scrapes a command.
        let metrics = Metrics::new();
        let publisher =
            Publisher::new(Arc::clone(connection.lapin()), topology, CONCURRENCY, metrics);
        Ok(Self { connection, publisher, request_exchange, events })
    }

    /// Who consumes requests at the moment, and how many wait.
    ///
    /// # Errors
    /// The connection is lost.
    pub(crate) async fn request_queue_counts(&self) -> Result<QueueCounts, BrokerError> {
        self.publisher.topology().request_queue_counts(self.connection.lapin()).await
    }

    /// A handle that publishes while this one waits for events.
    pub(crate) fn requester(&self) -> Requester {
        Requester {
            publisher: self.publisher.clone(),
            request_exchange: self.request_exchange.clone(),
        }
    }

    /// The next event, whoever it is for.
    ///
    /// # Errors
    /// The connection is lost.
    pub(crate) async fn next_event(&mut self) -> Result<Received, BrokerError> {
        loop {
            match self.events.next().await {
                Some(Ok(delivery)) => {
                    // Whatever else comes along this exchange is not for us.
                    if let Some(event) = read(&delivery.data) {
                        return Ok(event);
                    }
                }
                Some(Err(error)) => return Err(BrokerError::during("wait for events", &error)),
                None => return Err(BrokerError::new("RabbitMQ ended the subscription to events")),
            }
        }
    }

    /// Closes the connection.
    pub(crate) async fn close(self) {
        // The subscription's queue goes with the connection, in good order or not.
        self.connection.close().await;
    }
}

/// Publishes requests.
#[derive(Clone)]
pub(crate) struct Requester {
    publisher: Publisher,
    request_exchange: String,
}

impl Requester {
    /// Publishes a request's data object under an id, and waits until RabbitMQ has it.
    ///
    /// # Errors
    /// RabbitMQ did not take it, or may not have.
    pub(crate) async fn publish(&self, id: &str, body: &[u8]) -> Result<(), PublishError> {
        let now = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
        let properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_delivery_mode(2)
            .with_message_id(short_string(id))
            .with_timestamp(now.unwrap_or_default().as_secs());
        self.publisher.publish(&self.request_exchange, REQUESTED, properties, body).await
    }
}

/// A queue of our own, which ends with the connection.
async fn subscribe(
    connection: &lapin::Connection,
    exchange: &str,
) -> lapin::Result<lapin::Consumer> {
    let channel = connection.create_channel().await?;
    let options = QueueDeclareOptions {
        exclusive: true,
        auto_delete: true,
        ..QueueDeclareOptions::default()
    };
    let queue =
        channel.queue_declare(ShortString::default(), options, FieldTable::default()).await?;
    for kind in [READY, FAILED] {
        let bind = QueueBindOptions::default();
        channel
            .queue_bind(
                queue.name().clone(),
                short_string(exchange),
                kind.into(),
                bind,
                FieldTable::default(),
            )
            .await?;
    }
    let options =
        BasicConsumeOptions { no_ack: true, exclusive: true, ..BasicConsumeOptions::default() };
    channel
        .basic_consume(queue.name().clone(), ShortString::default(), options, FieldTable::default())
        .await
}

fn read(body: &[u8]) -> Option<Received> {
    let mut event: Received = serde_json::from_slice(body).ok()?;
    let json = std::str::from_utf8(body).ok()?;
    // As it was published; only one that takes several lines is written anew.
    event.json = match json.contains(['\n', '\r']) {
        false => json.to_owned(),
        true => serde_json::from_str::<serde_json::Value>(json).ok()?.to_string(),
    };
    Some(event)
}
