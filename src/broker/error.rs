//! Errors of RabbitMQ, with the fix where it is known and never with the URL.

use std::{io, time::Duration};

use lapin::{
    ErrorKind,
    protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError},
};
use thiserror::Error;

use super::reply;
use crate::tls;

/// An operation on RabbitMQ that failed, or a connection that was lost.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{message}")]
pub(crate) struct BrokerError {
    message: String,
    kind: BrokerErrorKind,
    consumer_timeout: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BrokerErrorKind {
    Operation,
    /// User or password were refused …
    LoginRefused,
    /// … or a connection in the making had no answer in time.
    Silent,
    /// An operation on an open connection had no answer in time.
    NoAnswer,
    /// A connection in use was lost …
    ConnectionLost,
    /// … because lapin could not decode a frame …
    Undecodable,
    /// … or because a frame was larger than the negotiated `frame_max` …
    FrameTooLarge,
    /// … or because one more channel was opened than a limit allows.
    TooManyChannels,
}

fn is_end(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(kind, BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

impl BrokerError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), kind: BrokerErrorKind::Operation, consumer_timeout: None }
    }

    /// A failed operation: `cannot <operation>: <cause>`.
    pub(crate) fn during(operation: &str, error: &lapin::Error) -> Self {
        let kind = match error.kind() {
            ErrorKind::ProtocolError(error) if reply::is_channel_limit(error) => {
                BrokerErrorKind::TooManyChannels
            }
            _ => BrokerErrorKind::Operation,
        };
        let message = format!("cannot {operation}: {}", cause(error));
        Self { kind, ..Self::new(message) }
    }

    /// A connection that was not made. `on_close` says why the peer may have closed it.
    pub(super) fn connecting(operation: &str, error: &lapin::Error, on_close: &str) -> Self {
        let kind = match error.kind() {
            ErrorKind::ProtocolError(error)
                if *error.kind() == AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) =>
            {
                BrokerErrorKind::LoginRefused
            }
            ErrorKind::IOError(error) if error.kind() == io::ErrorKind::TimedOut => {
                BrokerErrorKind::Silent
            }
            ErrorKind::IOError(error) if !on_close.is_empty() && is_end(error.kind()) => {
                return Self::new(format!("cannot {operation}: {}: {on_close}", error.kind()));
            }
            _ => return Self::during(operation, error),
        };
        Self { kind, ..Self::during(operation, error) }
    }

    /// The same error, with what to do at its end.
    pub(crate) fn with_remedy(self, remedy: &str) -> Self {
        Self { message: format!("{}; {remedy}", self.message), ..self }
    }

    pub(crate) fn timeout(operation: &str) -> Self {
        let message = format!("cannot {operation}: RabbitMQ did not answer in time");
        Self { kind: BrokerErrorKind::NoAnswer, ..Self::new(message) }
    }

    /// A connection that was lost while in use: `<what>: <cause>`.
    pub(super) fn connection_lost(what: &str, error: &lapin::Error) -> Self {
        let kind = match error.kind() {
            ErrorKind::ParsingError(_) => BrokerErrorKind::Undecodable,
            ErrorKind::ProtocolError(error)
                if *error.kind() == AMQPErrorKind::Hard(AMQPHardError::FRAMEERROR) =>
            {
                BrokerErrorKind::FrameTooLarge
            }
            ErrorKind::ProtocolError(error) if reply::is_channel_limit(error) => {
                BrokerErrorKind::TooManyChannels
            }
            _ => BrokerErrorKind::ConnectionLost,
        };
        let consumer_timeout = match error.kind() {
            ErrorKind::ProtocolError(error) => reply::consumer_timeout(error),
            _ => None,
        };
        let message = format!("{what}: {}", cause(error));
        Self { message, kind, consumer_timeout }
    }

    pub(crate) fn is_connection_lost(&self) -> bool {
        use BrokerErrorKind::{ConnectionLost, FrameTooLarge, TooManyChannels, Undecodable};
        matches!(self.kind, ConnectionLost | Undecodable | FrameTooLarge | TooManyChannels)
    }

    /// Whether RabbitMQ refused the user or the password. Another node would do the same, and repeated
    /// tries may lock the account.
    pub(crate) fn is_login_refused(&self) -> bool {
        self.kind == BrokerErrorKind::LoginRefused
    }

    /// Whether a node did not answer while a connection was being made: it may be slow.
    pub(super) fn is_silence(&self) -> bool {
        self.kind == BrokerErrorKind::Silent
    }

    /// Whether RabbitMQ closed the connection because a limit on channels was reached.
    pub(crate) fn is_too_many_channels(&self) -> bool {
        self.kind == BrokerErrorKind::TooManyChannels
    }

    /// Whether an operation had no answer in time. The connection may still serve others.
    pub(super) fn is_timeout(&self) -> bool {
        self.kind == BrokerErrorKind::NoAnswer
    }

    /// Whether lapin could not decode a frame, which ends the connection.
    ///
    /// A producer may put any bytes into the short strings of a message's properties, and RabbitMQ
    /// passes them on. amq-protocol 10.6 requires UTF-8 there, as AMQP does
    /// (amqp-rs/amq-protocol#28), so the message breaks the connection of every worker it is
    /// delivered to.
    pub(crate) fn is_undecodable(&self) -> bool {
        self.kind == BrokerErrorKind::Undecodable
    }

    /// RabbitMQ's `consumer_timeout`, if it closed the channel because a delivery was unsettled for longer.
    pub(crate) fn consumer_timeout(&self) -> Option<Duration> {
        self.consumer_timeout
    }

    /// Whether RabbitMQ sent a frame above `frame_max`.
    ///
    /// RabbitMQ splits a body over several frames, but not the headers.
    pub(crate) fn is_frame_too_large(&self) -> bool {
        self.kind == BrokerErrorKind::FrameTooLarge
    }
}

