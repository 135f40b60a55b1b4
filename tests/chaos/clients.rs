//! Publishes the requests and receives the events.
//!
//! Both survive every fault of RabbitMQ: they reconnect, and publish again what was not confirmed.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
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

use crate::plan::PlannedRequest;

pub const REQUEST_EXCHANGE: &str = "chaos.requests";
pub const EVENT_EXCHANGE: &str = "chaos.events";
const EVENT_QUEUE: &str = "chaos.received";
/// The time-out of each operation on RabbitMQ.
const TIMEOUT: Duration = Duration::from_secs(5);

pub struct ReceivedEvent {
    pub at: Instant,
    pub received: SystemTime,
    pub id: String,
    pub ready: bool,
    pub data: Value,
}

/// A published request and its events.
pub struct Request {
    pub user: String,
    pub workflow: &'static str,
    /// When it was last published.
    pub published_at: Instant,
    pub expires_at: Option<SystemTime>,
    pub events: Vec<ReceivedEvent>,
}

/// All producers and consumers around the workers.
pub struct Clients {
    /// RabbitMQ's nodes.
    urls: Vec<String>,
    /// How often a client has connected: each time to the next node.
    connects: AtomicUsize,
    pub requests: Mutex<HashMap<String, Request>>,
    /// The numbers of published requests, and of those with at least one event.
    counts: watch::Sender<(usize, usize)>,
}

impl Clients {
    pub fn new(urls: Vec<String>) -> Arc<Self> {
        Arc::new(Self {
            urls,
            connects: AtomicUsize::new(0),
            requests: Mutex::default(),
            counts: watch::Sender::new((0, 0)),
        })
    }

    /// Waits until every request has an event, but no longer than the time-out.
    pub async fn wait_for_events(&self, limit: Duration) {
        let mut counts = self.counts.subscribe();
        let _ =
            timeout(limit, counts.wait_for(|(published, answered)| published == answered)).await;
    }

    /// Publishes each request at its time, or as soon as RabbitMQ is available.
    pub async fn publish(&self, requests: Vec<PlannedRequest>) {
        let start = Instant::now();
        let mut channel = self.connect().await;
        for PlannedRequest { at, id, user, workflow, renew, expires_after } in requests {
            sleep_until(start + at).await;
            let metadata = json!({ "request": id });
            let expires_at = expires_after.map(|after| SystemTime::now() + after);
            let body = json!({
                "userId": user, "workflowId": workflow, "metadata": metadata, "renew": renew,
                "expiresAt": expires_at.map(format_date_time),
            });
            // Recorded first, as the event may arrive before the confirm.
            let published_at = Instant::now();
            let events = Vec::new();
            let request = Request { user, workflow, published_at, expires_at, events };
            self.requests.lock().unwrap().insert(id.clone(), request);
            self.counts.send_modify(|(published, _)| *published += 1);
            while !publish(&channel, &id, body.to_string().as_bytes()).await {
                channel = self.connect().await;
                let mut requests = self.requests.lock().unwrap();
                requests.get_mut(&id).unwrap().published_at = Instant::now();
            }
        }
    }

    /// Receives events until the task is aborted.
    pub async fn receive(self: Arc<Self>) {
        loop {
            let channel = self.connect().await;
            let consumer =
                channel.basic_consume(EVENT_QUEUE.into(), "".into(), Default::default(), no_args());
            let Ok(Ok(mut consumer)) = timeout(TIMEOUT, consumer).await else { continue };
            while let Some(Ok(delivery)) = consumer.next().await {
                self.add_event(&delivery.data);
                if delivery.acker.ack(BasicAckOptions::default()).await.is_err() {
                    break;
                }
            }
        }
    }

    fn add_event(&self, body: &[u8]) {
        let event: Value = serde_json::from_slice(body).unwrap();
        let data = event["data"].clone();
        let request_id = data["requestId"].as_str().unwrap().to_owned();
        let event = ReceivedEvent {
            at: Instant::now(),
            received: SystemTime::now(),
            id: event["id"].as_str().unwrap().to_owned(),
            ready: event["type"] == "handoff.ready",
            data,
        };
        let mut requests = self.requests.lock().unwrap();
        let request = requests.get_mut(&request_id).expect("the event is for a published request");
        request.events.push(event);
        if request.events.len() == 1 {
            self.counts.send_modify(|(_, answered)| *answered += 1);
        }
    }

    /// Opens a channel with confirms and declares the topology, however long RabbitMQ is
    /// unavailable.
    async fn connect(&self) -> Channel {
        loop {
            if let Ok(Ok(channel)) = timeout(TIMEOUT, self.try_connect()).await {
                return channel;
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    async fn try_connect(&self) -> lapin::Result<Channel> {
        let number = self.connects.fetch_add(1, Ordering::Relaxed);
        let url = &self.urls[number % self.urls.len()];
        let connection = Connection::connect(url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        channel.basic_qos(100, BasicQosOptions::default()).await?;
        let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
        for exchange in [REQUEST_EXCHANGE, EVENT_EXCHANGE] {
            channel
                .exchange_declare(exchange.into(), ExchangeKind::Topic, durable, no_args())
                .await?;
        }
        let mut quorum = no_args();
        quorum.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        let durable = QueueDeclareOptions { durable: true, ..Default::default() };
        channel.queue_declare(EVENT_QUEUE.into(), durable, quorum).await?;
        let exchange = EVENT_EXCHANGE.into();
        let key = "handoff.*".into();
        channel
            .queue_bind(EVENT_QUEUE.into(), exchange, key, Default::default(), no_args())
            .await?;
        Ok(channel)
    }

    /// The number of ready messages in a queue.
    pub async fn queue_depth(&self, queue: &str) -> u32 {
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let queue = self.connect().await.queue_declare(queue.into(), options, no_args()).await;
        queue.map_or(0, |queue| queue.message_count())
    }
}

/// Whether RabbitMQ routed and confirmed the request.
async fn publish(channel: &Channel, id: &str, body: &[u8]) -> bool {
    let properties = BasicProperties::default().with_message_id(id.into()).with_delivery_mode(2);
    let options = BasicPublishOptions { mandatory: true, ..Default::default() };
    let key = "verification.requested".into();
    let publish = async {
        let confirm =
            channel.basic_publish(REQUEST_EXCHANGE.into(), key, options, body, properties);
        confirm.await?.await
    };
    match timeout(TIMEOUT, publish).await {
        Ok(Ok(confirm)) => confirm.is_ack() && confirm.take_message().is_none(),
        _ => false,
    }
}

fn format_date_time(time: SystemTime) -> String {
    let time = time::OffsetDateTime::from(time);
    time.format(&time::format_description::well_known::Rfc3339).unwrap()
}

fn no_args() -> FieldTable {
    FieldTable::default()
}
