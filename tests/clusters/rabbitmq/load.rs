//! Clients under whose load a cluster is broken: a producer of requests and a consumer of events.
//!
//! Both know all nodes and go to the next one at once when theirs is lost. The producer publishes at its
//! rate whatever the cluster does, and repeats what is not confirmed.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::StreamExt;
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ExchangeKind,
    options::*,
    types::{AMQPValue, FieldTable},
};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

use tokio_util::sync::CancellationToken;

use super::cluster::RabbitmqCluster;
use crate::support::{RabbitMq, TestEnv, Worker, within_timeout};

/// The time-out of each operation on RabbitMQ.
const TIMEOUT: Duration = Duration::from_secs(3);
/// A request that takes longer is printed.
const SLOW: Duration = Duration::from_secs(5);

/// A published request, and its events.
struct Request {
    user: String,
    published_at: Instant,
    events: Vec<(Instant, Value)>,
}

/// A producer at work.
pub struct Production {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Production {
    /// Publishes nothing more, and waits until everything is confirmed.
    pub async fn stop(self) {
        self.stop.cancel();
        within_timeout("all confirms", self.task).await.unwrap();
    }
}

/// The producer and the consumer.
pub struct Load {
    urls: Vec<String>,
    request_exchange: String,
    event_exchange: String,
    /// The producer's channel, the node that it leads to, and how often it was replaced.
    producing: tokio::sync::Mutex<(Option<Channel>, usize, usize)>,
    requests: Mutex<HashMap<String, Request>>,
    /// Requests that no queue took.
    returned: Mutex<Vec<String>>,
    /// The number of requests with an event.
    answered: watch::Sender<usize>,
    tasks: Mutex<JoinSet<()>>,
}

impl Load {
    /// Declares the event queue through the node `first`, where the queue then has its leader, and
    /// consumes it. The producer connects to the same node.
    pub async fn start(env: &TestEnv, cluster: &RabbitmqCluster, first: usize) -> Arc<Self> {
        let RabbitMq { request_exchange, event_exchange, .. } = &env.rabbitmq;
        let mut urls: Vec<_> = cluster.nodes.iter().map(|node| node.url.clone()).collect();
        urls.rotate_left(first);
        let load = Arc::new(Self {
            urls,
            request_exchange: request_exchange.clone(),
            event_exchange: event_exchange.clone(),
            producing: Default::default(),
            requests: Mutex::default(),
            returned: Mutex::default(),
            answered: watch::Sender::new(0),
            tasks: Mutex::default(),
        });
        load.declare_event_queue(&load.connect(&mut 0).await).await.unwrap();
        load.tasks.lock().unwrap().spawn(Arc::clone(&load).consume());
        load
    }

    /// Publishes requests at a rate until [`Production::stop`].
    pub fn produce(self: &Arc<Self>, per_second: f64) -> Production {
        let stop = CancellationToken::new();
        let (load, stopped) = (Arc::clone(self), stop.clone());
        let task = tokio::spawn(async move {
            let mut ticks = interval(Duration::from_secs_f64(1.0 / per_second));
            // As a producer's own queue would after a pause of this process.
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let mut publishes = JoinSet::new();
            while stopped.run_until_cancelled(ticks.tick()).await.is_some() {
                load.publish_returned(&mut publishes);
                let number = load.requests.lock().unwrap().len();
                let (id, user) = (format!("r-{number}"), format!("user-{number}"));
                let published_at = Instant::now();
                let request = Request { user, published_at, events: Vec::new() };
                load.requests.lock().unwrap().insert(id.clone(), request);
                publishes.spawn(Arc::clone(&load).publish_one(id));
            }
            while publishes.join_next().await.is_some() {
                load.publish_returned(&mut publishes);
            }
        });
        Production { stop, task }
    }

    fn publish_returned(self: &Arc<Self>, publishes: &mut JoinSet<()>) {
        for id in std::mem::take(&mut *self.returned.lock().unwrap()) {
            publishes.spawn(Arc::clone(self).publish_one(id));
        }
    }

