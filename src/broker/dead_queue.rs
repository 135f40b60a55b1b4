//! Lets an operator go through the dead queue: receive all, settle some, keep the rest.
//!
//! Received dead letters stay unsettled until the end, so that RabbitMQ requeues them if this
//! process dies. Each pass may count as a redelivery, and the dead queue has no dead-letter
//! exchange: at the delivery limit, 20 by default since RabbitMQ 4.0, a dead letter would be lost.
//! One that is close to the limit is therefore replaced by a copy.
//!
//! A replay may take hours, and RabbitMQ closes the channel of a message that is unsettled for longer
//! than `consumer_timeout` (30 minutes by default). So a replay moves letters that it has held for
//! long to the end of the queue, behind those that it will still receive.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, SystemTime},
};

use lapin::{
    options::{BasicGetOptions, BasicNackOptions},
    types::FieldTable,
};
use tokio::time::{Instant, sleep, timeout};

use super::{
    acks::Acks,
    amqp::{RPC_TIMEOUT, object_name, open_channel, rpc},
    connection::Connection,
    delivery::Delivery,
    error::{BrokerError, PublishError},
    publisher::Publisher,
    republish::{DETAIL, FAILED_AT, QUEUE, REASON, replay_copy, same_copy},
    topology::{Topology, queue_counts},
};
use crate::{
    config::BrokerSettings,
    message::{RequestId, decode_request, parse_date_time},
    telemetry::metrics::Metrics,
};

/// How long a replay holds a letter unsettled.
/// RabbitMQ checks its `consumer_timeout` once a minute, and its guide warns of values below that.
pub(crate) const MAX_HOLD: Duration = Duration::from_secs(10);
/// How long to wait until returned letters are back. 30 of 15 MiB take RabbitMQ seconds.
const RETURN_LIMIT: Duration = Duration::from_secs(10);
const RETURN_POLL: Duration = Duration::from_millis(20);
/// How many bytes of bodies a replay holds.
const MAX_HELD_BYTES: usize = 16 << 20;

/// The dead queue, and the dead letters received from it.
pub(crate) struct DeadQueue {
    connection: Connection,
    acks: Arc<Acks>,
    publisher: Publisher,
    /// How many dead letters of the first count [`Self::next`] will still return.
    /// Later arrivals stay in the queue.
    pub(crate) remaining: u32,
    /// The first count.
    total: u32,
    last_tag: Option<u64>,
    /// Letters that a replay leaves in the queue, the oldest first.
    held: VecDeque<Held>,
    held_bytes: usize,
}

struct Held {
    letter: DeadLetter,
    since: Instant,
}

/// A received, unsettled dead letter.
pub(crate) struct DeadLetter {
    pub(crate) delivery: Delivery,
}

impl DeadQueue {
    /// Connects and counts the dead letters.
    pub(crate) async fn open(settings: &BrokerSettings) -> Result<Self, BrokerError> {
        let connection = Connection::open_any(&settings.nodes.current()).await?;
        let topology = Arc::new(Topology::new(settings));
        let total = queue_counts(&connection.lapin, topology.dead_queue()).await?.messages;
        let acks = Acks::new(open_channel(&connection.lapin).await?);
        // Never exposed: a command has no /metrics.
        let metrics = Metrics::new();
        let publisher = Publisher::new(Arc::clone(&connection.lapin), topology, 1, metrics);
        Ok(Self {
            connection,
            acks,
            publisher,
            remaining: total,
            total,
            last_tag: None,
            held: VecDeque::new(),
            held_bytes: 0,
        })
    }

    /// Receives the next dead letter, or `None` after as many as there were at first.
    pub(crate) async fn next(&mut self) -> Result<Option<DeadLetter>, BrokerError> {
        let Some(remaining) = self.remaining.checked_sub(1) else { return Ok(None) };
        let queue = object_name(self.publisher.topology().dead_queue())?;
        let get = self.acks.channel.basic_get(queue, BasicGetOptions::default());
        let message = rpc("get a message from the dead queue", get).await?;
        self.remaining = if message.is_some() { remaining } else { 0 };
        Ok(message.map(|message| {
            self.last_tag = Some(message.delivery.delivery_tag);
            DeadLetter { delivery: Delivery::new(message.delivery, &self.acks) }
        }))
    }

    /// Moves a dead letter to the queue that it came from, with its attempts reset.
    ///
    /// Acks the dead letter once RabbitMQ has confirmed its copy; otherwise it stays in its queue.
    pub(crate) async fn replay(&self, letter: &DeadLetter) -> Result<(), PublishError> {
        let request_id = letter.request_id().map(RequestId::new);
        let frame_max = self.publisher.frame_max();
        let copy = replay_copy(letter.delivery.properties(), request_id.as_ref(), frame_max);
        let queue = letter.queue_before(self.publisher.topology());
        self.publisher.publish("", queue, copy, letter.delivery.body()).await?;
        self.discard(letter).await
    }

    /// Leaves a dead letter in its queue, even after an error.
    ///
    /// Fails if it was close to the delivery limit and RabbitMQ did not confirm its copy.
    pub(crate) async fn keep(&self, letter: &DeadLetter) -> Result<(), PublishError> {
        if letter.is_near_limit() { self.move_to_end(letter).await } else { Ok(()) }
    }

    /// Leaves a dead letter in its queue, and moves it to the end once it was held for long.
    pub(crate) async fn hold(&mut self, letter: DeadLetter) -> Result<(), PublishError> {
        if letter.is_near_limit() {
            return self.move_to_end(&letter).await;
        }
        self.held_bytes += letter.delivery.body().len();
        self.held.push_back(Held { letter, since: Instant::now() });
        self.move_held().await
    }

