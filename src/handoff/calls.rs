//! The two platform calls, retried within the delivery's budget.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    budget::CallBudget,
    job::{Failure, Job},
    log,
};
use crate::{
    cache::{Cache, Lease},
    platform::{CallError, CallPermit, FailedCall, PlatformClient, SessionCall},
    retry::RetryPolicy,
    session::{Call, Token},
    telemetry::metrics::Metrics,
};

/// After this long at the gate, a call is checked again: its lease or token may be gone.
const LONG_HOLD: Duration = Duration::from_secs(1);

/// How long a draining or lost request still waits at a gate that may be about to let it through.
const DRAIN_PATIENCE: Duration = Duration::from_secs(1);

/// Calls the platform through its gate.
pub(super) struct Calls {
    pub(super) platform: Arc<PlatformClient>,
    pub(super) cache: Cache,
    pub(super) retry: RetryPolicy,
    pub(super) metrics: Arc<Metrics>,
    /// Cancelled when the worker drains: nothing waits any more.
    pub(super) draining: CancellationToken,
}

/// Why a call, or the pair of calls, ended without a result.
pub(super) enum Stopped {
    /// The platform's last answer; the budget is spent, or retrying cannot help.
    Call(CallError),
    /// The request must not continue: it expired, is postponed or interrupted.
    Request(Failure),
    /// The token is about to expire: a new one is needed.
    TokenStale,
    /// The platform refused a token whose earlier session call failed. That call may have made a session
    /// and lost its answer, so the refusal says nothing about the request.
    TokenUsed,
    /// Redis is back, or reports that the lease is lost: a link may exist by now.
    ClaimAgain,
}

