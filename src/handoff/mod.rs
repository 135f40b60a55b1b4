//! The use case: obtain one session for one request.
//!
//! Top to bottom: [`Handoff::obtain`] lets one of several concurrent requests for the same user and
//! workflow do the work (single-flight). `claim_or_make` takes the cached link from Redis, or the lease,
//! which is the right to make a session. `make_and_store` makes one under the lease and stores it;
//! `make_without_cache` does the same while Redis is unavailable. `make` calls the platform for a token
//! and, with it, for a session. Publishing the event is the worker's part.
//!
//! Redis keeps the stamps of the last sixteen requests that a link was made for. A redelivered renewal
//! recognises its own link by its stamp, so it does not make a second one.

mod budget;
mod calls;
mod job;
mod lease_wait;
mod log;
mod single_flight;

use std::{
    pin::{Pin, pin},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::{Either, select};
use tokio_util::sync::CancellationToken;

pub(crate) use self::job::{Failure, Job};
use self::{
    budget::CallBudget,
    calls::{Calls, Stopped},
    lease_wait::LeaseWait,
    single_flight::{Joined, SingleFlight},
};
use crate::{
    cache::{Cache, Claim, Freshness, Keys, Lease, Overwrite, StoreOutcome, UnansweredClaim},
    platform::{CallError, PlatformClient},
    retry::{Backoff, RetryPolicy},
    session::{Call, Session},
    telemetry::metrics::Metrics,
};

/// Obtains sessions, at most one per user and workflow at a time.
pub(crate) struct Handoff {
    calls: Calls,
    cache: Cache,
    in_flight: SingleFlight<Result<Obtained, Failure>>,
    metrics: Arc<Metrics>,
    draining: CancellationToken,
}

/// A session for the request's user and workflow.
#[derive(Clone)]
pub(crate) struct Obtained {
    pub(crate) session: Arc<Session>,
    /// The session existed before this request, or was made for another request or an earlier try.
    pub(crate) reused: bool,
    /// A link could not exist before this moment, so it is new enough for a renewal that was waiting by
    /// then. `None`: the link was in the cache when this request arrived.
    made_after: Option<Instant>,
}

impl Handoff {
    /// Once `draining` is cancelled, requests stop waiting: they finish their call or are interrupted.
    pub(crate) fn new(
        platform: Arc<PlatformClient>,
        cache: Cache,
        retry: RetryPolicy,
        metrics: Arc<Metrics>,
        draining: CancellationToken,
    ) -> Self {
        let calls = Calls {
            platform,
            cache: cache.clone(),
            retry,
            metrics: Arc::clone(&metrics),
            draining: draining.clone(),
        };
        Self { calls, cache, in_flight: SingleFlight::new(), metrics, draining }
    }

    /// Obtains the session for a request: the cached one, one that another request is making, or a new one.
    ///
    /// # Errors
    /// [`Failure`] says whether the request is retried, rejected or returned to the queue.
    pub(crate) async fn obtain(&self, job: &Job<'_>) -> Result<Obtained, Failure> {
        let keys = self.keys(job);
        let mut budget = self.calls.budget(job);
        loop {
            job.check_deadline()?;
            let joined = Instant::now();
            match self.in_flight.join(&keys.link) {
                Joined::Leader(leader) => {
                    let obtained = self.claim_or_make(job, &keys, &mut budget).await;
                    leader.finish(obtained.clone());
                    return obtained;
                }
                Joined::Follower(follower) => match job.within_deadline(follower.result()).await? {
                    // A renewal accepts a session made while it waited, but no older one.
                    Some(Ok(obtained))
                        if !job.request.renew || obtained.made_after >= Some(joined) =>
                    {
                        return Ok(Obtained { reused: true, ..obtained });
                    }
                    // The platform fails. A request that joined later has budget left to try again.
                    Some(Err(failure @ Failure::Transient(_))) => match budget.next_delay() {
                        Some(delay) => self.calls.pause(job, delay).await?,
                        None => return Err(failure),
                    },
                    _ if self.draining.is_cancelled() => return Err(Failure::Interrupted),
                    // The leader failed for a reason of its own: join again, perhaps as the leader.
                    _ => {}
                },
            }
        }
    }

    /// Adds the stamp of a renewal to the link it reuses, so that its redelivery accepts that link, too.
    pub(crate) async fn stamp_renewal(&self, job: &Job<'_>) {
        self.cache.add_stamp(&self.keys(job), &job.stamp()).await;
    }

    fn keys(&self, job: &Job<'_>) -> Keys {
        self.cache.keys(&job.request.user_id, &job.request.workflow_id)
    }

    /// Takes the link from Redis, or the lease and makes one. Only one worker holds the lease at a time.
    async fn claim_or_make(
        &self,
        job: &Job<'_>,
        keys: &Keys,
        budget: &mut CallBudget<'_>,
    ) -> Result<Obtained, Failure> {
        let stamp = job.stamp();
        let mut made_after = None;
        let mut freshness =
            if job.request.renew { Freshness::SinceRequest } else { Freshness::Any };
        let mut pauses = Backoff::between(Duration::from_millis(20), Duration::from_millis(250));
        // Ask for a rate permit now: without a cached link, the token call comes next.
        budget.reserve(Call::Token);
        let mut lease_wait = LeaseWait::new(&self.metrics);
        loop {
            job.check_deadline()?;
            let claimed = Instant::now();
            match self.cache.claim(keys, &stamp, &freshness).await {
                Ok(Claim::Link(session)) => {
                    let session = Arc::new(session);
                    return Ok(Obtained { session, reused: true, made_after });
                }
                Ok(Claim::Lease(lease)) => {
                    lease_wait.end();
                    // If this lease is lost to another worker, that worker's link counts.
                    freshness = if job.request.renew {
                        Freshness::NewerThan(lease.newest().clone())
                    } else {
                        Freshness::Any
                    };
                    if let Some(session) = self.make_and_store(job, &lease, budget).await? {
                        return Ok(Obtained::new(session));
                    }
                }
                Ok(Claim::Held { newest }) => {
                    // Any link that replaces this one is new enough for a renewal.
                    if freshness == Freshness::SinceRequest {
                        freshness = Freshness::NewerThan(newest);
                    }
                    made_after = Some(claimed);
                    lease_wait.begin();
                    budget.release();
                    self.calls.pause(job, pauses.next_delay()).await?;
                }
                Err(unanswered) => {
                    lease_wait.end();
                    if let Some(session) = self.make_without_cache(job, budget, unanswered).await? {
                        return Ok(Obtained::new(session));
                    }
                }
            }
        }
    }

    /// Makes a session under the lease. `None`: another worker took the lease over; claim again.
    async fn make_and_store(
        &self,
        job: &Job<'_>,
        lease: &Lease,
        budget: &mut CallBudget<'_>,
    ) -> Result<Option<Session>, Failure> {
        let made = {
            let make = pin!(self.make(job, Some(lease), budget));
            alongside(make, pin!(lease.keep_alive())).await
        };
        match made {
            Ok(session) => match lease.store(&session).await {
                Ok(StoreOutcome::Stored) => Ok(Some(session)),
                Ok(StoreOutcome::Fenced) => {
                    log::lease_lost(job.request_id);
                    Ok(None)
                }
                // The link works without Redis, too. The cache stores it once Redis is back.
                Err(error) => {
                    log::link_not_stored(job.request_id, &error);
                    Ok(Some(session))
                }
            },
            Err(Stopped::ClaimAgain) => Ok(None),
            Err(stopped) => {
                lease.release(stopped.blames_token()).await;
                Err(stopped.into())
            }
        }
    }

    /// Makes a session without a lease while Redis is unavailable. `None`: Redis is back; claim again.
    async fn make_without_cache(
        &self,
        job: &Job<'_>,
        budget: &mut CallBudget<'_>,
        unanswered: UnansweredClaim,
    ) -> Result<Option<Session>, Failure> {
        log::without_cache(job.request_id, unanswered.error());
        match self.make(job, None, budget).await {
            Ok(session) => {
                // If Redis is still unavailable, the cache stores the link once it is back.
                let overwrite = if job.request.renew { Overwrite::Any } else { Overwrite::Never };
                let _ = unanswered.store(&session, overwrite).await;
                Ok(Some(session))
            }
            Err(Stopped::ClaimAgain) => Ok(None),
            Err(stopped) => Err(stopped.into()),
        }
    }

    /// Makes a session, with the token that an earlier try left under the lease, or with a new one.
    async fn make(
        &self,
        job: &Job<'_>,
        lease: Option<&Lease>,
        budget: &mut CallBudget<'_>,
    ) -> Result<Session, Stopped> {
        let mut token = match lease.and_then(Lease::stored_token) {
            Some(token) => token,
            None => self.calls.token(job, lease, budget).await?,
        };
        let mut refused = false;
        loop {
            let made = {
                let call = pin!(self.calls.session(job, &token, lease, budget));
                match lease {
                    // The token is a checkpoint for the next holder, should this worker be killed
                    // during the session call. Nothing waits for Redis to store it.
                    Some(lease) => alongside(call, pin!(lease.save_token(&token))).await,
                    None => call.await,
                }
            };
            match made {
                Ok(id) => return Ok(Session { token, id }),
                Err(Stopped::TokenStale) => {}
                // A refused token is replaced once …
                Err(Stopped::Call(CallError::Unauthorized)) if !refused => {
                    refused = true;
                    self.metrics.platform.retried(Call::Session, CallError::Unauthorized.label());
                }
                // … but one that may have been used is replaced for as long as the budget lasts: each
                // time, a call has failed before.
                Err(Stopped::TokenUsed) => {
                    refused = true;
                    self.metrics.platform.retried(Call::Session, CallError::Unauthorized.label());
                }
                Err(stopped) => return Err(stopped),
            }
            token = self.calls.token(job, lease, budget).await?;
        }
    }
}

impl Obtained {
    fn new(session: Session) -> Self {
        let made_after = Some(Instant::now());
        Self { session: Arc::new(session), reused: false, made_after }
    }
}

/// Polls `background` for as long as `work` takes, then drops it.
///
/// The caller pins both: a future passed by value would be stored twice in the caller's future.
pub(crate) async fn alongside<T>(
    work: Pin<&mut impl Future<Output = T>>,
    background: Pin<&mut impl Future<Output = ()>>,
) -> T {
    match select(work, background).await {
        Either::Left((done, _)) => done,
        Either::Right(((), work)) => work.await,
    }
}
