//! Those who ask and those who hear the events. Both outlive every fault of RabbitMQ: they connect
//! again, and what was not confirmed is published again.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::StreamExt;
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind,
    options::*,
    types::{AMQPValue, FieldTable},
};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::plan::Ask;

pub const REQUESTS: &str = "chaos.requests";
pub const EVENTS: &str = "chaos.events";
const HEARD: &str = "chaos.heard";
/// A step of talking to RabbitMQ that takes longer is given up.
const LIMIT: Duration = Duration::from_secs(5);

/// An event as it was heard.
pub struct Heard {
    pub at: Instant,
    pub event_id: String,
    pub ready: bool,
    pub data: Value,
}

/// What was asked, and what came of it.
pub struct Asked {
    pub user: String,
    pub workflow: &'static str,
    /// When it was published.
    pub at: Instant,
    pub heard: Vec<Heard>,
}

/// Everybody.
pub struct Crowd {
    url: String,
    pub asked: Mutex<HashMap<String, Asked>>,
    /// Asked, and answered at least once.
    counts: watch::Sender<(usize, usize)>,
}

impl Crowd {
    pub fn new(url: &str) -> Arc<Self> {
        Arc::new(Self {
            url: url.to_owned(),
            asked: Mutex::default(),
            counts: watch::Sender::new((0, 0)),
        })
    }

    /// Waits until every request has an event, for so long at most.
    pub async fn all_answered(&self, limit: Duration) {
        let mut counts = self.counts.subscribe();
        let _ = timeout(limit, counts.wait_for(|(asked, answered)| asked == answered)).await;
    }

    /// Asks for everything, each at its time or, where RabbitMQ is away, as soon as may be.
    pub async fn ask(&self, asks: Vec<Ask>) {
        let began = Instant::now();
        let mut channel = self.channel().await;
        for ask in asks {
            sleep_until(began + ask.at).await;
            let body = json!({ "userId": ask.user, "workflowId": ask.workflow, "metadata": { "request": ask.id } });
            // It may be heard of before its confirm comes.
            let asked = Asked {
                user: ask.user,
                workflow: ask.workflow,
                at: Instant::now(),
                heard: Vec::new(),
            };
            self.asked.lock().unwrap().insert(ask.id.clone(), asked);
            self.counts.send_modify(|(asked, _)| *asked += 1);
            while !publish(&channel, &ask.id, body.to_string().as_bytes()).await {
                channel = self.channel().await;
                self.asked.lock().unwrap().get_mut(&ask.id).unwrap().at = Instant::now();
            }
        }
    }

    /// Hears events, for ever.
    pub async fn hear(self: Arc<Self>) {
        loop {
            let channel = self.channel().await;
            let consumer =
                channel.basic_consume(HEARD.into(), "".into(), Default::default(), none());
            let Ok(Ok(mut consumer)) = timeout(LIMIT, consumer).await else { continue };
            while let Some(Ok(delivery)) = consumer.next().await {
                self.heard(&delivery.data);
                if delivery.acker.ack(BasicAckOptions::default()).await.is_err() {
                    break;
                }
            }
        }
    }

    fn heard(&self, body: &[u8]) {
        let event: Value = serde_json::from_slice(body).unwrap();
        let data = event["data"].clone();
        let request_id = data["requestId"].as_str().unwrap().to_owned();
        let heard = Heard {
            at: Instant::now(),
            event_id: event["id"].as_str().unwrap().to_owned(),
            ready: event["type"] == "handoff.ready",
            data,
        };
        let mut asked = self.asked.lock().unwrap();
        let asked = asked.get_mut(&request_id).expect("nobody asked for this");
        asked.heard.push(heard);
        if asked.heard.len() == 1 {
            self.counts.send_modify(|(_, answered)| *answered += 1);
        }
    }

    /// A channel with confirms, and with all that the crowd needs declared; however long it takes.
    async fn channel(&self) -> Channel {
        loop {
            if let Ok(Ok(channel)) = timeout(LIMIT, self.try_channel()).await {
                return channel;
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    async fn try_channel(&self) -> lapin::Result<Channel> {
        let connection = Connection::connect(&self.url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        channel.basic_qos(100, BasicQosOptions::default()).await?;
        let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
        for exchange in [REQUESTS, EVENTS] {
            channel.exchange_declare(exchange.into(), ExchangeKind::Topic, durable, none()).await?;
        }
        let mut quorum = none();
        quorum.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        let durable = QueueDeclareOptions { durable: true, ..Default::default() };
        channel.queue_declare(HEARD.into(), durable, quorum).await?;
        let all = "handoff.*".into();
        channel.queue_bind(HEARD.into(), EVENTS.into(), all, Default::default(), none()).await?;
        Ok(channel)
    }

    /// How many messages a queue holds, unacknowledged ones not counted.
    pub async fn depth(&self, queue: &str) -> u32 {
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let channel = self.channel().await;
        channel.queue_declare(queue.into(), options, none()).await.map_or(0, |q| q.message_count())
    }
}

/// Whether RabbitMQ has it for sure.
async fn publish(channel: &Channel, id: &str, body: &[u8]) -> bool {
    let properties = BasicProperties::default().with_message_id(id.into()).with_delivery_mode(2);
    let options = BasicPublishOptions { mandatory: true, ..Default::default() };
    let key = "verification.requested".into();
    let publish = async {
        let confirm = channel.basic_publish(REQUESTS.into(), key, options, body, properties);
        confirm.await?.await
    };
    match timeout(LIMIT, publish).await {
        Ok(Ok(confirm)) => confirm.is_ack() && confirm.take_message().is_none(),
        _ => false,
    }
}

fn none() -> FieldTable {
    FieldTable::default()
}
