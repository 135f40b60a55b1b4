//! A delivery: what it says of itself, how it is settled, and what its copies look like.

use std::time::{Duration, SystemTime};

use lapin::{
    BasicProperties,
    options::{BasicAckOptions, BasicNackOptions, BasicRejectOptions},
    types::{AMQPValue, FieldTable, ShortString},
};

use super::headers::fitting;

/// On our own copies: the request's id.
const REQUEST_ID: &str = "x-handoff-request-id";
/// On our own copies: the deliveries that were tried before it.
const ATTEMPT: &str = "x-handoff-attempt";
/// On dead letters: the reason's code.
const REASON: &str = "x-handoff-reason";
/// On dead letters: the reason for people.
const DETAIL: &str = "x-handoff-detail";
/// On dead letters: when, as RFC 3339.
const FAILED_AT: &str = "x-handoff-failed-at";

/// One message from the request queue, unsettled.
pub struct Delivery {
    inner: lapin::message::Delivery,
}

impl Delivery {
    pub(super) fn new(inner: lapin::message::Delivery) -> Self {
        Self { inner }
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
    pub fn copied_request_id(&self) -> Option<&str> {
        self.header(REQUEST_ID)
            .and_then(|bytes| std::str::from_utf8(bytes).ok())
            .filter(|id| !id.is_empty())
    }

    /// How many deliveries of this request were tried before this one.
    pub fn tried_before(&self) -> u32 {
        let count = match self.headers().and_then(|headers| headers.inner().get(ATTEMPT)) {
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

    /// Settles it for good. `false` where its channel is gone: then it is redelivered.
    pub async fn ack(&self) -> bool {
        self.inner.acker.ack(BasicAckOptions::default()).await.unwrap_or(false)
    }

    /// Hands it back to RabbitMQ, which gives it to whoever is next.
    ///
    /// `nack`, not `reject`: newer brokers count only the latter towards the delivery limit.
    pub async fn hand_back(&self) {
        let back = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
        // Where the channel is gone, the message is back already.
        let _ = self.inner.acker.nack(back).await;
    }

    /// Hands it back as one that does harm: RabbitMQ counts these, and moves the message to the dead
    /// queue when it has come back too often.
    pub async fn reject(&self) {
        let back = BasicRejectOptions { requeue: true };
        let _ = self.inner.acker.reject(back).await;
    }

    /// The properties of a copy that is to be tried again.
    pub(super) fn retry_properties(
        &self,
        request_id: &str,
        attempts: u32,
        frame_max: usize,
    ) -> BasicProperties {
        self.copied_properties(self.copied_headers(request_id, attempts, frame_max))
    }

    /// The properties of a dead letter.
    pub(super) fn dead_properties(
        &self,
        request_id: &str,
        attempts: u32,
        reason: &str,
        detail: &str,
        failed_at: &str,
        frame_max: usize,
    ) -> BasicProperties {
        let mut headers = self.copied_headers(request_id, attempts, frame_max);
        headers.insert(REASON.into(), text(reason));
        headers.insert(DETAIL.into(), text(detail));
        headers.insert(FAILED_AT.into(), text(failed_at));
        self.copied_properties(headers)
    }

    fn copied_headers(&self, request_id: &str, attempts: u32, frame_max: usize) -> FieldTable {
        let none = FieldTable::default();
        let mut headers = fitting(self.headers().unwrap_or(&none), frame_max);
        headers.insert(REQUEST_ID.into(), text(request_id));
        headers.insert(ATTEMPT.into(), AMQPValue::LongLongInt(attempts.into()));
        headers
    }

    /// The properties as they were, but for two: `expiration` would end the copy before its time, and
    /// `user_id` is accepted from the user of that name only.
    fn copied_properties(&self, headers: FieldTable) -> BasicProperties {
        let from = &self.inner.properties;
        let mut to = BasicProperties::default().with_headers(headers);
        macro_rules! copy {
            ($($get:ident $with:ident),* $(,)?) => {
                $(if let Some(value) = from.$get().clone() { to = to.$with(value); })*
            };
        }
        copy!(
            content_type with_content_type,
            content_encoding with_content_encoding,
            delivery_mode with_delivery_mode,
            priority with_priority,
            correlation_id with_correlation_id,
            reply_to with_reply_to,
            message_id with_message_id,
            timestamp with_timestamp,
            kind with_type,
            app_id with_app_id,
            cluster_id with_cluster_id,
        );
        to
    }

    fn headers(&self) -> Option<&FieldTable> {
        self.inner.properties.headers().as_ref()
    }
}

fn not_empty(property: &Option<ShortString>) -> Option<&str> {
    property.as_ref().map(ShortString::as_str).filter(|text| !text.is_empty())
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}
