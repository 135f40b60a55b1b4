//! What to do where a command finds no RabbitMQ that it can use.

use super::CliError;
use crate::broker::BrokerError;

/// For whoever works with a RabbitMQ that should be there.
pub(super) fn broker(error: BrokerError) -> CliError {
    CliError::Failed(format!("{error}\nIs HANDOFF_AMQP_URL right? `handoff doctor` looks closer."))
}

/// For whoever has a first look.
pub(super) fn demo(error: BrokerError) -> CliError {
    CliError::Failed(format!(
        "{error}\nThe demo needs a RabbitMQ and a Redis: `make demo` brings both, or name yours with \
         HANDOFF_AMQP_URL and HANDOFF_REDIS_URL."
    ))
}
