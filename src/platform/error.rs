//! Status to meaning, in one place: what a platform call that failed says about trying again.

use std::{fmt, time::Duration};

use reqwest::StatusCode;

use crate::{session::Call, tls};

/// Cause a call brought nothing.
///
/// Holds no URL, no header and no body: all three hold secrets, and the platform's error bodies
/// follow no documented form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallError {
    /// It may well succeed later.
    Transient {
        /// Which call.
        call: Call,
        /// What happened.
        why: Transient,
        /// How long the platform asks to be left alone.
        retry_after: Option<Duration>,
    },
    /// The session call was refused with 401: the token is not, or no longer, good.
    Unauthorized,
    /// The session call was refused in another way, which is about the request.
    Rejected(StatusCode),
    /// The token call was refused or redirected: a wrong key or a wrong host, never the request's
    /// fault.
    Refused(StatusCode),
}

/// What happened to a call that may well succeed later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transient {
    /// No connection, or it broke.
    Connection,
    /// No connection that can be trusted.
    Tls(&'static str),
    /// No whole answer in time.
    Timeout,
    /// A status that asks to be tried again.
    Status(StatusCode),
    /// An answer that is not what the platform promises.
    BrokenAnswer(&'static str),
}

impl Transient {
    /// Whether the platform works, and only has had enough calls for now.
    pub(super) fn is_rate_limit(&self) -> bool {
        matches!(self, Self::Status(status) if *status == StatusCode::TOO_MANY_REQUESTS)
    }
}

impl CallError {
    /// What a status other than success means.
    pub(super) fn from_status(
        call: Call,
        status: StatusCode,
        retry_after: Option<Duration>,
    ) -> Self {
        let transient = |retry_after| {
            let why = Transient::Status(status);
            Self::Transient { call, why, retry_after }
        };
        match (status.as_u16(), call) {
            // Only these two are documented, for all of HTTP, to come with a wait.
            (429 | 503, _) => transient(retry_after),
            (408 | 425 | 500..=599, _) => transient(None),
            // Somebody in between moved the platform; it is not the request's fault.
            (300..=399, Call::Session) => transient(None),
            (300..=499, Call::Token) => Self::Refused(status),
            (401, Call::Session) => Self::Unauthorized,
            (400..=499, Call::Session) => Self::Rejected(status),
            _ => Self::broken(call, "an unknown status"),
        }
    }

    pub(super) fn broken(call: Call, what: &'static str) -> Self {
        Self::Transient { call, why: Transient::BrokenAnswer(what), retry_after: None }
    }

    /// A time-out first: a body that came too slowly is also one that could not be read.
    pub(super) fn from_transport(call: Call, error: &reqwest::Error) -> Self {
        // A request that could not even be built is a fault of ours.
        debug_assert!(!error.is_builder(), "the {} was not built", call.as_str());
        let why = match tls::trouble(error) {
            _ if error.is_timeout() => Transient::Timeout,
            Some(trouble) => Transient::Tls(trouble),
            None => Transient::Connection,
        };
        Self::Transient { call, why, retry_after: None }
    }

    /// The status that says so, where it is one.
    pub(super) fn status(&self) -> Option<u16> {
        match self {
            Self::Transient { why: Transient::Status(status), .. }
            | Self::Rejected(status)
            | Self::Refused(status) => Some(status.as_u16()),
            Self::Unauthorized => Some(StatusCode::UNAUTHORIZED.as_u16()),
            Self::Transient { .. } => None,
        }
    }

    /// The outcome's name in metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Transient { why, .. } => match why {
                Transient::Connection | Transient::Tls(_) => "connection_error",
                Transient::Timeout => "timeout",
                why if why.is_rate_limit() => "rate_limited",
                Transient::Status(status) if status.is_redirection() => "redirected",
                Transient::Status(_) => "unavailable",
                Transient::BrokenAnswer(_) => "broken_answer",
            },
            Self::Unauthorized => "unauthorized",
            Self::Rejected(_) => "rejected",
            Self::Refused(_) => "refused",
        }
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |call| match call {
            Call::Token => "token call",
            Call::Session => "session call",
        };
        match self {
            Self::Transient { call, why, .. } => match why {
                Transient::Connection => {
                    write!(f, "the {} found no connection, or lost it", name(*call))
                }
                Transient::Tls(trouble) => {
                    write!(f, "the {} found no connection to the platform: {trouble}", name(*call))
                }
                Transient::Timeout => write!(f, "the {} was not answered in time", name(*call)),
                Transient::Status(status) => {
                    write!(
                        f,
                        "the platform answered the {} with status {}",
                        name(*call),
                        status.as_u16()
                    )
                }
                Transient::BrokenAnswer(what) => {
                    write!(f, "the platform answered the {} with {what}", name(*call))
                }
            },
            Self::Unauthorized => {
                f.write_str("the platform refused the session's token (status 401)")
            }
            Self::Rejected(status) => {
                write!(f, "the platform rejected the session (status {})", status.as_u16())
            }
            Self::Refused(status) => write!(
                f,
                "the platform refused to give a token (status {}): check HANDOFF_IDV_API_KEY (its file \
                 is read again before each try) and HANDOFF_IDV_URL",
                status.as_u16()
            ),
        }
    }
}

impl std::error::Error for CallError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(call: Call, status: u16) -> &'static str {
        CallError::from_status(call, StatusCode::from_u16(status).unwrap(), None).label()
    }

    #[test]
    fn a_status_means_what_the_reference_says() {
        for status in [408, 425, 429, 500, 502, 503, 504, 599] {
            for call in [Call::Token, Call::Session] {
                assert!(matches!(label(call, status), "unavailable" | "rate_limited"), "{status}");
            }
        }
        for status in [400, 401, 403, 404, 405, 409, 422, 301, 302, 304, 307, 308] {
            assert_eq!(label(Call::Token, status), "refused", "{status}");
        }
        for status in [400, 403, 404, 405, 409, 410, 422, 451] {
            assert_eq!(label(Call::Session, status), "rejected", "{status}");
        }
        assert_eq!(label(Call::Session, 401), "unauthorized");
        assert_eq!(label(Call::Session, 302), "redirected");
        assert_eq!(label(Call::Session, 600), "broken_answer");
    }

    #[test]
    fn only_429_and_503_may_ask_for_a_wait() {
        let wait = Some(Duration::from_secs(7));
        for (status, expected) in [(429, wait), (503, wait), (500, None), (408, None)] {
            let status = StatusCode::from_u16(status).unwrap();
            let CallError::Transient { retry_after, .. } =
                CallError::from_status(Call::Token, status, wait)
            else {
                panic!("{status} is transient");
            };
            assert_eq!(retry_after, expected, "{status}");
        }
    }
}
