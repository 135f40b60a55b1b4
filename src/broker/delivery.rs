//! One delivery: its properties, and the ways to settle it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use futures_util::FutureExt;
use lapin::{
    BasicProperties,
    options::{BasicAckOptions, BasicNackOptions, BasicRejectOptions},
    types::{AMQPValue, FieldTable, ShortString},
};
use tokio::time::timeout;

use super::{
    acks::Acks,
    large::{Held, IN_HAND, large_size},
    log,
    republish::{
        ATTEMPT, DEFERRED, DELIVERY_COUNT, DUE, DUE_ATTEMPT, EVENT_REFUSED, FIRST_DEATH_QUEUE,
        RECEIVED, REQUEST_ID,
    },
};
use crate::{message::ENDED, units::unix_millis};

/// Limit of writing an ack.
/// lapin 4.12 can lose a write when its connection ends, and then never completes its future
/// (amqp-rs/lapin#409, open, reports it for publishes).
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// Redeliveries after which a message may be a poison message.
/// Half of the delivery limit: ours of 20 on the request queue, and RabbitMQ's default of 20 on
/// every quorum queue since 4.0.
pub(crate) const SUSPECT_REDELIVERIES: u32 = 10;

/// A delivery that must be settled.
pub(crate) struct Delivery {
    inner: lapin::message::Delivery,
    acks: Arc<Acks>,
    /// RabbitMQ closes a channel on which a delivery is settled twice.
    settled: AtomicBool,
    /// Dropped after the message, whose memory it counts.
    room: Room,
}

/// The memory of a delivery.
#[derive(Debug)]
enum Room {
    NotCounted,
    Held(Held),
    /// There was too little memory, so the message was emptied.
    Missing,
}

impl Delivery {
    pub(super) fn new(inner: lapin::message::Delivery, acks: &Arc<Acks>) -> Self {
        acks.ledger.lock().delivered(inner.delivery_tag);
        let room = Room::NotCounted;
        Self { inner, acks: Arc::clone(acks), settled: AtomicBool::new(false), room }
    }

    /// Takes memory for a large message; empties it if there is too little.
    pub(super) fn within_memory(mut self) -> Self {
        if let Some(bytes) = large_size(&self.inner) {
            self.room = IN_HAND.hold(bytes).map_or(Room::Missing, Room::Held);
            if self.is_emptied() {
                log::no_memory(bytes);
                self.inner.data = Vec::new();
                self.inner.properties = BasicProperties::default();
            }
        }
        self
    }

    /// The memory that it takes, if it is large.
    pub(crate) fn large_bytes(&self) -> Option<usize> {
        match &self.room {
            Room::Held(held) => Some(held.bytes),
            Room::NotCounted | Room::Missing => None,
        }
    }

    /// Whether it was emptied for want of memory: it can only be requeued.
    pub(super) fn is_emptied(&self) -> bool {
        matches!(self.room, Room::Missing)
    }

    /// Frees the body, so that many deliveries can be held in memory.
    pub(crate) fn drop_body(&mut self) {
        self.inner.data = Vec::new();
    }

    pub(crate) fn body(&self) -> &[u8] {
        &self.inner.data
    }

    /// Whether its routing key or its property `type` is that of an ending.
    pub(crate) fn is_ending(&self) -> bool {
        self.inner.routing_key.as_str() == ENDED
            || not_empty(self.inner.properties.kind()) == Some(ENDED)
    }

    /// When a worker first received this ending, in milliseconds since 1970, if it is a copy.
    pub(crate) fn first_received_ms(&self) -> Option<u64> {
        match self.headers()?.inner().get(RECEIVED) {
            Some(AMQPValue::LongLongInt(ms)) => u64::try_from(*ms).ok(),
            _ => None,
        }
    }

    /// The property `message_id`, unless it is blank: all events of blank ids would count as repeats.
    pub(crate) fn message_id(&self) -> Option<&str> {
        not_empty(self.inner.properties.message_id()).filter(|id| !id.trim().is_empty())
    }

