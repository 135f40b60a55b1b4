//! One step with RabbitMQ: a question that is answered in time, or an error that says what was asked.

use std::time::Duration;

use lapin::{Channel, Connection};
use tokio::time::timeout;

use super::BrokerError;

/// Limit of one step.
pub(super) const STEP_LIMIT: Duration = Duration::from_secs(10);

/// Waits for a step. `doing` is what it does, to follow "cannot".
///
/// # Errors
/// RabbitMQ said no, or did not answer in time.
pub(crate) async fn step<T>(
    doing: &str,
    step: impl Future<Output = lapin::Result<T>>,
) -> Result<T, BrokerError> {
    match timeout(STEP_LIMIT, step).await {
        Ok(done) => done.map_err(|error| BrokerError::during(doing, &error)),
        Err(_) => Err(BrokerError::timeout(doing)),
    }
}

/// Opens a channel.
///
/// # Errors
/// The connection is lost or blocked, or has as many as it may.
pub(super) async fn open_channel(connection: &Connection) -> Result<Channel, BrokerError> {
    step("open a channel", connection.create_channel()).await
}
