//! The two calls, each repeated while that may help.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::{Failure, Handoff, Job};
use crate::{
    cache::Lease,
    platform::{CallError, CallPermit, FailedCall, SessionCall, Ticket},
    retry::RetrySchedule,
    session::{Call, Token},
};

/// After so long at the gate it is looked at again whether a call makes sense.
const HELD_LONG: Duration = Duration::from_secs(1);

/// How long the gate is waited for by whoever had better not wait.
const MOMENT: Duration = Duration::from_secs(1);

/// A delivery's tries to reach the platform: one budget and one place at the gate for all its calls.
pub(super) struct Tries<'a> {
    began: Instant,
    /// How much of the time since then was spent at the gate.
    held: Duration,
    schedule: RetrySchedule,
    ticket: Ticket<'a>,
}

/// Cause a call was given up.
pub(super) enum Stopped {
    /// The platform's last answer.
    Call(CallError),
    /// There was no time, or no point, in going on.
    Failure(Failure),
    /// The token is about to end.
    Stale,
    /// Redis is back, or has said that the lease is lost: by now there may be a link there.
    Outdated,
    /// The token was refused, but an earlier try with it failed: it may well have made a session whose
    /// id never reached us.
    Used,
}

/// Cause no session was made.
pub(super) enum NotMade {
    /// It did not work out. Whether the token is to blame.
    Failed { failure: Failure, bad_token: bool },
    /// Redis should be asked again first.
    Outdated,
}

impl Handoff {
    /// A fresh budget, and a place at the gate.
    pub(super) fn tries(&self, job: &Job<'_>) -> Tries<'_> {
        let ticket = self.platform.gate().ticket(job.request_id.as_str());
        let (began, held) = (Instant::now(), Duration::ZERO);
        Tries { began, held, schedule: self.retry.start(), ticket }
    }

    /// Gets a token, for as long as the lease is ours, or without one for as long as Redis is away.
    pub(super) async fn token(
        &self,
        job: &Job<'_>,
        lease: Option<&Lease>,
        tries: &mut Tries<'_>,
    ) -> Result<Token, NotMade> {
        let call = |pass| self.platform.token(pass, job.span);
        let check = |held, repeated| {
            let late = repeated || held >= HELD_LONG;
            let outdated = match lease {
                Some(lease) => lease.is_lost(),
                None => late && self.cache.is_available(),
            };
            if outdated { Err(Stopped::Outdated) } else { Ok(()) }
        };
        Ok(self.retrying(job, tries, Call::Token, check, call).await?)
    }

    /// Starts a session, and returns its id.
    pub(super) async fn start_session(
        &self,
        job: &Job<'_>,
        token: &Token,
        lease: Option<&Lease>,
        tries: &mut Tries<'_>,
    ) -> Result<String, Stopped> {
        let Job { request, request_id, span, .. } = *job;
        let session = SessionCall { request, request_id, span };
        let call = |pass| self.platform.session(pass, session, token);
        let check = |held, _| match held >= HELD_LONG && !self.cache.is_reusable(token) {
            _ if lease.is_some_and(Lease::is_lost) => Err(Stopped::Outdated),
            true => Err(Stopped::Stale),
            false => Ok(()),
        };
        self.retrying(job, tries, Call::Session, check, call).await
    }

    /// Repeats a call while that may help, within the delivery's budget. Time at the gate, and a
    /// failure that shuts it, are not held against the delivery.
    async fn retrying<'a, T, F: Future<Output = Result<T, FailedCall>>>(
        &self,
        job: &Job<'_>,
        tries: &mut Tries<'a>,
        kind: Call,
        check: impl Fn(Duration, bool) -> Result<(), Stopped>,
        call: impl Fn(CallPermit<'a>) -> F,
    ) -> Result<T, Stopped> {
        let mut repeated = false;
        loop {
            let came = Instant::now();
            // Short as a rule: what takes long beside it need not have room for it.
            let pass = Box::pin(self.pass(job, tries, kind)).await?;
            tries.was_held(came.elapsed());
            check(came.elapsed(), repeated)?;
            if kind == Call::Token {
                tries.expect(Call::Session);
            }
            let called = Instant::now();
            let FailedCall { error, during_pause: held } = match call(pass).await {
                Ok(value) => return Ok(value),
                Err(failed) => failed,
            };
            if repeated && matches!(error, CallError::Unauthorized) {
                return Err(Stopped::Used);
            }
            repeated = true;
            let delay = match error {
                _ if held => None,
                CallError::Transient { .. } => tries.next_delay(),
                _ => return Err(Stopped::Call(error)),
            };
            let request_id = job.request_id.short();
            let Some(delay) = delay else {
                if !held && !self.gate_shuts(kind, called).await {
                    return Err(Stopped::Call(error));
                }
                tries.was_held(called.elapsed());
                self.metrics.retried(kind, error.label());
                tracing::debug!(request_id, %error, "held until the platform takes calls again");
                continue;
            };
            tracing::debug!(request_id, %error, ?delay, "trying again");
            self.metrics.retried(kind, error.label());
            tries.forgo();
            match self.pause(job, delay).await {
                // It has had its time: that ends the attempt as the end of its budget would.
                Err(Failure::Postponed) if !tries.was_mostly_held() => {
                    return Err(Stopped::Call(error));
                }
                paused => paused?,
            }
        }
    }

    /// Waits a moment to see whether a failure was the first of many. Without that, the first to fail in
    /// an outage would spend an attempt on it.
    async fn gate_shuts(&self, kind: Call, began: Instant) -> bool {
        let gate = self.platform.gate();
        timeout(gate.outage_wait(kind, began), gate.until_paused()).await.is_ok()
    }

    /// Waits at the gate, for as long as there is a point in it.
    async fn pass<'a>(
        &self,
        job: &Job<'_>,
        tries: &mut Tries<'a>,
        kind: Call,
    ) -> Result<CallPermit<'a>, Failure> {
        job.still_ours()?;
        tokio::select! {
            biased;
            pass = job.while_ours(tries.ticket.acquire(kind)) => pass,
            () = self.no_time_to_wait(job) => Err(Failure::Interrupted),
        }
    }

    /// Waits until the worker shuts down, or has lost the request, and the gate would take long: what
    /// is in flight is finished, what is held is not.
    async fn no_time_to_wait(&self, job: &Job<'_>) {
        tokio::select! {
            () = self.draining.cancelled() => {}
            () = job.lost.cancelled() => {}
        }
        let _ = timeout(MOMENT, self.platform.gate().until_paused()).await;
    }

    /// Waits, unless the worker shuts down or the request is not ours any more.
    pub(super) async fn pause(&self, job: &Job<'_>, delay: Duration) -> Result<(), Failure> {
        tokio::select! {
            waited = job.while_ours(sleep(delay)) => waited,
            () = self.draining.cancelled() => Err(Failure::Interrupted),
        }
    }
}