    /// The property `correlation_id`, unless it is empty.
    pub(crate) fn correlation_id(&self) -> Option<&str> {
        not_empty(self.inner.properties.correlation_id())
    }

    /// The property `content_encoding`.
    pub(crate) fn content_encoding(&self) -> Option<&str> {
        self.inner.properties.content_encoding().as_ref().map(ShortString::as_str)
    }

    /// When the producer published, to the second: the property `timestamp`, unless it is 0, which
    /// some clients send for "not set".
    pub(crate) fn published_at(&self) -> Option<SystemTime> {
        let seconds = (*self.inner.properties.timestamp()).filter(|seconds| *seconds > 0)?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
    }

    /// The request id that a retry copy carries in its headers.
    pub(crate) fn request_id_header(&self) -> Option<&str> {
        let id = std::str::from_utf8(self.header(REQUEST_ID)?).ok()?;
        (!id.is_empty()).then_some(id)
    }

    /// Attempts made on earlier deliveries of this request.
    pub(crate) fn previous_attempts(&self) -> u32 {
        self.number(ATTEMPT)
    }

    /// How often the platform deferred this request alone, on earlier deliveries.
    pub(crate) fn previous_deferrals(&self) -> u32 {
        self.number(DEFERRED)
    }

    /// Whether an earlier `handoff.ready` of this request was refused.
    pub(crate) fn event_refused(&self) -> bool {
        let refused = self.headers().and_then(|headers| headers.inner().get(EVENT_REFUSED));
        refused == Some(&AMQPValue::Boolean(true))
    }

    /// The queue that it was dead-lettered from: for copies, the retry queue. RabbitMQ says so; copies do not
    /// carry it on, release 0.1's neither.
    pub(crate) fn came_from(&self) -> Option<&str> {
        std::str::from_utf8(self.header(FIRST_DEATH_QUEUE)?).ok()
    }

    /// How late a copy is back from its retry queue. `None` on redeliveries, which may have waited for another
    /// reason, and where the due time is that of an earlier copy: release 0.1 copies the header.
    pub(crate) fn retry_lateness(&self) -> Option<Duration> {
        let headers = self.headers()?.inner();
        if self.inner.redelivered || headers.get(DUE_ATTEMPT) != headers.get(ATTEMPT) {
            return None;
        }
        let AMQPValue::LongLongInt(due) = headers.get(DUE)? else { return None };
        let due = u64::try_from(*due).ok()?;
        // Zero for a copy that is early: another host's clock may differ.
        Some(Duration::from_millis(unix_millis(SystemTime::now()).saturating_sub(due)))
    }

    /// RabbitMQ's count of redeliveries: a hint at a poison message, no more.
    ///
    /// What is counted depends on the version. On a first delivery the header is a producer's or a
    /// shovel's. On a redelivery RabbitMQ replaces it by its own count, which starts at zero; RabbitMQ 4.3
    /// leaves it while its count is zero, so that it may be another's after a `nack`.
    pub(crate) fn redeliveries(&self) -> u32 {
        if self.inner.redelivered { self.number(DELIVERY_COUNT) } else { 0 }
    }

    /// Whether RabbitMQ has delivered it before.
    pub(crate) fn was_redelivered(&self) -> bool {
        self.inner.redelivered
    }

    /// Whether RabbitMQ has redelivered it so often that its delivery limit is near.
    pub(crate) fn was_returned_often(&self) -> bool {
        self.redeliveries() >= SUSPECT_REDELIVERIES
    }

