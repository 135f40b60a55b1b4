//! Publishes requests and receives events.

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

/// How long to wait for the next event before the run fails.
const EVENT_TIMEOUT: Duration = Duration::from_secs(60);

/// The load generator, with connections of its own to RabbitMQ.
pub(crate) struct Load {
    /// The exchange of events.
    pub(crate) exchange: String,
    pub(crate) requests: Requests,
    pub(crate) events: Events,
    connections: [Connection; 2],
}

/// Publishes requests.
pub(crate) struct Requests {
    pub(crate) queue: String,
    channel: Channel,
}

/// Receives events.
pub(crate) struct Events(Consumer);

/// When the event of each request arrived, by request id.
pub(crate) type EventTimes = HashMap<String, Instant>;

impl Load {
    pub(crate) async fn connect(url: &str) -> Result<Self> {
        let connect = || Connection::connect(url, ConnectionProperties::default());
        let publisher = connect().await?;
        let consumer = connect().await?;
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
        let events = Events(events);
        let connections = [publisher, consumer];
        Ok(Self { exchange, requests, events, connections })
    }

    /// Purges the request queue, and returns how many requests were left in it.
    pub(crate) async fn purge(&self) -> Result<u32> {
        let name = self.requests.queue.as_str().into();
        Ok(self.requests.channel.queue_purge(name, QueuePurgeOptions::default()).await?)
    }

    /// Waits until a worker has declared the request queue.
    pub(crate) async fn wait_for_queue(&self) -> Result<()> {
        for _ in 0..200 {
            let channel = self.connections[1].create_channel().await?;
            let passive = QueueDeclareOptions { passive: true, ..Default::default() };
            let name = self.requests.queue.as_str().into();
            if channel.queue_declare(name, passive, FieldTable::default()).await.is_ok() {
                return Ok(());
            }
            sleep(Duration::from_millis(50)).await;
        }
        Err("the worker did not declare its queue within 10 s".into())
    }
}

impl Requests {
    /// Publishes a request.
    pub(crate) async fn publish(&self, id: &str, user: &str) -> Result<PublisherConfirm> {
        let body = format!(
            r#"{{"requestId":"{id}","userId":"{user}","metadata":{{"plan":"gold","country":"DE","returnTo":"https://app.example/done?from=verification","attempt":1}}}}"#
        );
        let properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_delivery_mode(2)
            .with_correlation_id(id.into());
        let exchange = "".into();
        let queue = self.queue.as_str().into();
        let options = BasicPublishOptions::default();
        let body = body.as_bytes();
        Ok(self.channel.basic_publish(exchange, queue, options, body, properties).await?)
    }

    /// Publishes `count` requests and waits for the confirms. `name` returns the id and the user of
    /// each.
    pub(crate) async fn publish_all(
        &self,
        count: usize,
        name: impl Fn(usize) -> (String, String),
    ) -> Result<()> {
        let mut confirms = Vec::new();
        for number in 0..count {
            let (id, user) = name(number);
            confirms.push(self.publish(&id, &user).await?);
        }
        for confirm in confirms {
            match confirm.await? {
                Confirmation::Ack(None) => {}
                other => return Err(format!("a request was not confirmed: {other:?}").into()),
            }
        }
        Ok(())
    }
}

impl Events {
    /// Receives `more` events. A failed request or a repeated event is an error.
    pub(crate) async fn receive(&mut self, times: &mut EventTimes, more: usize) -> Result<()> {
        let until = times.len() + more;
        while times.len() < until {
            let event = timeout(EVENT_TIMEOUT, self.0.next()).await;
            let event = event
                .map_err(|_| format!("timed out: {} of {until} events arrived", times.len()))?
                .ok_or("RabbitMQ cancelled the consumer of events")??;
            let now = Instant::now();
            if event.routing_key.as_str() != "handoff.ready" {
                return Err(format!("a request failed: {:?}", event.data).into());
            }
            let id = event
                .properties
                .correlation_id()
                .as_ref()
                .ok_or("an event has no correlation id")?;
            match times.entry(id.to_string()) {
                Entry::Vacant(entry) => drop(entry.insert(now)),
                Entry::Occupied(entry) => {
                    return Err(format!(
                        "a repeated event for {}: {}",
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
