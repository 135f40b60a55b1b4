//! One rpc with RabbitMQ: a question that is answered in time, or an error that says what was asked.

use std::time::Duration;

use lapin::{Channel, Connection};
use tokio::time::timeout;

use super::BrokerError;

/// Limit of one rpc.
pub(super) const RPC_TIMEOUT: Duration = Duration::from_secs(10);

/// Waits for a rpc. `doing` is what it does, to follow "cannot".
///
/// # Errors
/// RabbitMQ said no, or did not answer in time.
pub(crate) async fn rpc<T>(
    doing: &str,
    rpc: impl Future<Output = lapin::Result<T>>,
) -> Result<T, BrokerError> {
    match timeout(RPC_TIMEOUT, rpc).await {
        Ok(done) => done.map_err(|error| BrokerError::during(doing, &error)),
        Err(_) => Err(BrokerError::timeout(doing)),
    }
}

/// Opens a channel.
///
/// # Errors
/// The connection is lost or blocked, or has as many as it may.
pub(super) async fn open_channel(connection: &Connection) -> Result<Channel, BrokerError> {
    rpc("open a channel", connection.create_channel()).await
}