    /// When to call [`Self::move_held`] next.
    pub(crate) fn held_until(&self) -> Option<Instant> {
        self.held.front().map(|held| held.since + MAX_HOLD)
    }

    /// Moves letters that were held for long, or that take too much memory, to the end of the queue.
    ///
    /// Like any copy, one may be doubled if this process is killed between RabbitMQ's confirm and the ack.
    pub(crate) async fn move_held(&mut self) -> Result<(), PublishError> {
        while let Some(Held { letter, since }) = self.held.front()
            && (since.elapsed() >= MAX_HOLD || self.held_bytes > MAX_HELD_BYTES)
        {
            self.move_to_end(letter).await?;
            self.held_bytes -= letter.delivery.body().len();
            self.held.pop_front();
        }
        Ok(())
    }

    /// Returns all held letters to the queue, so that [`Self::next`] receives all letters again.
    pub(crate) fn rewind(&mut self) {
        for held in self.held.drain(..) {
            held.letter.delivery.requeue();
        }
        self.held_bytes = 0;
        self.remaining = self.total;
    }

    /// Replaces a dead letter by a copy at the end of the queue.
    async fn move_to_end(&self, letter: &DeadLetter) -> Result<(), PublishError> {
        let copy = same_copy(letter.delivery.properties());
        let queue = self.publisher.topology().dead_queue();
        self.publisher.publish("", queue, copy, letter.delivery.body()).await?;
        letter.delivery.ack_flushed().await;
        Ok(())
    }

    /// Removes a dead letter for good, unless the connection is lost.
    pub(crate) async fn discard(&self, letter: &DeadLetter) -> Result<(), PublishError> {
        if letter.delivery.ack_flushed().await { Ok(()) } else { Err(PublishError::Disconnected) }
    }

    /// Requeues every unsettled dead letter and closes the connection.
    ///
    /// Waits until the letters are back, because the next command of a script would not find them.
    pub(crate) async fn close(self) {
        let unsettled = self.acks.ledger.lock().unsettled();
        if let Some(tag) = self.last_tag
            && unsettled > 0
        {
            let before = self.ready().await;
            let options = BasicNackOptions { multiple: true, requeue: true };
            let requeue = self.acks.channel.basic_nack(tag, options);
            // After the timeout, RabbitMQ requeues them when the connection closes.
            let _ = timeout(RPC_TIMEOUT, requeue).await;
            let are_missing = |ready| before.is_some_and(|before| ready < before + unsettled);
            let returned = async {
                while self.ready().await.is_some_and(are_missing) {
                    sleep(RETURN_POLL).await;
                }
            };
            // They may never be back: another process may have taken them.
            let _ = timeout(RETURN_LIMIT, returned).await;
        }
        self.connection.close().await;
    }

    /// How many letters RabbitMQ could deliver now, if it answers.
    async fn ready(&self) -> Option<usize> {
        let queue = self.publisher.topology().dead_queue();
        let counts = queue_counts(&self.connection.lapin, queue).await.ok()?;
        Some(counts.messages as usize)
    }
}

impl DeadLetter {
    /// Whether it was returned to its queue so often that RabbitMQ may soon drop it.
    fn is_near_limit(&self) -> bool {
        self.delivery.was_returned_often()
    }

    /// The request's id, from the worker's header, the body or the properties.
    pub(crate) fn request_id(&self) -> Option<String> {
        let delivery = &self.delivery;
        let decoded = || decode_request(delivery.body(), usize::MAX, Some("any")).id;
        let header = delivery.request_id_header().map(str::to_owned);
        header
            .or_else(|| decoded().map(|id| id.as_str().to_owned()))
            .or_else(|| delivery.message_id().map(str::to_owned))
    }

    /// The queue that it came from, as the worker says, or RabbitMQ if RabbitMQ dead-lettered it.
    pub(crate) fn queue(&self) -> Option<String> {
        self.text(QUEUE)
            .or_else(|| Some(self.death()?.inner().get("queue")?.as_long_string()?.to_string()))
    }

    /// The queue to return it to: that of endings, or else that of requests.
    fn queue_before<'a>(&self, topology: &'a Topology) -> &'a str {
        if self.queue().as_deref() == Some(topology.ended_queue()) {
            topology.ended_queue()
        } else {
            topology.request_queue()
        }
    }

    /// The worker's `reason.code`, or RabbitMQ's reason if RabbitMQ dead-lettered it.
    pub(crate) fn reason(&self) -> Option<String> {
        self.text(REASON)
            .or_else(|| Some(self.death()?.inner().get("reason")?.as_long_string()?.to_string()))
    }

    /// The worker's message for people, if the worker dead-lettered it.
    pub(crate) fn detail(&self) -> Option<String> {
        self.text(DETAIL)
    }

    pub(crate) fn failed_at(&self) -> Option<SystemTime> {
        if let Some(text) = self.text(FAILED_AT) {
            return parse_date_time(&text);
        }
        let seconds = self.death()?.inner().get("time")?.as_timestamp()?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
    }

    fn text(&self, name: &str) -> Option<String> {
        let text = self.delivery.header(name)?;
        Some(String::from_utf8_lossy(text).into_owned())
    }

    /// RabbitMQ's record of the latest dead-lettering.
    fn death(&self) -> Option<&FieldTable> {
        let deaths = self.delivery.headers()?.inner().get("x-death")?.as_array()?;
        deaths.as_slice().first()?.as_field_table()
    }
}
