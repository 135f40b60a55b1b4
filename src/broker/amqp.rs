//! Calls with a timeout, and AMQP's strings and tables from Rust's.

use std::{collections::BTreeMap, time::Duration};

use lapin::{
    Channel, Connection,
    types::{AMQPValue, FieldTable, ShortString},
};
use tokio::time::timeout;

use super::error::BrokerError;

/// Limit of one answer.
/// lapin 4.12 has none: on a blocked or half-open connection a call waits indefinitely (not
/// reported upstream).
pub(super) const RPC_TIMEOUT: Duration = Duration::from_secs(10);

/// Waits for the answer. The error says `cannot <operation>`.
pub(crate) async fn rpc<T>(
    operation: &str,
    call: impl Future<Output = lapin::Result<T>>,
) -> Result<T, BrokerError> {
    answer(operation, call).await?.map_err(|error| BrokerError::during(operation, &error))
}

/// Waits for the answer, and leaves a refusal to the caller. The outer error is the timeout.
pub(super) async fn answer<T>(
    operation: &str,
    call: impl Future<Output = lapin::Result<T>>,
) -> Result<lapin::Result<T>, BrokerError> {
    timeout(RPC_TIMEOUT, call).await.map_err(|_| BrokerError::timeout(operation))
}

pub(super) async fn open_channel(connection: &Connection) -> Result<Channel, BrokerError> {
    rpc("open a channel", connection.create_channel()).await
}

/// Closes a channel, which is not used again, whether or not RabbitMQ answers.
pub(super) async fn close_channel(channel: &Channel) {
    let _ = timeout(RPC_TIMEOUT, channel.close(200, "done".into())).await;
}

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

/// The table without one of its entries.
pub(super) fn without(table: &FieldTable, name: &str) -> FieldTable {
    let entries = table.inner().iter().filter(|(key, _)| key.as_str() != name);
    entries.map(|(key, value)| (key.clone(), value.clone())).collect::<BTreeMap<_, _>>().into()
}
