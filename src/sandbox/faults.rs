//! Misbehaviour on demand: what a call answers instead of what it should.

use std::time::Duration;

use super::record::Call;

/// What goes wrong at the moment, per call. [`Faults::default`]: nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// The fault of the token call.
    pub token: Option<Fault>,
    /// The fault of the session call.
    pub session: Option<Fault>,
}

/// How a call goes wrong, and how often.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    /// What is answered; `None`: what should be.
    pub answer: Option<Answer>,
    /// How long the call takes, in place of the configured latency and jitter.
    pub latency: Option<Duration>,
    /// The call does its work first, and goes wrong after: a token or a session is made that the
    /// caller never learns of.
    pub carry_out: bool,
    /// For how many calls; `None`: until changed.
    pub times: Option<u64>,
}

/// What a failing call answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A response, with any body: one that is not JSON, one that is too long, another shape of id.
    Response {
        /// From 200 to 599.
        status: u16,
        /// The `Retry-After` header, verbatim: seconds or a date. Visible ASCII and spaces.
        retry_after: Option<String>,
        /// The body; `None`: a JSON object that says it was asked to fail.
        body: Option<String>,
    },
    /// 302 to this address. Visible ASCII.
    Redirect(String),
    /// No answer: the connection is closed.
    Close,
}

impl Faults {
    /// The same fault for both calls. With [`Fault::times`], each of the two counts for itself.
    pub fn both(fault: Fault) -> Self {
        Self { token: Some(fault.clone()), session: Some(fault) }
    }

    /// A fault of the token call only.
    pub fn token(fault: Fault) -> Self {
        Self { token: Some(fault), session: None }
    }

    /// A fault of the session call only.
    pub fn session(fault: Fault) -> Self {
        Self { token: None, session: Some(fault) }
    }

    /// The fault that hits this call, which is counted as one of its [`Fault::times`].
    pub(super) fn take(&mut self, call: Call) -> Option<Fault> {
        let slot = match call {
            Call::Token => &mut self.token,
            Call::Session => &mut self.session,
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

impl Fault {
    /// Answers this status.
    pub fn status(status: u16) -> Self {
        Self::from(Answer::Response { status, retry_after: None, body: None })
    }

    /// Answers this status with a `Retry-After` header: seconds or a date.
    pub fn retry_after(status: u16, retry_after: impl ToString) -> Self {
        let retry_after = Some(retry_after.to_string());
        Self::from(Answer::Response { status, retry_after, body: None })
    }

    /// Answers 200 with this body, as JSON by its content type, whatever it is.
    pub fn body(body: impl Into<String>) -> Self {
        Self::from(Answer::Response { status: 200, retry_after: None, body: Some(body.into()) })
    }

    /// Answers a redirect to this address.
    pub fn redirect(location: impl Into<String>) -> Self {
        Self::from(Answer::Redirect(location.into()))
    }

    /// Closes the connection without an answer.
    pub fn close() -> Self {
        Self::from(Answer::Close)
    }

    /// Answers well, but takes this long.
    pub fn slow(latency: Duration) -> Self {
        Self { latency: Some(latency), ..Self::default() }
    }

    /// The same, taking this long.
    #[must_use]
    pub fn after(self, latency: Duration) -> Self {
        Self { latency: Some(latency), ..self }
    }

    /// The same, for the next calls only.
    #[must_use]
    pub fn times(self, times: u64) -> Self {
        Self { times: Some(times), ..self }
    }

    /// The same, with the work done before it goes wrong.
    #[must_use]
    pub fn carried_out(self) -> Self {
        Self { carry_out: true, ..self }
    }
}

impl From<Answer> for Fault {
    fn from(answer: Answer) -> Self {
        Self { answer: Some(answer), ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_without_a_number_stays() {
        let mut faults = Faults::token(Fault::status(503));
        for _ in 0..3 {
            assert_eq!(faults.take(Call::Token), Some(Fault::status(503)));
            assert_eq!(faults.take(Call::Session), None);
        }
    }

    #[test]
    fn a_fault_with_a_number_ends() {
        let mut faults = Faults::both(Fault::close().times(2));
        assert!(faults.take(Call::Token).is_some());
        assert_eq!(faults.token, Some(Fault::close().times(1)));
        assert!(faults.take(Call::Token).is_some());
        assert_eq!(faults.take(Call::Token), None);
        assert!(faults.take(Call::Session).is_some());

        let mut never = Faults::token(Fault::close().times(0));
        assert_eq!(never.take(Call::Token), None);
    }
}
