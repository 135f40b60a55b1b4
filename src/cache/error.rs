//! Why a Redis operation failed, in texts that never quote what was sent.

use std::{error::Error, io};

use deadpool_redis::redis::{ErrorKind, RedisError};

use super::refusal::{Recovery, Refusal};
use crate::{error_chain::SharedError, tls};

/// Why a Redis operation gave no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CacheError {
    /// No Redis connection at the moment, so nothing was sent.
    #[error("no connection to Redis")]
    Unavailable,
    /// The operation was sent, and Redis may or may not have executed it.
    #[error("Redis did not answer in time")]
    Timeout,
    /// Redis answered that it does not execute the operation.
    #[error("Redis refused: {0}")]
    Refused(Refusal),
    /// A sentinel refused the login.
    #[error("a sentinel refuses the login: check user and password in HANDOFF_REDIS_SENTINELS")]
    SentinelLogin,
    /// Redis sent an unexpected reply, the connection failed, or a value could not be sealed.
    /// Holds the kind of error only, no key and no value.
    #[error("Redis failed: {0}")]
    Failed(String),
}

impl CacheError {
    /// Names the kind of error, or the refusal.
    ///
    /// The error's own text is left out: Redis quotes arguments and user names in it, and a proxy may
    /// send anything.
    pub(super) fn of(error: &RedisError) -> Self {
        if let Some(text) = tls::explain(error) {
            return Self::Failed(text.to_owned());
        }
        if let Some(refusal) = Refusal::find(error) {
            return Self::Refused(refusal);
        }
        Self::Failed(match error.kind() {
            _ if error.is_timeout() => return Self::Timeout,
            _ if error.is_connection_refusal() => "connection refused".to_owned(),
            ErrorKind::Io => describe_io(error),
            ErrorKind::Parse => {
                "it broke off its answer, or is not Redis: check the port".to_owned()
            }
            kind => format!("{kind:?}"),
        })
    }

    /// Whether repeating it soon could lock the account.
    pub(super) fn is_refused_login(&self) -> bool {
        matches!(self, Self::Refused(Refusal::NoAuth) | Self::SentinelLogin)
    }

    pub(crate) fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Refused(refusal) => Some(*refusal),
            _ => None,
        }
    }

    /// What ends the failure.
    pub(crate) fn recovery(&self) -> Recovery {
        match self {
            Self::Unavailable | Self::Timeout | Self::SentinelLogin | Self::Failed(_) => {
                Recovery::ByItself
            }
            Self::Refused(refusal) => refusal.recovery(),
        }
    }

    /// The cause alone, for a line that says whose error it is.
    pub(crate) fn cause(&self) -> String {
        match self {
            Self::Timeout => "no answer in time".to_owned(),
            Self::Refused(refusal) => refusal.to_string(),
            Self::Failed(cause) => cause.clone(),
            Self::Unavailable | Self::SentinelLogin => self.to_string(),
        }
    }
}

/// Names a network error, or a TLS set-up that failed before there was a network.
fn describe_io(error: &RedisError) -> String {
    let shared = error.source().and_then(|source| source.downcast_ref::<SharedError>());
    match shared.and_then(|shared| shared.downcast_ref::<io::Error>()) {
        Some(error) => tls::explain_io(error),
        None => {
            "TLS set-up failed: check that SSL_CERT_FILE and SSL_CERT_DIR are readable".to_owned()
        }
    }
}
