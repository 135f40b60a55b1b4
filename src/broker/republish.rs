//! The properties of a copy: a retry copy, a dead letter or a replay.

use std::time::{Duration, SystemTime};

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable, ShortString},
};

use super::{
    amqp::{long_string, without},
    log,
};
use crate::{
    message::{ENDED, FailedReason, RequestId, format_date_time},
    units::unix_millis,
};

/// On each copy: the request's id.
pub(super) const REQUEST_ID: &str = "x-handoff-request-id";
/// On each copy: the attempts made.
pub(super) const ATTEMPT: &str = "x-handoff-attempt";
/// On copies: how often the platform deferred the request alone.
pub(super) const DEFERRED: &str = "x-handoff-deferred";
/// On copies in a retry queue: when they are due back, in milliseconds since 1970.
pub(super) const DUE: &str = "x-handoff-due";
/// With it: the copy's own [`ATTEMPT`]. Release 0.1 passes on both headers to its copies, and counts them further.
pub(super) const DUE_ATTEMPT: &str = "x-handoff-due-attempt";
/// On copies and dead letters: `handoff.ready` was refused, and a queue may have received it all the same.
pub(super) const EVENT_REFUSED: &str = "x-handoff-event-refused";
/// On copies of endings: when a worker first received it, in milliseconds since 1970.
pub(super) const RECEIVED: &str = "x-handoff-received";
/// On dead letters: the queue that they come from.
pub(super) const QUEUE: &str = "x-handoff-queue";
/// On dead letters: the reason's code.
pub(super) const REASON: &str = "x-handoff-reason";
/// On dead letters: the reason's message.
pub(super) const DETAIL: &str = "x-handoff-detail";
/// On dead letters: when the request failed, as RFC 3339.
pub(super) const FAILED_AT: &str = "x-handoff-failed-at";

/// RabbitMQ's count of redeliveries, which it compares with the delivery limit.
pub(super) const DELIVERY_COUNT: &str = "x-delivery-count";

/// The queue that a message was dead-lettered from: for copies, the retry queue.
pub(super) const FIRST_DEATH_QUEUE: &str = "x-first-death-queue";

/// Limit of a request id in headers, in bytes. The body has longer ones whole.
const MAX_REQUEST_ID: usize = 4 * 1024;

/// RabbitMQ's own headers.
/// RabbitMQ interprets the `x-death` of a published message (rabbitmq-server#11339): if it names
/// the queue that a copy expires into, RabbitMQ assumes a dead-letter cycle and drops the copy.
const BROKER_HEADERS: [&str; 8] = [
    "x-death",
    "x-first-death-exchange",
    FIRST_DEATH_QUEUE,
    "x-first-death-reason",
    "x-last-death-exchange",
    "x-last-death-queue",
    "x-last-death-reason",
    DELIVERY_COUNT,
];
/// The producer's further routing keys, which RabbitMQ used for the original.
const ROUTING_HEADERS: [&str; 2] = ["CC", "BCC"];
/// Ours from an earlier copy.
const DUE_HEADERS: [&str; 2] = [DUE, DUE_ATTEMPT];
/// Ours from an earlier failure, if an operator moved a dead letter back.
const FAILURE_HEADERS: [&str; 4] = [QUEUE, REASON, DETAIL, FAILED_AT];

/// Bytes of a frame that are kept free of the producer's headers.
/// For our headers, the other properties, and what RabbitMQ adds when it dead-letters the message.
pub(super) const RESERVED_BYTES: usize = 12 * 1024;

/// The request behind a delivery, and the attempts it has used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tried<'a> {
    pub(crate) request_id: &'a RequestId,
    /// Attempts made, the current one included.
    pub(crate) attempts: u32,
    /// How often the platform deferred it alone.
    pub(crate) deferrals: u32,
    /// RabbitMQ refused its `handoff.ready` at least once.
    pub(crate) event_refused: bool,
}

/// Why a request is dead-lettered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeadLetterReason {
    pub(crate) code: &'static str,
    pub(crate) message: String,
}

impl From<FailedReason> for DeadLetterReason {
    fn from(FailedReason { code, message }: FailedReason) -> Self {
        Self { code: code.as_str(), message }
    }
}

impl DeadLetterReason {
    /// No ending: what the message breaks.
    pub(crate) fn invalid_ending(message: String) -> Self {
        Self { code: "invalid_ending", message }
    }

