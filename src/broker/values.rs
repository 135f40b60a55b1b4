//! AMQP's string types from Rust's.

use lapin::types::{AMQPValue, ShortString};

use super::error::BrokerError;

/// A short string for a message property: the first 255 bytes, cut at a character.
pub(crate) fn short_string(text: &str) -> ShortString {
    ShortString::try_new(&text[..text.floor_char_boundary(255)]).unwrap_or_default()
}

/// The name of a queue or exchange, never cut: a shorter name is another object.
pub(super) fn object_name(name: &str) -> Result<ShortString, BrokerError> {
    ShortString::try_new(name)
        .map_err(|_| BrokerError::new("the name of a queue or exchange is longer than 255 bytes"))
}

/// A long string for a header or a queue argument.
pub(super) fn long_string(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}
