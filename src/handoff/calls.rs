//! The platform's calls, retried within the delivery's budget.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    asked::Asked,
    budget::CallBudget,
    job::{Failure, Job},
    log,
};
use crate::{
    cache::{Cache, Lease},
    message::Request,
    platform::{
        CallError, CallPermit, Deeplink, FailedCall, FailureScope, Place, PlatformClient, Room,
    },
    session::{Call, Token},
    telemetry::metrics::Metrics,
};

/// After a wait this long at the gate, the token's age and Redis are checked again.
const LONG_WAIT: Duration = Duration::from_secs(1);

/// How long a request still waits at the gate once the worker drains or its delivery is lost.
const DRAIN_PATIENCE: Duration = Duration::from_secs(1);

/// How long a request that has not called yet stays before it makes room for others: the queue may be empty,
/// so that it would come back at once.
const MIN_STAY: Duration = Duration::from_secs(1);

/// When the platform defers a request alone, one in this many deferrals counts as a failed attempt.
/// Otherwise the request would never end.
const DEFERRALS_PER_ATTEMPT: u32 = 10;

/// Calls the platform through its gate.
pub(super) struct Calls {
    pub(super) platform: Arc<PlatformClient>,
    pub(super) cache: Cache,
    pub(super) retry_budget: Duration,
    pub(super) metrics: Arc<Metrics>,
    /// Cancelled when the worker starts to drain.
    pub(super) draining: CancellationToken,
}

/// Why making a session stopped without a result.
pub(super) enum Stopped {
    /// The platform's last answer; the budget is spent, or retrying cannot help.
    Call(CallError),
    /// The request must not continue: it expired, is postponed or interrupted.
    Request(Failure),
    /// The token is about to expire: a new one is needed.
    TokenStale,
    /// The platform refused the token on a retry. The earlier call may have made a session and lost its
    /// answer, so the refusal says nothing about the request.
    TokenUsed,
    /// Redis is back, or reports that the lease is lost: a link may exist by now.
    ClaimAgain,
}

