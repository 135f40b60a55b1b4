//! Faults: how API calls misbehave on demand.

use std::time::Duration;

use super::call::Endpoint;

/// The faults in effect, by endpoint; none by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Faults {
    /// The fault of the token endpoint.
    pub(super) token: Option<Fault>,
    /// The fault of the session endpoint.
    pub(super) session: Option<Fault>,
}

/// How calls of an endpoint misbehave, and how many of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fault {
    /// The answer; `None` for the normal one.
    pub(super) answer: Option<Answer>,
    /// The latency, in place of the configured latency and jitter.
    pub(super) latency: Option<Duration>,
    /// Whether the token or session is made before the fault answers, so that the caller never
    /// learns of it.
    pub(super) carry_out: bool,
    /// The number of calls that the fault applies to; `None` for all until it is replaced.
    pub(super) times: Option<u64>,
}

/// The answer of a fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// A response with an arbitrary body, labelled as JSON.
    Response {
        /// From 200 to 599; any other becomes 500.
        status: u16,
        /// The `Retry-After` header, verbatim: seconds or a date; omitted if it is invalid.
        retry_after: Option<String>,
        /// The body; `None` for a JSON object with a message.
        body: Option<String>,
    },
    /// A 302 to this location, which is omitted if it is no valid header.
    Redirect(String),
    /// The connection is closed without an answer.
    Close,
}

impl Faults {
    /// The same fault for both endpoints. [`Fault::times`] counts for each separately.
    pub(super) fn both(fault: Fault) -> Self {
        Self { token: Some(fault.clone()), session: Some(fault) }
    }

    /// A fault of the token endpoint only.
    #[cfg(test)]
    pub(super) fn token(fault: Fault) -> Self {
        Self { token: Some(fault), session: None }
    }

    /// A fault of the session endpoint only.
    #[cfg(test)]
    pub(super) fn session(fault: Fault) -> Self {
        Self { token: None, session: Some(fault) }
    }

    /// Returns the fault of the next call, and counts the call as one of its [`Fault::times`].
    pub(super) fn take(&mut self, endpoint: Endpoint) -> Option<Fault> {
        let slot = match endpoint {
            Endpoint::Token => &mut self.token,
            Endpoint::Session => &mut self.session,
        };
        let fault = slot.as_mut()?;
        match &mut fault.times {
            None => Some(fault.clone()),
            Some(times) if *times > 1 => {
                *times -= 1;
                Some(fault.clone())
            }
            Some(0) => {
                *slot = None;
                None
            }
            Some(_) => slot.take(),
        }
    }
}

#[cfg(test)]
impl Fault {
    /// Answers this status.
    pub(super) fn status(status: u16) -> Self {
        Self::from(Answer::Response { status, retry_after: None, body: None })
    }

    /// Answers this status with a `Retry-After` header, in seconds or as a date.
    pub(super) fn retry_after(status: u16, retry_after: impl ToString) -> Self {
        let retry_after = Some(retry_after.to_string());
        Self::from(Answer::Response { status, retry_after, body: None })
    }

    /// Answers 200 with this body, labelled as JSON whatever it is.
    pub(super) fn body(body: impl Into<String>) -> Self {
        Self::from(Answer::Response { status: 200, retry_after: None, body: Some(body.into()) })
    }

    /// Answers a 302 to this location.
    pub(super) fn redirect(location: impl Into<String>) -> Self {
        Self::from(Answer::Redirect(location.into()))
    }

    /// Closes the connection without an answer.
    pub(super) fn close() -> Self {
        Self::from(Answer::Close)
    }

    /// Answers normally, after this latency.
    pub(super) fn slow(latency: Duration) -> Self {
        Self { latency: Some(latency), ..Self::default() }
    }

    /// Sets the latency.
    #[must_use]
    pub(super) fn after(self, latency: Duration) -> Self {
        Self { latency: Some(latency), ..self }
    }

    /// Limits the fault to this number of calls.
    #[must_use]
    pub(super) fn times(self, times: u64) -> Self {
        Self { times: Some(times), ..self }
    }

    /// Makes the token or session before the fault answers.
    #[must_use]
    pub(super) fn carried_out(self) -> Self {
        Self { carry_out: true, ..self }
    }
}

#[cfg(test)]
impl From<Answer> for Fault {
    fn from(answer: Answer) -> Self {
        Self { answer: Some(answer), ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_without_a_limit_stays() {
        let mut faults = Faults::token(Fault::status(503));
        for _ in 0..3 {
            assert_eq!(faults.take(Endpoint::Token), Some(Fault::status(503)));
            assert_eq!(faults.take(Endpoint::Session), None);
        }
    }

    #[test]
    fn a_fault_with_a_limit_ends() {
        let mut faults = Faults::both(Fault::close().times(2));
        assert!(faults.take(Endpoint::Token).is_some());
        assert_eq!(faults.token, Some(Fault::close().times(1)));
        assert!(faults.take(Endpoint::Token).is_some());
        assert_eq!(faults.take(Endpoint::Token), None);
        assert!(faults.take(Endpoint::Session).is_some());

        let mut never = Faults::token(Fault::close().times(0));
        assert_eq!(never.take(Endpoint::Token), None);
    }
}