    /// The request's `handoff.ready` was refused before it failed.
    pub(crate) fn event_refused(failed: &FailedReason) -> Self {
        let message = format!(
            "a queue refused or did not confirm `handoff.ready`, and another may have received it; {}",
            failed.message
        );
        Self { code: "event_refused", message }
    }
}

pub(super) fn retry_copy(
    of: &BasicProperties,
    tried: Tried<'_>,
    frame_max: usize,
) -> BasicProperties {
    with_headers(of, copy_headers(of, tried, frame_max))
}

/// Adds when a copy is due back. `None`: it does not wait in a retry queue.
pub(super) fn with_due(
    copy: BasicProperties,
    delay: Option<Duration>,
    now: SystemTime,
) -> BasicProperties {
    let due = delay.and_then(|delay| now.checked_add(delay));
    let due_ms = due.and_then(|due| i64::try_from(unix_millis(due)).ok());
    let Some(due_ms) = due_ms else { return copy };
    let mut headers = copy.headers().clone().unwrap_or_default();
    headers.insert(DUE.into(), AMQPValue::LongLongInt(due_ms));
    if let Some(attempt) = headers.inner().get(ATTEMPT).cloned() {
        headers.insert(DUE_ATTEMPT.into(), attempt);
    }
    copy.with_headers(headers)
}

pub(super) fn dead_letter(
    of: &BasicProperties,
    tried: Tried<'_>,
    reason: &DeadLetterReason,
    queue: &str,
    failed_at: SystemTime,
    frame_max: usize,
) -> BasicProperties {
    let mut headers = copy_headers(of, tried, frame_max);
    headers.insert(QUEUE.into(), long_string(queue));
    headers.insert(REASON.into(), long_string(reason.code));
    headers.insert(DETAIL.into(), long_string(&reason.message));
    headers.insert(FAILED_AT.into(), long_string(&format_date_time(failed_at)));
    with_headers(of, headers)
}

/// The properties of a copy of a request that was not tried.
pub(super) fn untried_copy(of: &BasicProperties, frame_max: usize) -> BasicProperties {
    with_headers(of, producer_headers(of, None, frame_max))
}

/// The properties of a copy of an ending. Its type says so, wherever it is published to.
pub(super) fn ending_copy(
    of: &BasicProperties,
    received_ms: u64,
    frame_max: usize,
) -> BasicProperties {
    let mut headers = producer_headers(of, None, frame_max);
    headers.insert(RECEIVED.into(), AMQPValue::LongLongInt(received_ms.cast_signed()));
    with_headers(of, headers).with_type(ENDED.into())
}

/// The properties of a dead letter that starts over, with no attempt made.
pub(super) fn replay_copy(
    of: &BasicProperties,
    request_id: Option<&RequestId>,
    frame_max: usize,
) -> BasicProperties {
    let headers = producer_headers(of, request_id, frame_max);
    with_headers(of, without(&without(&headers, ATTEMPT), DEFERRED))
}

/// The properties of a copy that replaces its original in the same queue.
/// Only its delivery count restarts.
pub(super) fn same_copy(of: &BasicProperties) -> BasicProperties {
    let none = FieldTable::default();
    with_headers(of, without(of.headers().as_ref().unwrap_or(&none), DELIVERY_COUNT))
}

fn copy_headers(of: &BasicProperties, tried: Tried<'_>, frame_max: usize) -> FieldTable {
    let mut headers = producer_headers(of, Some(tried.request_id), frame_max);
    let id = tried.request_id.as_str();
    headers.insert(REQUEST_ID.into(), long_string(&id[..id.floor_char_boundary(MAX_REQUEST_ID)]));
    headers.insert(ATTEMPT.into(), AMQPValue::LongLongInt(tried.attempts.into()));
    if tried.deferrals > 0 {
        headers.insert(DEFERRED.into(), AMQPValue::LongLongInt(tried.deferrals.into()));
    }
    if tried.event_refused {
        headers.insert(EVENT_REFUSED.into(), AMQPValue::Boolean(true));
    }
    headers
}