impl Calls {
    /// A new budget, and a place at the gate.
    pub(super) fn budget(&self, job: &Job<'_>) -> CallBudget<'_> {
        let ticket = self.platform.gate().ticket(job.request_id.as_str());
        CallBudget::new(self.retry.start(), ticket)
    }

    /// Gets a token, unless the lease is lost or Redis comes back meanwhile.
    pub(super) async fn token(
        &self,
        job: &Job<'_>,
        lease: Option<&Lease>,
        budget: &mut CallBudget<'_>,
    ) -> Result<Token, Stopped> {
        let call = |pass| self.platform.token(pass, job.span);
        let check = |held, repeated| {
            let claim_again = match lease {
                Some(lease) => lease.is_lost(),
                None => (repeated || held >= LONG_HOLD) && self.cache.is_available(),
            };
            if claim_again { Err(Stopped::ClaimAgain) } else { Ok(()) }
        };
        self.retrying(job, budget, Call::Token, check, call).await
    }

    /// Makes a session with the token, and returns the session's id.
    pub(super) async fn session(
        &self,
        job: &Job<'_>,
        token: &Token,
        lease: Option<&Lease>,
        budget: &mut CallBudget<'_>,
    ) -> Result<String, Stopped> {
        let Job { request, request_id, span, .. } = *job;
        let session = SessionCall { request, request_id, span };
        let call = |pass| self.platform.session(pass, session, token);
        let check = |held, _| {
            if lease.is_some_and(Lease::is_lost) {
                Err(Stopped::ClaimAgain)
            } else if held >= LONG_HOLD && !self.cache.is_reusable(token) {
                Err(Stopped::TokenStale)
            } else {
                Ok(())
            }
        };
        self.retrying(job, budget, Call::Session, check, call).await
    }

    /// Retries a call within the budget. Neither the time that the gate holds the request nor a failure
    /// that closes the gate counts against the request: the call is repeated when the gate opens.
    async fn retrying<'a, T, F: Future<Output = Result<T, FailedCall>>>(
        &self,
        job: &Job<'_>,
        budget: &mut CallBudget<'a>,
        kind: Call,
        check: impl Fn(Duration, bool) -> Result<(), Stopped>,
        call: impl Fn(CallPermit<'a>) -> F,
    ) -> Result<T, Stopped> {
        let mut repeated = false;
        loop {
            let arrived = Instant::now();
            // Boxed: this wait is usually short, and its state would enlarge the future of the call.
            let pass = Box::pin(self.pass(job, budget, kind)).await?;
            budget.exclude(arrived.elapsed());
            check(arrived.elapsed(), repeated)?;
            if kind == Call::Token {
                budget.reserve(Call::Session);
            }
            let called = Instant::now();
            let FailedCall { error, during_pause: held } = match call(pass).await {
                Ok(value) => return Ok(value),
                Err(failed) => failed,
            };
            if repeated && matches!(error, CallError::Unauthorized) {
                return Err(Stopped::TokenUsed);
            }
            repeated = true;
            let delay = match error {
                _ if held => None,
                CallError::Transient { .. } => budget.next_delay(),
                _ => return Err(Stopped::Call(error)),
            };
            let Some(delay) = delay else {
                if !held && !self.is_outage(kind, called).await {
                    return Err(Stopped::Call(error));
                }
                budget.exclude(called.elapsed());
                self.metrics.platform.retried(kind, error.label());
                log::call_held(job.request_id, &error);
                continue;
            };
            log::call_retried(job.request_id, &error, delay);
            self.metrics.platform.retried(kind, error.label());
            budget.release();
            match self.pause(job, delay).await {
                // The delivery's time ended mid-retry: the same as a spent budget.
                Err(Failure::Postponed) if !budget.was_mostly_held() => {
                    return Err(Stopped::Call(error));
                }
                paused => paused?,
            }
        }
    }

    /// Waits briefly for the gate to close over other calls' failures. Without this wait, the first
    /// requests to fail in an outage would each spend an attempt on it.
    async fn is_outage(&self, kind: Call, started: Instant) -> bool {
        let gate = self.platform.gate();
        timeout(gate.outage_wait(kind, started), gate.until_paused()).await.is_ok()
    }

    /// Waits at the gate until the call may start, within the request's deadline.
    async fn pass<'a>(
        &self,
        job: &Job<'_>,
        budget: &mut CallBudget<'a>,
        kind: Call,
    ) -> Result<CallPermit<'a>, Failure> {
        job.check_deadline()?;
        tokio::select! {
            biased;
            pass = job.within_deadline(budget.pass(kind)) => pass,
            () = self.interrupted_and_held(job) => Err(Failure::Interrupted),
        }
    }

    /// Waits until the worker drains or the delivery is lost, and the gate holds calls. A call that is
    /// in flight then is finished; a request that is held is not.
    async fn interrupted_and_held(&self, job: &Job<'_>) {
        tokio::select! {
            () = self.draining.cancelled() => {}
            () = job.lost.cancelled() => {}
        }
        let _ = timeout(DRAIN_PATIENCE, self.platform.gate().until_paused()).await;
    }

    /// Sleeps, unless the worker drains or the request's deadline passes.
    pub(super) async fn pause(&self, job: &Job<'_>, delay: Duration) -> Result<(), Failure> {
        tokio::select! {
            waited = job.within_deadline(sleep(delay)) => waited,
            () = self.draining.cancelled() => Err(Failure::Interrupted),
        }
    }
}

impl Stopped {
    /// Whether the token is to blame, so that a stored one must be deleted.
    pub(super) fn blames_token(&self) -> bool {
        matches!(self, Self::TokenUsed | Self::Call(CallError::Unauthorized))
    }
}

impl From<Failure> for Stopped {
    fn from(failure: Failure) -> Self {
        Self::Request(failure)
    }
}

impl From<Stopped> for Failure {
    fn from(stopped: Stopped) -> Self {
        match stopped {
            Stopped::Request(failure) => failure,
            Stopped::Call(error @ (CallError::Rejected(_) | CallError::Unauthorized)) => {
                Self::Rejected(error.to_string())
            }
            // A refused token call is never the request's fault.
            Stopped::Call(error @ (CallError::Transient { .. } | CallError::Refused(_))) => {
                Self::Transient(error.to_string())
            }
            // The use case handles these three: it gets a new token, or claims again.
            Stopped::TokenStale => Self::Transient("the token was about to expire".to_owned()),
            Stopped::TokenUsed => Self::Transient("the token had been used".to_owned()),
            Stopped::ClaimAgain => Self::Transient("the lease was lost".to_owned()),
        }
    }
}
