//! Bounds the memory that large messages take.
//!
//! lapin receives each message whole, and RabbitMQ sends a full prefetch window of them at once: with
//! 64 bodies of 15 MiB that is nearly 1 GiB. AMQP has no limit in bytes that RabbitMQ implements, so a
//! large message that does not fit is emptied as soon as it is received, and requeued once the others
//! are settled.

use std::sync::atomic::{AtomicUsize, Ordering};

use lapin::{
    message::Delivery,
    types::{AMQPValue, FieldTable},
};
use tokio::sync::{Notify, Semaphore};

/// Smaller messages are not counted: a full window of them takes 4 MiB.
const LARGE: usize = 64 * 1024;
/// Limit of the large messages in hand, in bytes. A single larger one is accepted alone.
const MAX_IN_HAND: usize = 32 * 1024 * 1024;
/// Limit of the large messages in hand when more are fetched. Half: those fetched need room, too.
pub(crate) const MAX_WHEN_FETCHING: usize = MAX_IN_HAND / 2;

/// The large messages of this process, on all its connections.
pub(super) static IN_HAND: InHand = InHand::new();
/// The right to copy a large body. lapin copies it into frames, so that each publish needs its size again.
pub(super) static COPYING: Semaphore = Semaphore::const_new(1);

/// Counts the bytes of large messages.
#[derive(Debug)]
pub(super) struct InHand {
    bytes: AtomicUsize,
    released: Notify,
}

/// The room of one large message, until it is dropped.
#[derive(Debug)]
pub(super) struct Held {
    of: &'static InHand,
    pub(super) bytes: usize,
}

impl InHand {
    const fn new() -> Self {
        Self { bytes: AtomicUsize::new(0), released: Notify::const_new() }
    }

    /// Takes room for a message. `None`: there is not enough.
    pub(super) fn hold(&'static self, bytes: usize) -> Option<Held> {
        let fits = |held: usize| {
            let total = held.saturating_add(bytes);
            (held == 0 || total <= MAX_IN_HAND).then_some(total)
        };
        self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
        Some(Held { of: self, bytes })
    }

    /// Waits until there is room to fetch more.
    pub(super) async fn wait_for_room(&self) {
        loop {
            // Registered before the check, so that no release is missed.
            let released = self.released.notified();
            if self.bytes.load(Ordering::Relaxed) <= MAX_WHEN_FETCHING {
                return;
            }
            released.await;
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.of.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.of.released.notify_waiters();
    }
}

/// The memory that a message takes in bytes; `None` if it is too small to count.
pub(super) fn large_size(message: &Delivery) -> Option<usize> {
    let headers = message.properties.headers().as_ref().map_or(0, table_size);
    let size = message.data.len() + headers;
    (size > LARGE).then_some(size)
}

pub(super) fn is_large(body: &[u8]) -> bool {
    body.len() > LARGE
}

/// An estimate of a table's memory. A value of one byte on the wire takes the size of an [`AMQPValue`]:
/// 128 KiB of headers can take several MiB.
fn table_size(table: &FieldTable) -> usize {
    let entries = table.inner().iter();
    entries.map(|(name, value)| size_of_val(name) + name.as_str().len() + value_size(value)).sum()
}

fn value_size(value: &AMQPValue) -> usize {
    size_of_val(value)
        + match value {
            AMQPValue::ShortString(text) => text.as_str().len(),
            AMQPValue::LongString(text) => text.as_bytes().len(),
            AMQPValue::ByteArray(bytes) => bytes.as_slice().len(),
            AMQPValue::FieldArray(values) => values.as_slice().iter().map(value_size).sum(),
            AMQPValue::FieldTable(table) => table_size(table),
            _ => 0,
        }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const MIB: usize = 1024 * 1024;

    fn in_hand() -> &'static InHand {
        Box::leak(Box::new(InHand::new()))
    }

    #[test]
    fn large_messages_in_hand_are_bounded() {
        let in_hand = in_hand();
        let first = in_hand.hold(15 * MIB).unwrap();
        let second = in_hand.hold(15 * MIB).unwrap();
        assert!(in_hand.hold(15 * MIB).is_none());
        assert!(in_hand.wait_for_room().now_or_never().is_none());
        drop(first);
        assert!(in_hand.wait_for_room().now_or_never().is_some());
        assert!(in_hand.hold(15 * MIB).is_some());
        drop(second);
        assert!(in_hand.hold(100 * MIB).is_some(), "alone, however large");
    }

    #[test]
    fn headers_count_with_the_memory_they_take() {
        let mut message = Delivery::mock(1, "".into(), "".into(), false, Vec::new());
        let many = vec![AMQPValue::Void; 8_000];
        let mut headers = FieldTable::default();
        headers.insert("many".into(), AMQPValue::FieldArray(many.into()));
        message.properties = message.properties.with_headers(headers);
        assert!(large_size(&message).is_some_and(|size| size > 8_000 * size_of::<AMQPValue>()));
        message.properties = lapin::BasicProperties::default();
        assert_eq!(large_size(&message), None);
        message.data = vec![0; LARGE + 1];
        assert_eq!(large_size(&message), Some(LARGE + 1));
    }
}
