//! What a failed platform call means for the next try; the only place that interprets a status.

use std::time::Duration;

use reqwest::StatusCode;

use super::{connections::TransportError, proxy::ProxyProblem};
use crate::{config::Proxy, session::Call, tls};

/// Why a call failed, and whether to try again.
///
/// Holds no URL, no header and no body: all three hold secrets, and the platform's error bodies have no
/// documented form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CallError {
    /// A retry may succeed.
    #[error("{}", cause.describe(*call))]
    Transient { call: Call, cause: TransientCause },
    /// The session call was answered with 401: the token is invalid, or no longer valid.
    #[error("the platform refused the session's token (status 401)")]
    Unauthorized,
    /// The session call was answered with another 4xx: the request is at fault.
    #[error("the platform rejected the session (status {})", .0.as_u16())]
    Rejected(StatusCode),
    /// The call that carries the API key was refused or redirected: the key or the URL is at fault. In the one-call
    /// flow, 403 and 404 may also be the request's fault, which the gate decides.
    #[error(
        "the platform refused the {} call (status {}): check HANDOFF_IDV_API_KEY{} and HANDOFF_IDV_URL; a key \
         file is read again before each probe",
        call.as_str(),
        status.as_u16(),
        if *call == Call::Deeplink { ", its permission for deeplinks, HANDOFF_IDV_FLOW" } else { "" },
    )]
    Refused { call: Call, status: StatusCode },
}

/// What happened to a call that a retry may fix, with the delay that the platform asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TransientCause {
    /// No connection could be made.
    Connection,
    /// The connection was lost before any byte of an answer. Servers and proxies also close connections in
    /// the ordinary course: while idle, for a restart, after a number of calls.
    Closed {
        /// Whether the platform may have received the call.
        sent: bool,
    },
    /// No TLS connection; says why.
    Tls(&'static str),
    /// The proxy made no connection to the platform.
    Proxy { name: &'static str, problem: ProxyProblem },
    /// No complete answer in time.
    Timeout {
        /// Whether the platform may have received the call.
        sent: bool,
    },
    /// Status 429: the platform works, but wants fewer calls.
    RateLimited { retry_after: Option<Duration> },
    /// A 5xx status, 408 or 425. Only 503 carries a `retry_after`.
    Unavailable { status: StatusCode, retry_after: Option<Duration> },
    /// A redirect of the session call, which the worker does not follow.
    Redirected(StatusCode),
    /// Status 409 to a call that makes a session after an earlier try: the platform may still be processing that.
    Conflict,
    /// An answer that breaks the platform's contract; says how.
    BrokenAnswer(&'static str),
}

impl TransientCause {
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after } | Self::Unavailable { retry_after, .. } => {
                *retry_after
            }
            _ => None,
        }
    }

    fn status(&self) -> Option<StatusCode> {
        match self {
            Self::RateLimited { .. } => Some(StatusCode::TOO_MANY_REQUESTS),
            Self::Unavailable { status, .. } | Self::Redirected(status) => Some(*status),
            Self::Conflict => Some(StatusCode::CONFLICT),
            Self::Connection
            | Self::Closed { .. }
            | Self::Tls(_)
            | Self::Proxy { .. }
            | Self::Timeout { .. }
            | Self::BrokenAnswer(_) => None,
        }
    }

    /// Whether the platform may have received the call, and may still be processing it.
    fn may_have_reached_platform(&self) -> bool {
        match self {
            Self::Connection | Self::Tls(_) | Self::Proxy { .. } => false,
            Self::Closed { sent } | Self::Timeout { sent } => *sent,
            Self::RateLimited { .. }
            | Self::Unavailable { .. }
            | Self::Redirected(_)
            | Self::Conflict
            | Self::BrokenAnswer(_) => true,
        }
    }

    fn label(&self) -> &'static str {
        match self {
            Self::Timeout { .. } | Self::Proxy { problem: ProxyProblem::TimedOut, .. } => "timeout",
            Self::Connection | Self::Closed { .. } | Self::Tls(_) | Self::Proxy { .. } => {
                "connection_error"
            }
            Self::RateLimited { .. } => "rate_limited",
            Self::Unavailable { .. } => "unavailable",
            Self::Redirected(_) => "redirected",
            Self::Conflict => "conflict",
            Self::BrokenAnswer(_) => "broken_answer",
        }
    }

    fn describe(&self, call: Call) -> String {
        let call = call.as_str();
        let answered = |status: StatusCode| {
            format!("the platform answered the {call} call with status {}", status.as_u16())
        };
        match self {
            Self::Connection => format!("the {call} call could not connect to the platform"),
            Self::Closed { .. } => {
                format!("the platform closed the connection before it answered the {call} call")
            }
            Self::Tls(problem) => {
                format!("the {call} call could not connect to the platform: {problem}")
            }
            Self::Proxy { name, problem } => {
                format!(
                    "the {call} call could not connect to the platform: the proxy {name} {problem}"
                )
            }
            Self::Timeout { .. } => format!("the platform did not answer the {call} call in time"),
            Self::RateLimited { .. } => answered(StatusCode::TOO_MANY_REQUESTS),
            Self::Unavailable { status, .. } | Self::Redirected(status) => answered(*status),
            Self::Conflict => {
                let answered = answered(StatusCode::CONFLICT);
                format!("{answered}: it may still be processing an earlier try")
            }
            Self::BrokenAnswer(what) => {
                format!("the platform answered the {call} call with {what}")
            }
        }
    }
}