impl Calls {
    /// Starts a retry budget, and takes a place at the gate.
    pub(super) fn budget(&self, job: &Job<'_>) -> CallBudget<'_> {
        let Request { user_id, workflow_id, .. } = job.request;
        let ticket = self.platform.gate().ticket(user_id, workflow_id);
        CallBudget::new(ticket, self.retry_budget)
    }

    /// Gets a token, unless the lease is lost or Redis comes back meanwhile.
    pub(super) async fn token(
        &self,
        job: &Job<'_>,
        lease: Option<&Lease>,
        budget: &mut CallBudget<'_>,
    ) -> Result<Token, Stopped> {
        let call = |permit, _| self.platform.token(permit, job.span);
        let check = |waited, retried, _: &Asked| self.check_claim(lease, waited, retried);
        self.retrying(job, budget, Call::Token, &mut Asked::never(), check, call).await
    }

    /// Makes a session and its link in one call, unless the lease is lost or Redis comes back meanwhile.
    pub(super) async fn deeplink(
        &self,
        job: &Job<'_>,
        earlier_links: u32,
        asked: &mut Asked,
        lease: Option<&Lease>,
        budget: &mut CallBudget<'_>,
    ) -> Result<Deeplink, Stopped> {
        let Job { request, request_id, span, may_be_repeat, .. } = *job;
        let call = |permit, is_repeat| {
            let is_repeat = is_repeat || may_be_repeat;
            self.platform.deeplink(permit, request, request_id, earlier_links, is_repeat, span)
        };
        // Both carry the same key, so that claiming again costs nothing even if this call made a session.
        let check = |waited, retried, _: &Asked| self.check_claim(lease, waited, retried);
        let (link, repeated) =
            self.retrying(job, budget, Call::Deeplink, asked, check, call).await?;
        asked.is_repeat |= repeated;
        Ok(link)
    }

    /// Fails if Redis knows better than this request whether a link exists by now.
    fn check_claim(
        &self,
        lease: Option<&Lease>,
        waited: Duration,
        retried: bool,
    ) -> Result<(), Stopped> {
        let claim_again = match lease {
            Some(lease) => lease.is_lost(),
            None => (retried || waited >= LONG_WAIT) && self.cache.is_available(),
        };
        if claim_again { Err(Stopped::ClaimAgain) } else { Ok(()) }
    }

    /// Makes a session with the token, and returns its id. `asked`: whether an earlier delivery may have tried with
    /// the same token.
    pub(super) async fn session(
        &self,
        job: &Job<'_>,
        token: &Token,
        asked: &mut Asked,
        lease: Option<&Lease>,
        budget: &mut CallBudget<'_>,
    ) -> Result<String, Stopped> {
        let Job { request, request_id, span, .. } = *job;
        let call = |permit, is_repeat| {
            self.platform.session(permit, request, request_id, token, is_repeat, span)
        };
        let check = |waited, _, asked: &Asked| {
            if lease.is_some_and(Lease::is_lost) {
                Err(Stopped::ClaimAgain)
            } else if waited >= LONG_WAIT {
                let now = SystemTime::now();
                let made_at = if asked.is_repeat { asked.first_at } else { now };
                let until = self.cache.lifetimes().token_usable_until(token, made_at);
                if until > now { Ok(()) } else { Err(Stopped::TokenStale) }
            } else {
                Ok(())
            }
        };
        let (id, repeated) = self.retrying(job, budget, Call::Session, asked, check, call).await?;
        asked.is_repeat |= repeated;
        Ok(id)
    }

    /// Retries a call within the budget. Time at the gate, and failures that are part of an outage, do not
    /// use the budget up: the call is repeated once the gate lets calls through again.
    async fn retrying<'a, T, F: Future<Output = Result<T, FailedCall>>>(
        &self,
        job: &Job<'_>,
        budget: &mut CallBudget<'a>,
        kind: Call,
        asked: &mut Asked,
        check: impl Fn(Duration, bool, &Asked) -> Result<(), Stopped>,
        mut call: impl FnMut(CallPermit<'a>, bool) -> F,
    ) -> Result<T, Stopped> {
        let mut retried = false;
        loop {
            let arrived_at = Instant::now();
            // Boxed to keep this future small; the wait is usually short.
            let permit = Box::pin(self.acquire(job, budget, kind)).await?;
            let waited = arrived_at.elapsed();
            budget.exclude(waited);
            check(waited, retried, asked)?;
            if kind == Call::Token {
                budget.ticket.reserve(Call::Session);
            }
            let is_probe = permit.is_probe();
            let called_at = Instant::now();
            asked.start();
            let FailedCall { error, scope } = match call(permit, asked.is_repeat).await {
                Ok(value) => return Ok(value),
                Err(failed) => failed,
            };
            budget.last_call = called_at.elapsed();
            if is_probe && error.may_refuse_workflow() {
                // Others probe next: the platform may refuse this workflow alone.
                return Err(Failure::MadeRoom.into());
            }
            if retried && matches!(error, CallError::Unauthorized) {
                return Err(Stopped::TokenUsed);
            }
            asked.is_repeat |= error.may_have_reached_platform();
            retried = true;
            let mut is_held = match scope {
                FailureScope::Pause => true,
                FailureScope::Deferred => {
                    let deferrals = job.deferrals.fetch_add(1, Ordering::Relaxed) + 1;
                    if deferrals.is_multiple_of(DEFERRALS_PER_ATTEMPT) {
                        return Err(Stopped::Call(error));
                    }
                    true
                }
                FailureScope::Undecided | FailureScope::Request => false,
            };
            if !is_held && !matches!(error, CallError::Transient { .. }) {
                return Err(Stopped::Call(error));
            }
            let delay = if is_held { None } else { budget.schedule.next_delay() };
            if delay.is_none() && scope == FailureScope::Undecided {
                is_held = self.is_outage(kind, called_at).await;
            }
            match delay {
                Some(delay) => {
                    log::call_retried(job.request_id, &error, delay);
                    self.metrics.platform.retried(kind, error.label());
                    budget.ticket.cancel_reservation();
                    match self.pause(job, delay).await {
                        Ok(()) => {}
                        // Out of time between two tries: the same as a spent budget.
                        Err(Failure::Postponed)
                            if !budget.was_mostly_held() && !job.was_returned_often =>
                        {
                            return Err(Stopped::Call(error));
                        }
                        Err(failure) => return Err(failure.into()),
                    }
                }
                None if is_held => {
                    log::call_held(job.request_id, &error);
                    self.metrics.platform.retried(kind, error.label());
                    budget.exclude(called_at.elapsed());
                }
                None => return Err(Stopped::Call(error)),
            }
        }
    }

    /// Waits briefly to see whether other calls fail, too, so that the gate pauses. Without this wait, the
    /// first requests to fail in an outage would each lose a delivery attempt to it.
    async fn is_outage(&self, kind: Call, called_at: Instant) -> bool {
        let gate = self.platform.gate();
        timeout(gate.outage_wait(kind, called_at), gate.until_paused()).await.is_ok()
    }

    /// Waits at the gate until the call may start, within the request's deadline.
    async fn acquire<'a>(
        &self,
        job: &Job<'_>,
        budget: &mut CallBudget<'a>,
        kind: Call,
    ) -> Result<CallPermit<'a>, Failure> {
        job.check_deadline()?;
        // Repeating a session call costs nothing more, whichever delivery does.
        if kind != Call::Session {
            job.check_not_lost()?;
        }
        let place = budget.ticket.place();
        let has_failed = !budget.last_call.is_zero();
        if has_failed && place.makes_room_before_next_call(job.holds_last_slot(), self.retry_budget)
        {
            return Err(Failure::MadeRoom);
        }
        // One that has not called may be back from making room a moment ago.
        let min_stay = if has_failed { Duration::ZERO } else { MIN_STAY };
        let turn = self.retry_budget + budget.last_call;
        tokio::select! {
            biased;
            permit = job.within_deadline(budget.ticket.acquire(kind)) => permit,
            () = self.out_of_patience(job) => Err(Failure::Interrupted),
            failure = until_room_is_needed(job, place, min_stay, turn) => Err(failure),
        }
    }

    /// Waits until the worker drains or the delivery is lost, and then until the gate pauses calls, one
    /// second at most. Calls already sent are finished; requests that wait at the gate are not.
    async fn out_of_patience(&self, job: &Job<'_>) {
        tokio::select! {
            () = self.draining.cancelled() => {}
            () = job.lost.cancelled() => {}
        }
        let _ = timeout(DRAIN_PATIENCE, self.platform.gate().until_paused()).await;
    }

    /// Sleeps, unless the worker drains, the delivery is lost or the request's deadline passes.
    pub(super) async fn pause(&self, job: &Job<'_>, delay: Duration) -> Result<(), Failure> {
        tokio::select! {
            waited = job.within_deadline(sleep(delay)) => waited,
            () = self.draining.cancelled() => Err(Failure::Interrupted),
            () = job.lost.cancelled() => Err(Failure::Interrupted),
        }
    }
}

/// Waits until a request that the gate holds must make room for those in the queue.
async fn until_room_is_needed(
    job: &Job<'_>,
    place: Place<'_>,
    min_stay: Duration,
    turn: Duration,
) -> Failure {
    match place.until_room_is_needed(|| job.holds_last_slot(), min_stay, turn).await {
        Room::Deferred(wait) => Failure::Deferred(wait),
        Room::Failed => Failure::MadeRoom,
    }
}

/// Waits until a request that follows another of the same user must leave its slot: the platform wants no calls
/// for either, and may serve the requests in the queue.
pub(super) async fn until_follower_makes_room(job: &Job<'_>, place: Place<'_>) -> Failure {
    loop {
        sleep(MIN_STAY).await;
        if job.holds_last_slot()
            && let Some(wait) = place.deferred_for()
        {
            return Failure::Deferred(wait);
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
            // A refused call is about the API key or the URL, not about the request.
            Stopped::Call(error @ (CallError::Transient { .. } | CallError::Refused { .. })) => {
                Self::Transient(error.to_string())
            }
            // `Handoff` gets a new token or claims again instead, so these do not get here.
            Stopped::TokenStale | Stopped::TokenUsed | Stopped::ClaimAgain => Self::Interrupted,
        }
    }
}
