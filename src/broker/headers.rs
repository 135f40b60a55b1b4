//! Headers that fit: unlike a body, a message's properties must go into one AMQP frame.

use lapin::types::{AMQPValue, FieldTable};

/// Kept free in a frame: for our own headers, the other properties, and what RabbitMQ adds to a
/// message that moves on to another queue.
const RESERVE: usize = 8 * 1024;

/// The headers, without the largest of them where they would not all fit into a frame with what is
/// still to be added. RabbitMQ closes the connection over a frame that is too large, and a message
/// that did this would come back and do it again.
pub(super) fn fitting(headers: &FieldTable, frame_max: usize) -> FieldTable {
    let limit = frame_max.saturating_sub(RESERVE);
    let entry_size = |(name, value): (&_, &_)| -> usize { short_size(name) + size(value) };
    let total: usize = headers.inner().iter().map(entry_size).sum();
    if total <= limit {
        return headers.clone();
    }
    let mut entries: Vec<_> = headers.inner().iter().collect();
    entries.sort_by_key(|entry| entry_size(*entry));
    let mut left = limit;
    let fit = entries.into_iter().take_while(|entry| {
        let fits = entry_size(*entry) <= left;
        left = left.saturating_sub(entry_size(*entry));
        fits
    });
    let mut fitting = FieldTable::default();
    for (name, value) in fit {
        fitting.insert(name.clone(), value.clone());
    }
    let dropped = headers.inner().len() - fitting.inner().len();
    tracing::warn!(dropped, "headers too large for one frame are not on the copy of a message");
    fitting
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

fn short_size(text: &lapin::types::ShortString) -> usize {
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
        assert_eq!(fitting(&headers, 131_072), headers);
    }

    #[test]
    fn the_largest_go_first() {
        let headers = table(&[("a", 10), ("b", 100_000), ("c", 50_000), ("d", 20)]);
        assert_eq!(fitting(&headers, 131_072), table(&[("a", 10), ("c", 50_000), ("d", 20)]));
        assert_eq!(fitting(&headers, 16_384), table(&[("a", 10), ("d", 20)]));
    }

    #[test]
    fn nested_values_count_whole() {
        let mut headers = table(&[("a", 10)]);
        let inner = AMQPValue::FieldTable(table(&[("x", 70_000)]));
        headers.insert("n".into(), AMQPValue::FieldArray(vec![inner.clone(), inner].into()));
        assert_eq!(fitting(&headers, 131_072), table(&[("a", 10)]));
    }
}