/// Why RabbitMQ did not take a message, or may not have.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PublishError {
    /// No queue is bound with this routing key.
    #[error("no queue is bound to take it")]
    Unroutable,
    /// A negative confirm: a queue is full, or could not store the message.
    #[error("RabbitMQ refused it: a queue is full or failed")]
    Refused,
    /// No confirm in time, though the connection is open.
    #[error("RabbitMQ did not confirm it in time")]
    Unconfirmed,
    /// RabbitMQ closed the channel: the exchange does not exist.
    #[error("RabbitMQ closed the channel: the exchange does not exist")]
    ExchangeMissing,
    /// RabbitMQ closed the channel, for this reason.
    #[error("RabbitMQ closed the channel: {0}")]
    ChannelClosed(String),
    /// The connection is lost. RabbitMQ redelivers every unsettled delivery.
    #[error("the connection to RabbitMQ was lost")]
    Disconnected,
}

impl PublishError {
    /// The value of the metrics label `outcome`.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::Unroutable => "unroutable",
            Self::Refused => "refused",
            Self::Unconfirmed => "unconfirmed",
            Self::ExchangeMissing | Self::ChannelClosed(_) => "failed",
            Self::Disconnected => "disconnected",
        }
    }
}

/// RabbitMQ's reason for closing the connection, if it gave one.
pub(super) fn hard_error(error: &lapin::Error) -> Option<&AMQPHardError> {
    let ErrorKind::ProtocolError(error) = error.kind() else { return None };
    match error.kind() {
        AMQPErrorKind::Hard(error) => Some(error),
        AMQPErrorKind::Soft(_) => None,
    }
}

/// The soft error that answers a declaration or a publish. It closes its channel.
pub(super) fn soft_error(error: &lapin::Error) -> Option<&AMQPSoftError> {
    let ErrorKind::ProtocolError(error) = error.kind() else { return None };
    match error.kind() {
        AMQPErrorKind::Soft(error) => Some(error),
        AMQPErrorKind::Hard(_) => None,
    }
}

/// RabbitMQ's text about a refused declaration, to be parsed and never shown.
pub(super) fn refusal_text(error: &lapin::Error) -> &str {
    match error.kind() {
        ErrorKind::ProtocolError(error) => error.get_message().as_str(),
        _ => "",
    }
}

/// What a lapin error means, in one phrase.
///
/// The kinds of I/O errors hold no secret. Other texts of lapin and RabbitMQ might, so they are replaced.
pub(super) fn cause(error: &lapin::Error) -> String {
    match error.kind() {
        ErrorKind::ProtocolError(error) => reply::describe(error),
        ErrorKind::IOError(error) if error.kind() == io::ErrorKind::TimedOut => {
            "RabbitMQ did not answer in time".to_owned()
        }
        ErrorKind::IOError(error) => tls::explain_io(error),
        ErrorKind::MissingHeartbeatError => "RabbitMQ sent no heartbeat in time".to_owned(),
        ErrorKind::ParsingError(_) => {
            "RabbitMQ sent a frame that cannot be decoded (message properties that are not UTF-8?)"
                .to_owned()
        }
        ErrorKind::InvalidChannelState(..) | ErrorKind::InvalidConnectionState(_) => {
            "the connection is closed".to_owned()
        }
        ErrorKind::ChannelsLimitReached => {
            "all channels of the connection are in use (channel_max)".to_owned()
        }
        ErrorKind::SerialisationError(_) => "it does not fit into one AMQP frame".to_owned(),
        _ => "the connection failed".to_owned(),
    }
}
