//! A delivery: what it says of itself, and how it leaves our hands.

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
    republish::{ATTEMPT, DELIVERY_COUNT, REQUEST_ID},
};

/// Limit of waiting until an acknowledgement is written. The library can lose one that meets the end of
/// its connection, and would let us wait for ever.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);
/// A message that came back so often is half-way to the delivery limit: ours on the request queue, and
/// what a newer RabbitMQ puts on any quorum queue.
pub const SUSPECT_REDELIVERIES: u32 = 10;

/// One message from the request queue, unsettled.
pub struct Delivery {
    inner: lapin::message::Delivery,
    acks: Arc<Acks>,
    /// RabbitMQ closes a channel on which one is settled twice.
    settled: AtomicBool,
}

impl Delivery {
    /// As it came, to be settled here.
    pub(super) fn new(inner: lapin::message::Delivery, acks: &Arc<Acks>) -> Self {
        acks.came(inner.delivery_tag);
        Self { inner, acks: Arc::clone(acks), settled: AtomicBool::new(false) }
    }

    pub(super) fn without_body(mut self) -> Self {
        self.inner.data = Vec::new();
        self
    }

    /// The body as it was published.
    pub fn body(&self) -> &[u8] {
        &self.inner.data
    }

    /// The AMQP property `message_id`, unless it is empty.
    pub fn message_id(&self) -> Option<&str> {
        not_empty(self.inner.properties.message_id())
    }

    /// The AMQP property `correlation_id`, unless it is empty.
    pub fn correlation_id(&self) -> Option<&str> {
        not_empty(self.inner.properties.correlation_id())
    }

    /// The AMQP property `timestamp`: when the producer published, to the second.
    pub fn published_at(&self) -> Option<SystemTime> {
        let seconds = (*self.inner.properties.timestamp())?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
    }

    /// The request id that an earlier copy of ours carries.
    pub fn request_id_header(&self) -> Option<&str> {
        self.header(REQUEST_ID)
            .and_then(|bytes| std::str::from_utf8(bytes).ok())
            .filter(|id| !id.is_empty())
    }

    /// How many deliveries of this request were tried before this one.
    pub fn previous_attempts(&self) -> u32 {
        self.number(ATTEMPT)
    }

    /// How often it came back unsettled, as far as RabbitMQ counts that, which depends on its version:
    /// a sign that it may do harm, and no more than that.
    pub fn redeliveries(&self) -> u32 {
        self.number(DELIVERY_COUNT)
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

    /// A header that holds text, as bytes.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        match self.headers()?.inner().get(name)? {
            AMQPValue::LongString(text) => Some(text.as_bytes()),
            AMQPValue::ShortString(text) => Some(text.as_str().as_bytes()),
            _ => None,
        }
    }

    /// Settles it for good, in a moment, together with others. `false` where its channel is gone, and it
    /// is redelivered, or where it was settled before.
    ///
    /// Whether RabbitMQ gets it, nobody could tell: there is no answer to it.
    pub fn ack(&self) -> bool {
        !self.settled.swap(true, Ordering::Relaxed) && self.acks.ack(self.tag())
    }

    /// Settles it for good, and waits until that is written.
    pub async fn ack_written(&self) -> bool {
        if self.settled.swap(true, Ordering::Relaxed) {
            return false;
        }
        let ack = self.acks.channel().basic_ack(self.tag(), BasicAckOptions::default());
        let acked = timeout(SETTLE_LIMIT, ack).await;
        self.acks.settled(self.tag());
        matches!(acked, Ok(Ok(())))
    }

    /// Hands it back to RabbitMQ, which gives it to whoever is next. Where its channel is gone, it is
    /// back already.
    ///
    /// `nack`, not `reject`: newer brokers count only the latter towards the delivery limit.
    pub fn requeue(&self) {
        let back = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
        self.settle(|| self.acks.channel().basic_nack(self.tag(), back));
    }

    /// Hands it back as one that does harm: RabbitMQ counts these, and moves the message to the dead
    /// queue when it has come back too often.
    pub fn reject(&self) {
        let back = BasicRejectOptions { requeue: true };
        self.settle(|| self.acks.channel().basic_reject(self.tag(), back));
    }

    /// Sends word of it, and does not wait until that is written. The acker that comes with a delivery
    /// would do it in a task of its own.
    fn settle<F: Future<Output = lapin::Result<()>>>(&self, word: impl FnOnce() -> F) {
        if !self.settled.swap(true, Ordering::Relaxed) {
            let _ = word().now_or_never();
            self.acks.settled(self.tag());
        }
    }

    fn tag(&self) -> u64 {
        self.inner.delivery_tag
    }

    /// All properties, as they came.
    pub fn properties(&self) -> &BasicProperties {
        &self.inner.properties
    }

    /// All headers.
    pub fn headers(&self) -> Option<&FieldTable> {
        self.inner.properties.headers().as_ref()
    }
}

fn not_empty(property: &Option<ShortString>) -> Option<&str> {
    property.as_ref().map(ShortString::as_str).filter(|text| !text.is_empty())
}
