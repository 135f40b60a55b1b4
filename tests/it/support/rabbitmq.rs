//! A test's own view of RabbitMQ: publishes requests, consumes events, inspects queues.

use futures_util::StreamExt;
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer,
    message::Delivery,
    options::*,
    types::{AMQPValue, FieldTable, ShortString},
};
use serde_json::Value;

use super::wait::{wait_until, within_timeout};

/// The routing key that a producer publishes requests under.
const REQUEST_KEY: &str = "verification.requested";

/// A message as a consumer receives it.
#[derive(Clone, Debug)]
pub struct Message {
    pub routing_key: String,
    pub properties: BasicProperties,
    pub body: Vec<u8>,
}

impl Message {
    /// The body as JSON.
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

    /// A header of type long string.
    pub fn text_header(&self, name: &str) -> String {
        match self.header(name) {
            Some(AMQPValue::LongString(text)) => {
                String::from_utf8(text.as_bytes().to_vec()).unwrap()
            }
            other => panic!("header {name} is {other:?}"),
        }
    }
}

impl From<Delivery> for Message {
    fn from(delivery: Delivery) -> Self {
        Self {
            routing_key: delivery.routing_key.to_string(),
            properties: delivery.properties,
            body: delivery.data,
        }
    }
}

/// A table of headers or arguments.
pub fn field_table(entries: &[(&str, AMQPValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert((*name).into(), value.clone());
    }
    table
}

/// A value of type long string.
pub fn long_string(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

/// A message that the test keeps unsettled.
pub struct HeldMessage {
    channel: Channel,
    tag: u64,
}

impl HeldMessage {
    /// Returns it to its queue.
    pub async fn give_back(self) {
        let requeue = BasicRejectOptions { requeue: true };
        self.channel.basic_reject(self.tag, requeue).await.unwrap();
    }
}

pub struct RabbitMq {
    connection: Connection,
    channel: Channel,
    pub queue: String,
    pub request_exchange: String,
    pub event_exchange: String,
    events: Option<Consumer>,
}

impl RabbitMq {
    /// Connects; queue and exchanges are named after the test.
    pub async fn connect(url: &str, name: &str) -> Self {
        // lapin would accept whatever a RabbitMQ without a limit on frames proposes, and allocate 64 of them.
        let url =
            if url.contains('?') { url.to_owned() } else { format!("{url}?frame_max=131072") };
        let connection = Connection::connect(&url, ConnectionProperties::default()).await.unwrap();
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

    /// Binds a queue for events and consumes it: from now on every event is routed and received.
    pub async fn consume_events(&mut self) {
        let options =
            QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
        let queue = self.bind_event_queue("", options).await;
        self.consume(queue).await;
    }

    /// The same, with a queue that survives a restart of RabbitMQ.
    pub async fn consume_events_durably(&mut self) {
        let queue = self.bind_durable_event_queue().await;
        self.consume(queue).await;
    }

    /// Binds that queue without consuming it.
    pub async fn bind_durable_event_queue(&self) -> ShortString {
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        self.bind_event_queue(&format!("{}.received", self.event_exchange), options).await
    }

    async fn bind_event_queue(&self, queue: &str, options: QueueDeclareOptions) -> ShortString {
        let exchange: ShortString = self.event_exchange.as_str().into();
        let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
        let kind = lapin::ExchangeKind::Topic;
        let channel = &self.channel;
        channel
            .exchange_declare(exchange.clone(), kind, durable, FieldTable::default())
            .await
            .unwrap();
        let declared = channel.queue_declare(queue.into(), options, FieldTable::default()).await;
        let queue = declared.unwrap().name().clone();
        let all = "handoff.*".into();
        channel
            .queue_bind(queue.clone(), exchange, all, Default::default(), FieldTable::default())
            .await
            .unwrap();
        queue
    }

    async fn consume(&mut self, queue: ShortString) {
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let consumer =
            self.channel.basic_consume(queue, "".into(), options, FieldTable::default()).await;
        self.events = Some(consumer.unwrap());
    }

    /// Publishes a request body, and waits for RabbitMQ's confirm.
    pub async fn publish(&self, body: impl AsRef<[u8]>, properties: BasicProperties) {
        let body = body.as_ref();
        let confirm = self.publish_to(&self.request_exchange, REQUEST_KEY, body, properties).await;
        assert_routed(&confirm);
    }

    /// Publishes to the exchange for events, and waits for RabbitMQ's answer. That may be a nack: RabbitMQ 4
    /// sends one for a bound queue that is deleted at this moment.
    pub async fn publish_event(&self, routing_key: &str, body: String) {
        let properties = BasicProperties::default();
        self.publish_to(&self.event_exchange, routing_key, body.as_bytes(), properties).await;
    }

    async fn publish_to(
        &self,
        exchange: &str,
        key: &str,
        body: &[u8],
        properties: BasicProperties,
    ) -> Confirmation {
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        self.channel
            .basic_publish(exchange.into(), key.into(), options, body, properties)
            .await
            .unwrap()
            .await
            .unwrap()
    }

    /// Publishes the end of a verification, once there is a queue for it.
    pub async fn publish_ending(&self, data: Value, properties: BasicProperties) {
        let body = data.to_string();
        wait_until("the ending is routed", async || {
            let confirm = self.publish_to(
                &self.request_exchange,
                "verification.ended",
                body.as_bytes(),
                properties.clone(),
            );
            is_routed(&confirm.await)
        })
        .await;
    }

    /// Publishes a request with this id.
    pub async fn publish_request(&self, id: &str, data: Value) {
        self.publish(data.to_string(), BasicProperties::default().with_message_id(id.into())).await;
    }

    /// Publishes a request, and returns whether RabbitMQ routed and confirmed it.
    pub async fn try_publish_request(&self, id: &str, data: Value) -> bool {
        let channel = self.open_channel().await;
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let properties = BasicProperties::default().with_message_id(id.into());
        let exchange = self.request_exchange.as_str();
        let body = data.to_string();
        let confirm = channel
            .basic_publish(
                exchange.into(),
                REQUEST_KEY.into(),
                options,
                body.as_bytes(),
                properties,
            )
            .await
            .unwrap()
            .await;
        confirm.is_ok_and(|confirm| is_routed(&confirm))
    }

    /// Waits for the next event.
    pub async fn next_event(&mut self) -> Message {
        let events = self.events.as_mut().expect("the environment consumes events");
        within_timeout("an event", events.next()).await.unwrap().unwrap().into()
    }

    /// Waits for the next `count` events.
    pub async fn next_events(&mut self, count: usize) -> Vec<Message> {
        let mut events = Vec::with_capacity(count);
        while events.len() < count {
            events.push(self.next_event().await);
        }
        events
    }

    /// Waits for a message in a queue, and removes it.
    pub async fn take(&self, queue: &str) -> Message {
        within_timeout(&format!("a message in {queue}"), async {
            let options = BasicConsumeOptions::default();
            let channel = self.open_channel().await;
            channel.basic_qos(1, BasicQosOptions::default()).await.unwrap();
            let mut consumer = channel
                .basic_consume(queue.into(), "".into(), options, FieldTable::default())
                .await
                .unwrap();
            let delivery = consumer.next().await.unwrap().unwrap();
            // Cancelled first: RabbitMQ would deliver the next message, and count its return.
            channel.basic_cancel(consumer.tag(), BasicCancelOptions::default()).await.unwrap();
            delivery.acker.ack(BasicAckOptions::default()).await.unwrap();
            channel.close(200, "".into()).await.unwrap();
            delivery.into()
        })
        .await
    }

    /// Waits for a dead letter, and removes it.
    pub async fn take_dead_letter(&self) -> Message {
        self.take(&format!("{}.dead", self.queue)).await
    }

    /// Publishes to a queue directly, as an operator does who moves dead letters back.
    pub async fn publish_to_queue(&self, queue: &str, message: &Message) {
        let confirm = self.publish_to("", queue, &message.body, message.properties.clone()).await;
        assert_routed(&confirm);
    }

    /// Takes a message from the request queue and returns it, `times` times, then keeps it.
    pub async fn hold_after_returns(&self, times: usize) -> HeldMessage {
        let channel = self.open_channel().await;
        let get = async || {
            let mut message = None;
            wait_until("a message to return", async || {
                let got = channel.basic_get(self.queue.as_str().into(), BasicGetOptions::default());
                message = got.await.unwrap();
                message.is_some()
            })
            .await;
            message.unwrap().delivery.delivery_tag
        };
        for _ in 0..times {
            let tag = get().await;
            // Every version of RabbitMQ counts a reject.
            channel.basic_reject(tag, BasicRejectOptions { requeue: true }).await.unwrap();
        }
        let tag = get().await;
        HeldMessage { channel, tag }
    }

    /// How many messages a queue holds that no consumer has.
    pub async fn depth(&self, queue: &str) -> u32 {
        self.look_at(queue).await.unwrap().message_count()
    }

    /// Waits until a queue exists and has a consumer.
    pub async fn wait_for_consumer(&self, queue: &str) {
        let has_consumer = |queue: lapin::Queue| queue.consumer_count() > 0;
        let what = format!("a consumer of {queue}");
        wait_until(&what, async || self.look_at(queue).await.is_ok_and(has_consumer)).await;
    }

    async fn look_at(&self, queue: &str) -> lapin::Result<lapin::Queue> {
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let channel = self.open_channel().await;
        let queue = channel.queue_declare(queue.into(), options, FieldTable::default()).await?;
        channel.close(200, "".into()).await.unwrap();
        Ok(queue)
    }

    /// Waits until the request queue holds `messages` that no consumer has.
    pub async fn wait_for_depth(&self, messages: u32) {
        let what = format!("{messages} messages in the queue");
        wait_until(&what, async || self.depth(&self.queue).await == messages).await;
    }

    pub async fn open_channel(&self) -> Channel {
        self.connection.create_channel().await.unwrap()
    }

    pub async fn delete_queue(&self, queue: &str) {
        let channel = self.open_channel().await;
        channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
    }

    /// Removes the binding of the request queue.
    pub async fn unbind_request_queue(&self) {
        let queue = self.queue.as_str();
        let exchange = self.request_exchange.as_str();
        let channel = self.open_channel().await;
        channel
            .queue_unbind(queue.into(), exchange.into(), REQUEST_KEY.into(), FieldTable::default())
            .await
            .unwrap();
    }

    pub async fn assert_exchange_exists(&self, exchange: &str) {
        let options = ExchangeDeclareOptions { passive: true, ..Default::default() };
        let kind = lapin::ExchangeKind::Topic;
        let channel = self.open_channel().await;
        let declared =
            channel.exchange_declare(exchange.into(), kind, options, FieldTable::default()).await;
        assert!(declared.is_ok(), "{exchange}: {declared:?}");
    }

    pub async fn delete_exchange(&self, exchange: &str) {
        let channel = self.open_channel().await;
        channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await.unwrap();
    }
}

fn is_routed(confirm: &Confirmation) -> bool {
    matches!(confirm, Confirmation::Ack(None))
}

fn assert_routed(confirm: &Confirmation) {
    assert!(is_routed(confirm), "not routed, or refused: {confirm:?}");
}