impl CallError {
    /// Interprets a status other than success.
    pub(super) fn from_status(
        call: Call,
        status: StatusCode,
        retry_after: Option<Duration>,
    ) -> Self {
        let transient = |cause| Self::Transient { call, cause };
        match (status.as_u16(), call) {
            // RFC 9110 and RFC 6585 define `Retry-After` for these two and for redirects only.
            (429, _) => transient(TransientCause::RateLimited { retry_after }),
            (503, _) => transient(TransientCause::Unavailable { status, retry_after }),
            (408 | 425 | 500..=599, _) => {
                transient(TransientCause::Unavailable { status, retry_after: None })
            }
            // A proxy or a moved platform redirects; the request is not at fault.
            (300..=399, Call::Session) => transient(TransientCause::Redirected(status)),
            (300..=499, Call::Token) | (300..=399 | 401 | 403..=405, Call::Deeplink) => {
                Self::Refused { call, status }
            }
            (401, Call::Session) => Self::Unauthorized,
            (400..=499, Call::Session | Call::Deeplink) => Self::Rejected(status),
            _ => Self::broken_answer(call, "an unknown status"),
        }
    }

    pub(super) fn broken_answer(call: Call, what: &'static str) -> Self {
        Self::Transient { call, cause: TransientCause::BrokenAnswer(what) }
    }

    /// The error of a call that makes a session and repeats one which may have reached the platform.
    ///
    /// Both carry the same `Idempotency-Key`, so a 409 says that the platform still processes the earlier one.
    pub(crate) fn of_repeated_call(self, call: Call) -> Self {
        match self {
            Self::Rejected(StatusCode::CONFLICT) => {
                Self::Transient { call, cause: TransientCause::Conflict }
            }
            other => other,
        }
    }

    /// Interprets an error of reqwest. `proxy` is the proxy that the call went through.
    pub(super) fn from_transport(
        call: Call,
        error: &TransportError,
        proxy: Option<&Proxy>,
    ) -> Self {
        let sent = error.may_have_arrived();
        let problem = proxy.zip(error.cause());
        let problem = problem
            .and_then(|(proxy, cause)| Some((proxy.name, ProxyProblem::find(cause, proxy)?)));
        let cause = if let Some((name, problem)) = problem {
            TransientCause::Proxy { name, problem }
        } else if error.is_timeout() {
            TransientCause::Timeout { sent }
        } else if error.is_body() {
            TransientCause::BrokenAnswer("a body that cannot be read")
        } else if let Some(problem) = error.cause().and_then(|cause| tls::explain(cause)) {
            TransientCause::Tls(problem)
        } else if error.is_connect() {
            TransientCause::Connection
        } else if error.is_not_http() {
            TransientCause::BrokenAnswer("an answer that is not HTTP")
        } else {
            TransientCause::Closed { sent }
        };
        Self::Transient { call, cause }
    }

    /// Whether the call was refused for what may be its workflow's fault: another workflow may be served.
    pub(crate) fn may_refuse_workflow(&self) -> bool {
        matches!(
            self,
            Self::Refused {
                call: Call::Deeplink,
                status: StatusCode::FORBIDDEN | StatusCode::NOT_FOUND
            }
        )
    }

    /// Whether the platform may be processing the call all the same.
    pub(crate) fn may_have_reached_platform(&self) -> bool {
        matches!(self, Self::Transient { cause, .. } if cause.may_have_reached_platform())
    }

    /// The HTTP status of the platform's answer, if the status is the error.
    pub(super) fn status(&self) -> Option<u16> {
        let status = match self {
            Self::Transient { cause, .. } => cause.status()?,
            Self::Rejected(status) | Self::Refused { status, .. } => *status,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
        };
        Some(status.as_u16())
    }

    /// The outcome in metrics.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Transient { cause, .. } => cause.label(),
            Self::Unauthorized => "unauthorized",
            Self::Rejected(_) => "rejected",
            Self::Refused { .. } => "refused",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(call: Call, status: u16) -> &'static str {
        CallError::from_status(call, StatusCode::from_u16(status).unwrap(), None).label()
    }

    #[test]
    fn statuses_mean_what_the_reference_says() {
        for status in [408, 425, 429, 500, 502, 503, 504, 599] {
            let expected = if status == 429 { "rate_limited" } else { "unavailable" };
            for call in [Call::Token, Call::Session] {
                assert_eq!(label(call, status), expected, "{status}");
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
    fn only_429_and_503_carry_a_retry_after() {
        let wait = Some(Duration::from_secs(7));
        for (status, expected) in [(429, wait), (503, wait), (500, None), (408, None)] {
            let code = StatusCode::from_u16(status).unwrap();
            let CallError::Transient { cause, .. } =
                CallError::from_status(Call::Token, code, wait)
            else {
                panic!("{status} is transient");
            };
            assert_eq!(cause.retry_after(), expected, "{status}");
        }
    }

    #[test]
    fn status_is_in_the_text() {
        for (status, text) in [
            (429, "the platform answered the session call with status 429"),
            (503, "the platform answered the session call with status 503"),
            (302, "the platform answered the session call with status 302"),
            (401, "the platform refused the session's token (status 401)"),
            (422, "the platform rejected the session (status 422)"),
        ] {
            let code = StatusCode::from_u16(status).unwrap();
            let error = CallError::from_status(Call::Session, code, None);
            assert_eq!((error.to_string().as_str(), error.status()), (text, Some(status)));
        }
    }
}
