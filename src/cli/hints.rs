//! Adds a hint to a failed RabbitMQ connection.

use super::errors::CliError;
use crate::broker::BrokerError;

/// For commands that use an existing set-up.
pub(super) fn broker(error: BrokerError) -> CliError {
    CliError::Failed(format!("{error}\nCheck HANDOFF_AMQP_URL, or run `handoff doctor`."))
}

/// For the demo, which often runs on a machine without RabbitMQ.
pub(super) fn demo(error: BrokerError) -> CliError {
    CliError::Failed(format!(
        "{error}\nThe demo needs RabbitMQ and Redis: `make demo` starts both, or set HANDOFF_AMQP_URL \
         and HANDOFF_REDIS_URL to yours."
    ))
}