impl Tries<'_> {
    /// A call is to come, most likely.
    pub(super) fn expect(&mut self, call: Call) {
        self.ticket.reserve(call);
    }

    /// Time at the gate does not count.
    fn was_held(&mut self, time: Duration) {
        self.held += time;
        self.schedule.extend(time);
    }

    fn was_mostly_held(&self) -> bool {
        self.held > self.began.elapsed() / 2
    }

    /// No call is to come soon.
    pub(super) fn forgo(&mut self) {
        self.ticket.cancel_reservation();
    }

    /// How long to wait before the next try, or `None` where the budget is spent.
    pub(super) fn next_delay(&mut self) -> Option<Duration> {
        self.schedule.next_delay()
    }
}

impl From<Failure> for Stopped {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl From<Stopped> for NotMade {
    fn from(stopped: Stopped) -> Self {
        let (failure, bad_token) = match stopped {
            Stopped::Outdated => return Self::Outdated,
            Stopped::Failure(failure) => (failure, false),
            // Before these become failures, another token is tried.
            Stopped::Stale => (Failure::Transient("its token is about to end".to_owned()), false),
            Stopped::Used => (Failure::Transient("its token has been used".to_owned()), true),
            Stopped::Call(error) => match error {
                CallError::Rejected(_) => (Failure::Rejected(error.to_string()), false),
                CallError::Unauthorized => (Failure::Rejected(error.to_string()), true),
                // A refused token call is never the request's fault.
                CallError::Transient { .. } | CallError::Refused(_) => {
                    (Failure::Transient(error.to_string()), false)
                }
            },
        };
        Self::Failed { failure, bad_token }
    }
}