    /// Publishes until RabbitMQ confirms that a queue has it.
    async fn publish_one(self: Arc<Self>, id: String) {
        let body = json!({ "userId": id.replace("r-", "user-") }).to_string();
        loop {
            let (channel, generation) = self.channel().await;
            let properties = BasicProperties::default()
                .with_message_id(id.as_str().into())
                .with_delivery_mode(2);
            let exchange = self.request_exchange.as_str().into();
            let options = BasicPublishOptions { mandatory: true, ..Default::default() };
            let key = "verification.requested".into();
            let publish = async {
                let publish =
                    channel.basic_publish(exchange, key, options, body.as_bytes(), properties);
                publish.await?.await
            };
            match timeout(TIMEOUT, publish).await {
                Ok(Ok(Confirmation::Ack(None))) => return,
                Ok(Ok(Confirmation::Ack(Some(returned)))) => {
                    sleep(Duration::from_millis(100)).await;
                    // lapin 4.12 attaches a return to the next confirm, which may be another message's.
                    let lost = returned.delivery.properties.message_id().clone().unwrap();
                    if lost.as_str() != id {
                        return self.returned.lock().unwrap().push(lost.to_string());
                    }
                }
                _ => self.replace_channel(generation).await,
            }
        }
    }

    async fn channel(&self) -> (Channel, usize) {
        let mut producing = self.producing.lock().await;
        if producing.0.is_none() {
            let mut node = producing.1;
            let channel = self.connect(&mut node).await;
            producing.0 = Some(channel);
            producing.1 = node;
        }
        (producing.0.clone().unwrap(), producing.2)
    }

    /// Has the next publish go to the next node, unless another one has done so.
    async fn replace_channel(&self, generation: usize) {
        let mut producing = self.producing.lock().await;
        if producing.2 == generation {
            *producing = (None, producing.1 + 1, generation + 1);
        }
    }

    async fn consume(self: Arc<Self>) {
        let mut node = 0;
        loop {
            let channel = self.connect(&mut node).await;
            let queue = self.event_queue();
            let consumer = channel.basic_consume(
                queue.as_str().into(),
                "".into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            );
            if let Ok(Ok(mut consumer)) = timeout(TIMEOUT, consumer).await {
                while let Some(Ok(delivery)) = consumer.next().await {
                    self.add_event(&delivery.data);
                    if delivery.acker.ack(BasicAckOptions::default()).await.is_err() {
                        break;
                    }
                }
            }
            node += 1;
        }
    }

    fn add_event(&self, body: &[u8]) {
        let event: Value = serde_json::from_slice(body).unwrap();
        let id = event["data"]["requestId"].as_str().unwrap();
        let mut requests = self.requests.lock().unwrap();
        let request = requests.get_mut(id).expect("the event is for a published request");
        request.events.push((Instant::now(), event.clone()));
        if request.events.len() == 1 {
            self.answered.send_modify(|count| *count += 1);
        }
    }

    /// Waits until all published requests have an event; fails if none arrives for a minute.
    pub async fn wait_for_events(&self) {
        let published = self.requests.lock().unwrap().len();
        let mut answered = self.answered.subscribe();
        while *answered.borrow_and_update() < published {
            if timeout(Duration::from_secs(60), answered.changed()).await.is_ok() {
                continue;
            }
            let requests = self.requests.lock().unwrap();
            let without = requests.iter().filter(|(_, request)| request.events.is_empty());
            let mut without: Vec<_> = without.map(|(id, _)| id).collect();
            without.sort();
            panic!("{} requests have no event: {without:?}", without.len());
        }
    }

    /// Waits for an event that arrives from now on.
    pub async fn wait_for_next_event(&self) {
        let mut answered = self.answered.subscribe();
        answered.mark_unchanged();
        let next = timeout(Duration::from_secs(60), answered.changed()).await;
        next.expect("an event").unwrap();
    }