/// The original's properties with other headers, and without two of them.
/// `expiration` would drop the copy early, and RabbitMQ accepts `user_id` only from a connection of
/// that user.
fn with_headers(of: &BasicProperties, headers: FieldTable) -> BasicProperties {
    let mut to = BasicProperties::default().with_headers(headers);
    macro_rules! copy {
        ($($get:ident $with:ident),* $(,)?) => {
            $(if let Some(value) = of.$get().clone() { to = to.$with(value); })*
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

fn producer_headers(
    of: &BasicProperties,
    request_id: Option<&RequestId>,
    frame_max: usize,
) -> FieldTable {
    let none = FieldTable::default();
    let (kept, dropped) = fitting_headers(of.headers().as_ref().unwrap_or(&none), frame_max);
    if dropped > 0 {
        log::headers_too_large(request_id, dropped);
    }
    kept
}

/// The producer's headers that fit into one frame with ours, and how many do not.
/// AMQP splits a body over frames, but not headers. RabbitMQ closes the connection for a frame that
/// is too large, and each redelivery of the message would make a worker send that frame. So the
/// largest headers are dropped.
fn fitting_headers(headers: &FieldTable, frame_max: usize) -> (FieldTable, usize) {
    let is_producers = |name: &str| {
        !BROKER_HEADERS.contains(&name)
            && !ROUTING_HEADERS.contains(&name)
            && !FAILURE_HEADERS.contains(&name)
            && !DUE_HEADERS.contains(&name)
    };
    let entry_size = |&(name, value): &(&ShortString, &AMQPValue)| short_size(name) + size(value);
    let mut entries: Vec<_> =
        headers.inner().iter().filter(|entry| is_producers(entry.0.as_str())).collect();
    entries.sort_by_key(entry_size);
    let mut free = frame_max.saturating_sub(RESERVED_BYTES);
    let fitting = entries.iter().take_while(|entry| {
        let fits = entry_size(entry) <= free;
        free = free.saturating_sub(entry_size(entry));
        fits
    });
    let mut kept = FieldTable::default();
    for &(name, value) in fitting {
        kept.insert(name.clone(), value.clone());
    }
    let dropped = entries.len() - kept.inner().len();
    (kept, dropped)
}

/// An upper bound of an encoded value's size in bytes, its type tag included.
fn size(value: &AMQPValue) -> usize {
    1 + match value {
        AMQPValue::ShortString(text) => short_size(text),
        AMQPValue::LongString(text) => 4 + text.as_bytes().len(),
        AMQPValue::ByteArray(bytes) => 4 + bytes.as_slice().len(),
        AMQPValue::FieldArray(values) => 4 + values.as_slice().iter().map(size).sum::<usize>(),
        AMQPValue::FieldTable(table) => {
            let entries = table.inner().iter();
            4 + entries.map(|(name, value)| short_size(name) + size(value)).sum::<usize>()
        }
        // Numbers and times take at most 8 bytes.
        _ => 8,
    }
}

fn short_size(text: &ShortString) -> usize {
    1 + text.as_str().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(entries: &[(&str, usize)]) -> FieldTable {
        let mut table = FieldTable::default();
        for (name, length) in entries {
            table.insert((*name).into(), AMQPValue::LongString("x".repeat(*length).into()));
        }
        table
    }

    #[test]
    fn headers_that_fit_are_copied_unchanged() {
        let headers = table(&[("a", 10), ("b", 100_000), ("c", 0)]);
        assert_eq!(fitting_headers(&headers, 131_072), (headers, 0));
    }

    #[test]
    fn broker_and_routing_headers_are_not_copied() {
        let headers = table(&[("x-death", 1), ("x-first-death-queue", 1), ("CC", 1), ("mine", 1)]);
        assert_eq!(fitting_headers(&headers, 131_072), (table(&[("mine", 1)]), 0));
    }

    #[test]
    fn largest_headers_are_dropped_first() {
        let headers = table(&[("a", 10), ("b", 100_000), ("c", 50_000), ("d", 20)]);
        let without_b = table(&[("a", 10), ("c", 50_000), ("d", 20)]);
        assert_eq!(fitting_headers(&headers, 131_072), (without_b, 1));
        assert_eq!(fitting_headers(&headers, 16_384), (table(&[("a", 10), ("d", 20)]), 2));
    }

    #[test]
    fn nested_values_count_in_full() {
        let mut headers = table(&[("a", 10)]);
        let inner = AMQPValue::FieldTable(table(&[("x", 70_000)]));
        headers.insert("n".into(), AMQPValue::FieldArray(vec![inner.clone(), inner].into()));
        assert_eq!(fitting_headers(&headers, 131_072), (table(&[("a", 10)]), 1));
    }
}
