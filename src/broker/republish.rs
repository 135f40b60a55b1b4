//! Copies: what a message takes along to the retry queues and the dead queue.

use std::{collections::BTreeMap, time::SystemTime};

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable, ShortString},
};

use super::{log, topology::text};
use crate::message::{FailedReason, RequestId, format_date_time};

/// On every copy: the request's id.
pub(super) const REQUEST_ID: &str = "x-handoff-request-id";
/// On every copy: the deliveries that were tried before it.
pub(super) const ATTEMPT: &str = "x-handoff-attempt";
/// On dead letters: the reason's code.
pub(super) const REASON: &str = "x-handoff-reason";
/// On dead letters: the reason for people.
pub(super) const DETAIL: &str = "x-handoff-detail";
/// On dead letters: when, as RFC 3339.
pub(super) const FAILED_AT: &str = "x-handoff-failed-at";

/// What RabbitMQ itself counts, and compares with the delivery limit.
pub(super) const DELIVERY_COUNT: &str = "x-delivery-count";

/// Longest request id that is written on a copy, in bytes. A longer one stands in the body alone.
const MAX_REQUEST_ID: usize = 4 * 1024;

/// What RabbitMQ itself notes on a message. Taken along, it misleads RabbitMQ: a message whose
/// `x-death` names the queue that it is on its way to is dropped, for going in a circle.
const BROKERS: [&str; 8] = [
    "x-death",
    "x-first-death-exchange",
    "x-first-death-queue",
    "x-first-death-reason",
    "x-last-death-exchange",
    "x-last-death-queue",
    "x-last-death-reason",
    DELIVERY_COUNT,
];
/// Where else the producer wanted the message to go. It has been there.
const ROUTING: [&str; 2] = ["CC", "BCC"];

/// Kept free in a frame: for our own headers, the other properties, and what RabbitMQ adds to a
/// message that moves on to another queue.
pub(super) const RESERVE: usize = 12 * 1024;

/// The request behind a delivery, and the attempts it has used.
#[derive(Clone, Copy, Debug)]
pub struct Tried<'a> {
    /// The request's id.
    pub request_id: &'a RequestId,
    /// Attempts made, the current one included.
    pub attempts: u32,
}

impl Tried<'_> {
    /// The same without the current attempt, which was not used up.
    pub(super) fn without_last(self) -> Self {
        Self { attempts: self.attempts.saturating_sub(1), ..self }
    }
}

/// The properties of a copy that is to be tried again.
pub(super) fn retry_copy(
    of: &BasicProperties,
    tried: Tried<'_>,
    frame_max: usize,
) -> BasicProperties {
    properties(of, headers(of, tried, frame_max))
}

/// The properties of a dead letter.
pub(super) fn dead_letter(
    of: &BasicProperties,
    tried: Tried<'_>,
    reason: &FailedReason,
    failed_at: SystemTime,
    frame_max: usize,
) -> BasicProperties {
    let mut headers = headers(of, tried, frame_max);
    headers.insert(REASON.into(), text(reason.code.as_str()));
    headers.insert(DETAIL.into(), text(&reason.message));
    headers.insert(FAILED_AT.into(), text(&format_date_time(failed_at)));
    properties(of, headers)
}

/// The properties of a dead letter that is to be tried as if it had never been.
pub(super) fn replay_copy(of: &BasicProperties, frame_max: usize) -> BasicProperties {
    let none = FieldTable::default();
    let headers = kept(of.headers().as_ref().unwrap_or(&none), None, frame_max);
    properties(of, without(&headers, ATTEMPT))
}

/// The properties as they are, for a copy that takes the message's place in its queue.
pub(super) fn same_copy(of: &BasicProperties) -> BasicProperties {
    let none = FieldTable::default();
    properties(of, without(of.headers().as_ref().unwrap_or(&none), DELIVERY_COUNT))
}