    fn number(&self, header: &str) -> u32 {
        let count = match self.headers().and_then(|headers| headers.inner().get(header)) {
            Some(AMQPValue::ShortShortInt(n)) => i64::from(*n),
            Some(AMQPValue::ShortShortUInt(n)) => i64::from(*n),
            Some(AMQPValue::ShortInt(n)) => i64::from(*n),
            Some(AMQPValue::ShortUInt(n)) => i64::from(*n),
            Some(AMQPValue::LongInt(n)) => i64::from(*n),
            Some(AMQPValue::LongUInt(n)) => i64::from(*n),
            Some(AMQPValue::LongLongInt(n)) => *n,
            _ => 0,
        };
        u32::try_from(count.max(0)).unwrap_or(u32::MAX)
    }

    /// A header with a string value, as bytes: AMQP's long strings need not be UTF-8.
    ///
    /// Clients for Java, Go and Python write a string of bytes as a byte array.
    pub(crate) fn header(&self, name: &str) -> Option<&[u8]> {
        match self.headers()?.inner().get(name)? {
            AMQPValue::LongString(text) => Some(text.as_bytes()),
            AMQPValue::ByteArray(bytes) => Some(bytes.as_slice()),
            AMQPValue::ShortString(text) => Some(text.as_str().as_bytes()),
            _ => None,
        }
    }

    pub(crate) fn headers(&self) -> Option<&FieldTable> {
        self.inner.properties.headers().as_ref()
    }

    /// The names of all headers.
    pub(crate) fn header_names(&self) -> impl Iterator<Item = &str> {
        self.headers()
            .into_iter()
            .flat_map(|headers| headers.inner().keys().map(ShortString::as_str))
    }

    pub(crate) fn properties(&self) -> &BasicProperties {
        &self.inner.properties
    }

    /// Acks it in the next batch.
    ///
    /// Returns `false` if it was settled before, or if the channel is closed, so that RabbitMQ
    /// redelivers it. `true` does not prove that RabbitMQ received the ack: AMQP has no answer to
    /// acks.
    pub(crate) fn ack(&self) -> bool {
        !self.mark_settled() && self.acks.ack(self.tag())
    }

    /// Acks it, and returns whether the ack was written to the socket.
    pub(super) async fn ack_flushed(&self) -> bool {
        if self.mark_settled() {
            return false;
        }
        let ack = self.acks.channel.basic_ack(self.tag(), BasicAckOptions::default());
        let written = timeout(WRITE_TIMEOUT, ack).await;
        self.acks.ledger.lock().settled(self.tag());
        matches!(written, Ok(Ok(())))
    }

    /// Returns it to its queue. RabbitMQ does so itself when the channel closes.
    ///
    /// Sends `nack`: since 4.3, RabbitMQ counts `reject` towards the delivery limit, and not `nack`
    /// (rabbitmq-website#2508). Up to 4.2 it counts both.
    pub(crate) fn requeue(&self) {
        let options = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
        self.settle(|| self.acks.channel.basic_nack(self.tag(), options));
    }

    /// Returns it to its queue as a suspected poison message.
    ///
    /// Sends `reject`: every version of RabbitMQ counts it towards the delivery limit, and
    /// dead-letters the message when the limit is reached.
    pub(crate) fn reject(&self) {
        let options = BasicRejectOptions { requeue: true };
        self.settle(|| self.acks.channel.basic_reject(self.tag(), options));
    }

    /// Sends a nack or reject without waiting for the write.
    /// The first poll queues the frame; lapin's own `Acker` would spawn a task for that.
    fn settle<F: Future<Output = lapin::Result<()>>>(&self, send: impl FnOnce() -> F) {
        if !self.mark_settled() {
            let _ = send().now_or_never();
            self.acks.ledger.lock().settled(self.tag());
        }
    }

    /// Returns whether it was settled before.
    fn mark_settled(&self) -> bool {
        self.settled.swap(true, Ordering::Relaxed)
    }

    fn tag(&self) -> u64 {
        self.inner.delivery_tag
    }
}

fn not_empty(property: &Option<ShortString>) -> Option<&str> {
    property.as_ref().map(ShortString::as_str).filter(|text| !text.is_empty())
}
