//! AMQP methods that RabbitMQ answers, with a timeout.

use std::time::Duration;

use lapin::{Channel, Connection};
use tokio::time::timeout;

use super::error::BrokerError;

/// Limit of one answer.
///
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