fn without(headers: &FieldTable, name: &str) -> FieldTable {
    let entries = headers.inner().iter().filter(|(key, _)| key.as_str() != name);
    entries.map(|(key, value)| (key.clone(), value.clone())).collect::<BTreeMap<_, _>>().into()
}

fn headers(of: &BasicProperties, tried: Tried<'_>, frame_max: usize) -> FieldTable {
    let none = FieldTable::default();
    let mut headers =
        kept(of.headers().as_ref().unwrap_or(&none), Some(tried.request_id), frame_max);
    let id = tried.request_id.as_str();
    headers.insert(REQUEST_ID.into(), text(&id[..id.floor_char_boundary(MAX_REQUEST_ID)]));
    headers.insert(ATTEMPT.into(), AMQPValue::LongLongInt(tried.attempts.into()));
    headers
}

/// The properties as they were, but for two: `expiration` would end the copy before its time, and
/// `user_id` is accepted from the user of that name only.
fn properties(from: &BasicProperties, headers: FieldTable) -> BasicProperties {
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

/// The producer's headers, as they were.
///
/// Unlike a body, they must go into one AMQP frame. Where they do not, together with what is still to
/// be added, the largest stay behind: RabbitMQ closes the connection over a frame that is too large,
/// and a message that did this would come back and do it again.
fn kept(headers: &FieldTable, request_id: Option<&RequestId>, frame_max: usize) -> FieldTable {
    // Of our own, those that an earlier end has left, where somebody moved a dead letter back.
    let ours = [REASON, DETAIL, FAILED_AT];
    let stays =
        |name| !BROKERS.contains(&name) && !ROUTING.contains(&name) && !ours.contains(&name);
    let entry_size = |&(name, value): &(&ShortString, &AMQPValue)| short_size(name) + size(value);
    let mut entries: Vec<_> =
        headers.inner().iter().filter(|entry| stays(entry.0.as_str())).collect();
    entries.sort_by_key(entry_size);
    let mut left = frame_max.saturating_sub(RESERVE);
    let fit = entries.iter().take_while(|entry| {
        let fits = entry_size(entry) <= left;
        left = left.saturating_sub(entry_size(entry));
        fits
    });
    let mut kept = FieldTable::default();
    for &(name, value) in fit {
        kept.insert(name.clone(), value.clone());
    }
    let dropped = entries.len() - kept.inner().len();
    if dropped > 0 {
        log::headers_too_large(request_id, dropped);
    }
    kept
}

/// Bytes of a value in a table, its type included. An upper bound is good enough.
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
        // Numbers, times and the like: none is longer.
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
    fn headers_that_fit_stay_as_they_are() {
        let headers = table(&[("a", 10), ("b", 100_000), ("c", 0)]);
        assert_eq!(kept(&headers, None, 131_072), headers);
    }

    #[test]
    fn what_is_not_the_producers_stays_behind() {
        let headers = table(&[("x-death", 1), ("x-first-death-queue", 1), ("CC", 1), ("mine", 1)]);
        assert_eq!(kept(&headers, None, 131_072), table(&[("mine", 1)]));
    }

    #[test]
    fn the_largest_go_first() {
        let headers = table(&[("a", 10), ("b", 100_000), ("c", 50_000), ("d", 20)]);
        assert_eq!(kept(&headers, None, 131_072), table(&[("a", 10), ("c", 50_000), ("d", 20)]));
        assert_eq!(kept(&headers, None, 16_384), table(&[("a", 10), ("d", 20)]));
    }

    #[test]
    fn nested_values_count_whole() {
        let mut headers = table(&[("a", 10)]);
        let inner = AMQPValue::FieldTable(table(&[("x", 70_000)]));
        headers.insert("n".into(), AMQPValue::FieldArray(vec![inner.clone(), inner].into()));
        assert_eq!(kept(&headers, None, 131_072), table(&[("a", 10)]));
    }
}
