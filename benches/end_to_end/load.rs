//! The two ends of the queue: requests in, events out.

use std::{
    collections::{HashMap, hash_map::Entry},
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer,
    ExchangeKind, PublisherConfirm,
    options::{
        BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions,
        QueueBindOptions, QueueDeclareOptions, QueuePurgeOptions,
    },
    types::FieldTable,
};
use tokio::time::{sleep, timeout};

use crate::Result;

/// Without an event for so long, none comes any more.
const PATIENCE: Duration = Duration::from_secs(60);

/// Connections of our own to RabbitMQ.
pub(crate) struct Load {
    /// Where RabbitMQ is.
    pub(crate) url: String,
    /// The exchange of events.
    pub(crate) exchange: String,
    /// Where requests go.
    pub(crate) requests: Requests,
    /// What became of them.
    pub(crate) events: Events,
    connections: [Connection; 2],
}

/// The way in.
pub(crate) struct Requests {
    /// The request queue.
    pub(crate) queue: String,
    channel: Channel,
}

/// The way out.
pub(crate) struct Events(Consumer);

/// When each request was answered.
pub(crate) type Heard = HashMap<String, Instant>;

impl Load {
    pub(crate) async fn connect(url: &str) -> Result<Self> {
        let connect = || Connection::connect(url, ConnectionProperties::default());
        let (publisher, consumer) = (connect().await?, connect().await?);
        let publishing = publisher.create_channel().await?;
        publishing.confirm_select(ConfirmSelectOptions::default()).await?;
        let channel = consumer.create_channel().await?;
        let queue = format!("bench-{}", std::process::id());
        let exchange = format!("{queue}-events");
        let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
        let none = FieldTable::default;
        let topic = ExchangeKind::Topic;
        channel.exchange_declare(exchange.as_str().into(), topic, durable, none()).await?;
        let own = QueueDeclareOptions { exclusive: true, ..Default::default() };
        let events = channel.queue_declare("".into(), own, none()).await?.name().clone();
        let bind = QueueBindOptions::default();
        let from = exchange.as_str().into();
        channel.queue_bind(events.clone(), from, "handoff.#".into(), bind, none()).await?;
        let unacked = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let events = channel.basic_consume(events, "".into(), unacked, none()).await?;
        let requests = Requests { queue, channel: publishing };
        let (events, connections) = (Events(events), [publisher, consumer]);
        Ok(Self { url: url.to_owned(), exchange, requests, events, connections })
    }

    /// Empties the request queue, and tells how many requests were left in it.
    pub(crate) async fn clear(&self) -> Result<u32> {
        let name = self.requests.queue.as_str().into();
        Ok(self.requests.channel.queue_purge(name, QueuePurgeOptions::default()).await?)
    }

    /// Waits until the request queue is there.
    pub(crate) async fn declared(&self) -> Result<()> {
        for _ in 0..200 {
            let channel = self.connections[1].create_channel().await?;
            let there = QueueDeclareOptions { passive: true, ..Default::default() };
            let name = self.requests.queue.as_str().into();
            if channel.queue_declare(name, there, FieldTable::default()).await.is_ok() {
                return Ok(());
            }
            sleep(Duration::from_millis(50)).await;
        }
        Err("the worker does not declare its queue".into())
    }
}

impl Requests {
    /// Sends one request.
    pub(crate) async fn send(&self, id: &str, user: &str) -> Result<PublisherConfirm> {
        let body = format!(
            r#"{{"requestId":"{id}","userId":"{user}","metadata":{{"plan":"gold","country":"DE","returnTo":"https://app.example/done?from=verification","attempt":1}}}}"#
        );
        let properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_delivery_mode(2)
            .with_correlation_id(id.into());
        let (exchange, queue) = ("".into(), self.queue.as_str().into());
        let options = BasicPublishOptions::default();
        let body = body.as_bytes();
        Ok(self.channel.basic_publish(exchange, queue, options, body, properties).await?)
    }

    /// Has so many requests wait in the queue; `who` names their ids and users.
    pub(crate) async fn fill(
        &self,
        requests: usize,
        who: impl Fn(usize) -> (String, String),
    ) -> Result<()> {
        let mut confirms = Vec::new();
        for number in 0..requests {
            let (id, user) = who(number);
            confirms.push(self.send(&id, &user).await?);
        }
        for confirm in confirms {
            match confirm.await? {
                Confirmation::Ack(None) => {}
                other => return Err(format!("a request was not taken: {other:?}").into()),
            }
        }
        Ok(())
    }
}

impl Events {
    /// Hears events until so many more are in. Each request has one.
    pub(crate) async fn hear(&mut self, heard: &mut Heard, more: usize) -> Result<()> {
        let until = heard.len() + more;
        while heard.len() < until {
            let event = timeout(PATIENCE, self.0.next()).await;
            let event = event
                .map_err(|_| format!("an event did not come: {} of {until} did", heard.len()))?
                .ok_or("the subscription to events ended")??;
            let now = Instant::now();
            if event.routing_key.as_str() != "handoff.ready" {
                return Err(format!("a request failed: {:?}", event.data).into());
            }
            let id = event.properties.correlation_id().as_ref().ok_or("an event without an id")?;
            match heard.entry(id.to_string()) {
                Entry::Vacant(entry) => drop(entry.insert(now)),
                Entry::Occupied(entry) => {
                    return Err(format!(
                        "two events for {}: {}",
                        entry.key(),
                        String::from_utf8_lossy(&event.data)
                    )
                    .into());
                }
            }
        }
        Ok(())
    }
}
