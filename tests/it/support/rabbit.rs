//! A test's own view of RabbitMQ: publishes requests, hears events, looks into queues.

use futures_util::StreamExt;
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties, Consumer,
    options::*,
    types::{AMQPValue, FieldTable, ShortString},
};
use serde_json::Value;

use super::soon;

/// A message as it was found.
#[derive(Clone, Debug)]
pub struct Message {
    pub routing_key: String,
    pub properties: BasicProperties,
    pub body: Vec<u8>,
}

impl Message {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("the body is JSON")
    }

    /// The event's data.
    pub fn data(&self) -> Value {
        self.json()["data"].clone()
    }

    pub fn header(&self, name: &str) -> Option<&AMQPValue> {
        self.properties.headers().as_ref()?.inner().get(name)
    }

    /// A header that holds text.
    pub fn text(&self, name: &str) -> String {
        match self.header(name) {
            Some(AMQPValue::LongString(text)) => {
                String::from_utf8(text.as_bytes().to_vec()).unwrap()
            }
            other => panic!("header {name} is {other:?}"),
        }
    }
}

/// A table of headers or arguments.
pub fn table(entries: &[(&str, AMQPValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert((*name).into(), value.clone());
    }
    table
}

/// Text in a table.
pub fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

pub struct Rabbit {
    connection: Connection,
    channel: Channel,
    pub queue: String,
    pub request_exchange: String,
    pub event_exchange: String,
    events: Option<Consumer>,
}

impl Rabbit {
    /// Connects. The names are a test's own.
    pub async fn connect(url: &str, name: &str) -> Self {
        let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        Self {
            connection,
            channel,
            queue: format!("{name}.requested"),
            request_exchange: format!("{name}.requests"),
            event_exchange: format!("{name}.events"),
            events: None,
        }
    }

    /// Binds a queue for events, so that from now on none is unroutable and none is missed.
    pub async fn hear_events(&mut self) {
        let options =
            QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
        let queue = self.keep_events("", options).await;
        self.hear(queue).await;
    }

    /// The same, with a queue that a restart of RabbitMQ does not take away.
    pub async fn hear_events_durably(&mut self) {
        let queue = self.keep_events_durably().await;
        self.hear(queue).await;
    }

    /// Binds that queue, and hears nothing yet: a crash of RabbitMQ finds no event on its way here.
    pub async fn keep_events_durably(&self) -> ShortString {
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        self.keep_events(&format!("{}.heard", self.event_exchange), options).await
    }

    async fn keep_events(&self, queue: &str, options: QueueDeclareOptions) -> ShortString {
        let exchange: ShortString = self.event_exchange.as_str().into();
        let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
        let (channel, none) = (&self.channel, FieldTable::default);
        channel
            .exchange_declare(exchange.clone(), lapin::ExchangeKind::Topic, durable, none())
            .await
            .unwrap();
        let queue =
            channel.queue_declare(queue.into(), options, none()).await.unwrap().name().clone();
        channel
            .queue_bind(queue.clone(), exchange, "handoff.*".into(), Default::default(), none())
            .await
            .unwrap();
        queue
    }

    async fn hear(&mut self, queue: ShortString) {
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let consumed =
            self.channel.basic_consume(queue, "".into(), options, FieldTable::default()).await;
        self.events = Some(consumed.unwrap());
    }

    /// Publishes a request body, and waits until RabbitMQ has it.
    pub async fn publish(&self, body: impl AsRef<[u8]>, properties: BasicProperties) {
        let body = body.as_ref();
        self.publish_to(&self.request_exchange, "verification.requested", body, properties).await;
    }

    /// Publishes what looks like an event.
    pub async fn publish_event(&self, routing_key: &str, body: String) {
        let none = BasicProperties::default();
        self.publish_to(&self.event_exchange, routing_key, body.as_bytes(), none).await;
    }

    async fn publish_to(
        &self,
        exchange: &str,
        key: &str,
        body: &[u8],
        properties: BasicProperties,
    ) {
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let confirm = self
            .channel
            .basic_publish(exchange.into(), key.into(), options, body, properties)
            .await
            .unwrap()
            .await
            .unwrap();
        assert!(confirm.is_ack() && confirm.take_message().is_none(), "it was not routed");
    }

    /// Publishes a request under an id.
    pub async fn request(&self, id: &str, data: Value) {
        self.publish(data.to_string(), BasicProperties::default().with_message_id(id.into())).await;
    }

    /// Publishes a request where that works, and returns whether it did.
    pub async fn try_request(&self, id: &str, data: Value) -> bool {
        let channel = self.channel().await;
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let properties = BasicProperties::default().with_message_id(id.into());
        let (exchange, key) = (self.request_exchange.as_str(), "verification.requested");
        let body = data.to_string();
        let confirm = channel
            .basic_publish(exchange.into(), key.into(), options, body.as_bytes(), properties)
            .await
            .unwrap()
            .await;
        confirm.is_ok_and(|confirm| confirm.is_ack() && confirm.take_message().is_none())
    }

    /// The next event.
    pub async fn event(&mut self) -> Message {
        let events = self.events.as_mut().expect("hear_events comes first");
        let delivery = soon("an event", events.next()).await.unwrap().unwrap();
        Message {
            routing_key: delivery.routing_key.to_string(),
            properties: delivery.properties,
            body: delivery.data,
        }
    }

    /// The next so many events.
    pub async fn events(&mut self, count: usize) -> Vec<Message> {
        let mut events = Vec::with_capacity(count);
        while events.len() < count {
            events.push(self.event().await);
        }
        events
    }

    /// Takes a message out of a queue as soon as there is one.
    pub async fn take(&self, queue: &str) -> Message {
        soon(&format!("a message in {queue}"), async {
            let options = BasicConsumeOptions::default();
            let channel = self.connection.create_channel().await.unwrap();
            channel.basic_qos(1, BasicQosOptions::default()).await.unwrap();
            let mut consumer = channel
                .basic_consume(queue.into(), "".into(), options, FieldTable::default())
                .await
                .unwrap();
            let delivery = consumer.next().await.unwrap().unwrap();
            delivery.acker.ack(BasicAckOptions::default()).await.unwrap();
            channel.close(200, "".into()).await.unwrap();
            Message {
                routing_key: delivery.routing_key.to_string(),
                properties: delivery.properties,
                body: delivery.data,
            }
        })
        .await
    }

    /// The next dead letter.
    pub async fn dead_letter(&self) -> Message {
        self.take(&format!("{}.dead", self.queue)).await
    }

    /// Puts a message into a queue, as somebody does who moves dead letters back.
    pub async fn put(&self, queue: &str, message: &Message) {
        self.publish_to("", queue, &message.body, message.properties.clone()).await;
    }

    /// How many messages wait in a queue, unacknowledged ones not counted.
    pub async fn depth(&self, queue: &str) -> u32 {
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let channel = self.connection.create_channel().await.unwrap();
        let depth = channel
            .queue_declare(queue.into(), options, FieldTable::default())
            .await
            .unwrap()
            .message_count();
        channel.close(200, "".into()).await.unwrap();
        depth
    }

    /// Waits until the request queue holds so many messages.
    pub async fn holds(&self, messages: u32) {
        let what = format!("{messages} messages in the queue");
        super::until(&what, async || self.depth(&self.queue).await == messages).await;
    }

    pub async fn channel(&self) -> Channel {
        self.connection.create_channel().await.unwrap()
    }

    pub async fn delete_queue(&self, queue: &str) {
        let channel = self.channel().await;
        channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
    }

    /// Takes requests' way into the queue away.
    pub async fn unbind(&self) {
        let (queue, exchange) = (self.queue.as_str(), self.request_exchange.as_str());
        let key = "verification.requested";
        let channel = self.channel().await;
        channel
            .queue_unbind(queue.into(), exchange.into(), key.into(), FieldTable::default())
            .await
            .unwrap();
    }

    pub async fn delete_exchange(&self, exchange: &str) {
        let channel = self.channel().await;
        channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await.unwrap();
    }
}
