//! AMQP methods that RabbitMQ answers, with a timeout.

use std::time::Duration;

use lapin::{Channel, Connection};
use tokio::time::timeout;

use super::error::BrokerError;

/// lapin has no timeout for these: on a blocked or half-open connection they would wait indefinitely.
pub(super) const RPC_TIMEOUT: Duration = Duration::from_secs(10);

/// Waits for the answer. `operation` is a verb phrase that follows "cannot" in the error.
pub(crate) async fn rpc<T>(
    operation: &str,
    call: impl Future<Output = lapin::Result<T>>,
) -> Result<T, BrokerError> {
    match timeout(RPC_TIMEOUT, call).await {
        Ok(answer) => answer.map_err(|error| BrokerError::during(operation, &error)),
        Err(_) => Err(BrokerError::timeout(operation)),
    }
}

pub(super) async fn open_channel(connection: &Connection) -> Result<Channel, BrokerError> {
    rpc("open a channel", connection.create_channel()).await
}