    /// Asserts that all requests have a `handoff.ready`, that no two events of one differ, and that the
    /// platform made one session for each. Prints how long they took, the worker's warnings and its log of the
    /// slowest, and returns the longest time without an event.
    pub fn assert_all_ready(&self, what: &str, env: &TestEnv, worker: &Worker) -> Duration {
        let requests = self.requests.lock().unwrap();
        let mut first_events = Vec::new();
        let mut waits = Vec::new();
        for (id, request) in requests.iter() {
            let (at, first) = request.events.first().unwrap_or_else(|| panic!("{id}: no event"));
            for (_, event) in &request.events {
                assert_eq!(event["type"], "handoff.ready", "{event}");
                assert_eq!(event["id"], first["id"]);
                assert_eq!(event["subject"], request.user.as_str());
            }
            first_events.push(*at);
            let wait = at.saturating_duration_since(request.published_at);
            waits.push((wait, id));
        }
        first_events.sort_unstable();
        waits.sort_unstable();
        assert_no_duplicate_session(env, requests.len());
        let (longest, slowest) = waits[waits.len() - 1];
        let gaps = first_events.windows(2).map(|pair| pair[1] - pair[0]);
        let gap = gaps.max().unwrap_or_default();
        let events: usize = requests.values().map(|request| request.events.len()).sum();
        println!(
            "{what}: {} requests, {events} events; wait: median {:?}, longest {longest:?}; longest gap {gap:?}",
            requests.len(),
            waits[waits.len() / 2].0,
        );
        let output = worker.output();
        if longest > SLOW {
            let about = output.lines().filter(|line| line.contains(&format!("\"{slowest}\"")));
            about.for_each(|line| println!("{line}"));
        }
        let is_warning =
            |line: &&str| line.contains(r#""level":"WARN""#) || line.contains(r#""level":"ERROR""#);
        output.lines().filter(is_warning).for_each(|line| println!("{line}"));
        gap
    }

    /// Declares and binds the event queue again.
    pub async fn rebind(&self) {
        self.declare_event_queue(&self.connect(&mut 0).await).await.unwrap();
    }

    async fn declare_event_queue(&self, channel: &Channel) -> lapin::Result<()> {
        let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
        let exchange = self.event_exchange.as_str();
        let none = FieldTable::default;
        channel.exchange_declare(exchange.into(), ExchangeKind::Topic, durable, none()).await?;
        let mut quorum = none();
        quorum.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        let durable = QueueDeclareOptions { durable: true, ..Default::default() };
        let queue = self.event_queue();
        channel.queue_declare(queue.as_str().into(), durable, quorum).await?;
        let key = "handoff.*".into();
        channel
            .queue_bind(queue.as_str().into(), exchange.into(), key, Default::default(), none())
            .await
    }

    fn event_queue(&self) -> String {
        format!("{}.received", self.event_exchange)
    }

    /// Opens a channel on the node, or on the next one that works.
    async fn connect(&self, node: &mut usize) -> Channel {
        loop {
            let url = &self.urls[*node % self.urls.len()];
            let connecting = async {
                let connection = Connection::connect(url, ConnectionProperties::default()).await?;
                let channel = connection.create_channel().await?;
                channel.confirm_select(ConfirmSelectOptions::default()).await?;
                channel.basic_qos(200, BasicQosOptions::default()).await?;
                lapin::Result::Ok(channel)
            };
            if let Ok(Ok(channel)) = timeout(TIMEOUT, connecting).await {
                return channel;
            }
            *node += 1;
            sleep(Duration::from_millis(50)).await;
        }
    }
}

fn assert_no_duplicate_session(env: &TestEnv, users: usize) {
    let mut sessions: HashMap<String, Vec<String>> = HashMap::new();
    for call in env.platform.session_calls() {
        let user = call.body["metadata"]["externalUserId"].as_str().unwrap().to_owned();
        sessions.entry(user).or_default().push(call.header("idempotency-key"));
    }
    let duplicates: Vec<_> = sessions.iter().filter(|(_, calls)| calls.len() > 1).collect();
    assert!(duplicates.is_empty(), "{duplicates:?}");
    assert_eq!(sessions.len(), users);
}
