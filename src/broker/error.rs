//! What can go wrong with RabbitMQ, told with the remedy and without the URL.

use std::{fmt, io};

use lapin::{
    ErrorKind,
    protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError},
};

use crate::tls;

/// Cause something with RabbitMQ did not work. Says what to do about it where that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerError {
    what: String,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Something was asked for, and did not work.
    Other,
    /// A connection broke while it was in use …
    Broke,
    /// … over something that the library could not read …
    Unreadable,
    /// … or over a frame that is larger than we take.
    TooLarge,
}

impl BrokerError {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), kind: Kind::Other }
    }

    /// A connection that broke while it was in use: `<what>: <why>`.
    pub(super) fn broke(what: &str, error: &lapin::Error) -> Self {
        let kind = match error.kind() {
            ErrorKind::ParsingError(_) => Kind::Unreadable,
            ErrorKind::ProtocolError(error)
                if *error.kind() == AMQPErrorKind::Hard(AMQPHardError::FRAMEERROR) =>
            {
                Kind::TooLarge
            }
            _ => Kind::Broke,
        };
        Self { kind, ..Self::new(format!("{what}: {}", why(error))) }
    }

    /// Whether a connection broke while it was in use.
    pub fn is_break(&self) -> bool {
        self.kind != Kind::Other
    }

    /// Whether the library could not read what RabbitMQ sent. AMQP lets a producer put any bytes into
    /// properties that the library insists are UTF-8: such a message breaks the connection of
    /// whoever it is delivered to.
    pub fn is_unreadable(&self) -> bool {
        self.kind == Kind::Unreadable
    }

    /// Whether RabbitMQ sent a frame that is larger than we take: what a message says of itself is not
    /// cut to fit, as its body is.
    pub fn is_too_large(&self) -> bool {
        self.kind == Kind::TooLarge
    }

    /// An error met while doing something: `cannot <doing>: <why>`.
    pub(crate) fn during(doing: &str, error: &lapin::Error) -> Self {
        Self::new(format!("cannot {doing}: {}", why(error)))
    }

    pub(crate) fn timeout(doing: &str) -> Self {
        Self::new(format!("cannot {doing}: RabbitMQ did not answer in time"))
    }
}

impl fmt::Display for BrokerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for BrokerError {}

/// The three soft errors that a declaration or a publish is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It is there with other arguments.
    OtherArguments,
    /// It is not there.
    NotFound,
    /// The user lacks a permission.
    Forbidden,
}

pub(super) fn refusal(error: &lapin::Error) -> Option<Refusal> {
    let ErrorKind::ProtocolError(error) = error.kind() else { return None };
    match error.kind() {
        AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) => Some(Refusal::OtherArguments),
        AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND) => Some(Refusal::NotFound),
        AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => Some(Refusal::Forbidden),
        _ => None,
    }
}

/// An error in a few words. Neither RabbitMQ's texts nor the kinds of i/o error hold a secret;
/// what the library says beyond those might, so it is not repeated.
pub(super) fn why(error: &lapin::Error) -> String {
    match error.kind() {
        ErrorKind::ProtocolError(error) => match error.kind() {
            AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => {
                format!("{} (does the virtual host exist?)", error.get_message())
            }
            _ => error.get_message().to_string(),
        },
        ErrorKind::IOError(error) if error.kind() == io::ErrorKind::TimedOut => {
            "RabbitMQ did not answer in time".to_owned()
        }
        ErrorKind::IOError(error) => tls::on_the_way(error),
        ErrorKind::MissingHeartbeatError => "RabbitMQ fell silent".to_owned(),
        ErrorKind::ParsingError(_) => {
            "RabbitMQ sent what cannot be read (properties that are not UTF-8?)".to_owned()
        }
        ErrorKind::InvalidChannelState(..) | ErrorKind::InvalidConnectionState(_) => {
            "the connection is closed".to_owned()
        }
        ErrorKind::ChannelsLimitReached => "RabbitMQ allows no more channels".to_owned(),
        ErrorKind::SerialisationError(_) => "it does not fit into an AMQP frame".to_owned(),
        _ => "the connection failed".to_owned(),
    }
}
