//! The two calls, each repeated while that may help.

use std::time::Duration;

use tokio::time::sleep;

use super::{Failure, Handoff, Job};
use crate::{
    platform::{CallError, SessionCall},
    retry::RetrySchedule,
    session::Token,
};

/// Why a call was given up.
pub(super) enum Stopped {
    /// The platform's last answer.
    Call(CallError),
    /// There was no time, or no point, in going on.
    Failure(Failure),
}

/// Why no session was made, and whether the token is to blame.
pub(super) struct NotMade {
    pub(super) failure: Failure,
    pub(super) bad_token: bool,
}

impl Handoff {
    /// Gets a token.
    pub(super) async fn token(
        &self,
        job: &Job<'_>,
        schedule: &mut RetrySchedule,
    ) -> Result<Token, NotMade> {
        Ok(self.retrying(job, schedule, || self.platform.token(job.trace)).await?)
    }

    /// Starts a session, and returns its id.
    pub(super) async fn start_session(
        &self,
        job: &Job<'_>,
        token: &Token,
        schedule: &mut RetrySchedule,
    ) -> Result<String, Stopped> {
        let Job { request, request_id, trace, .. } = *job;
        let call = SessionCall { request, request_id, trace };
        self.retrying(job, schedule, || self.platform.session(call, token)).await
    }

    /// Repeats a call while that may help, within the delivery's budget.
    async fn retrying<T, F: Future<Output = Result<T, CallError>>>(
        &self,
        job: &Job<'_>,
        schedule: &mut RetrySchedule,
        call: impl Fn() -> F,
    ) -> Result<T, Stopped> {
        loop {
            job.still_wanted().map_err(Stopped::Failure)?;
            let error = match call().await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let CallError::Transient { retry_after, .. } = error else {
                return Err(Stopped::Call(error));
            };
            let Some(delay) = schedule.next_delay(retry_after) else {
                return Err(Stopped::Call(error));
            };
            tracing::debug!(request_id = job.request_id.short(), %error, ?delay, "trying again");
            self.pause(job, delay).await.map_err(Stopped::Failure)?;
        }
    }

    /// Waits, unless the worker shuts down or nobody waits for the request any more.
    pub(super) async fn pause(&self, job: &Job<'_>, delay: Duration) -> Result<(), Failure> {
        tokio::select! {
            waited = job.unless_expired(sleep(delay)) => waited,
            () = self.draining.cancelled() => Err(Failure::Interrupted),
        }
    }
}

impl From<Stopped> for NotMade {
    fn from(stopped: Stopped) -> Self {
        let (failure, bad_token) = match stopped {
            Stopped::Failure(failure) => (failure, false),
            Stopped::Call(error) => match error {
                CallError::Rejected(_) => (Failure::Rejected(error.to_string()), false),
                CallError::Unauthorized => (Failure::Rejected(error.to_string()), true),
                // A refused token call is never the request's fault.
                CallError::Transient { .. } | CallError::Refused(_) => {
                    (Failure::Transient(error.to_string()), false)
                }
            },
        };
        Self { failure, bad_token }
    }
}
