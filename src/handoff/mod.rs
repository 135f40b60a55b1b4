//! The use case: obtains one session for one request.
//!
//! Read from top to bottom. [`Handoff::obtain`] lets one of several concurrent requests for the same user
//! and workflow do the work (single-flight). `claim_or_make` claims the link in Redis: it gets the cached
//! link or, without one, the lease, which is the exclusive right to make one. `make_and_store` makes
//! a session under the lease and stores it; `make_without_cache` makes one while Redis is unavailable.
//! `flow` calls the platform, in the flow that is configured. The worker publishes the event.
//!
//! Each cached link carries up to sixteen stamps, which are hashes of request ids: of the request it was
//! made for, of the renewals that reused it, and of the links before it. A redelivered renewal that finds
//! its own stamp accepts the link instead of making another.

mod asked;
mod background;
mod budget;
mod calls;
mod flow;
mod job;
mod lease_wait;
mod log;
mod obtained;
mod single_flight;

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub(crate) use self::single_flight::{Joined, SingleFlight};
pub(crate) use self::{
    background::with_background,
    job::{Failure, Job},
    obtained::Obtained,
};
use self::{
    budget::CallBudget,
    calls::{Calls, Stopped, until_follower_makes_room},
    flow::NewSession,
    lease_wait::LeaseWait,
    single_flight::{Follower, Leader},
};
use crate::{
    cache::{
        Cache, Claim, Freshness, Keys, Lease, Overwrite, Patience, Stamp, StoreOutcome,
        UnansweredClaim,
    },
    config::Flow,
    platform::PlatformClient,
    retry::Backoff,
    session::Session,
    telemetry::metrics::Metrics,
};

/// Obtains sessions, at most one per user and workflow at a time.
pub(crate) struct Handoff {
    calls: Calls,
    flow: Flow,
    in_flight: SingleFlight<Result<Obtained, Failure>>,
}

impl Handoff {
    /// `draining` is cancelled when the worker starts to drain. A request then finishes the call it is in;
    /// one that sleeps or waits at the gate ends with [`Failure::Interrupted`].
    pub(crate) fn new(
        flow: Flow,
        platform: Arc<PlatformClient>,
        cache: Cache,
        retry_budget: Duration,
        metrics: Arc<Metrics>,
        draining: CancellationToken,
    ) -> Self {
        let calls = Calls { platform, cache, retry_budget, metrics, draining };
        Self { calls, flow, in_flight: SingleFlight::new() }
    }

    /// Obtains the session for a request: the cached one, one that another request is making, or a new one.
    ///
    /// # Errors
    /// [`Failure`] says whether the request is retried, rejected or returned to the queue.
    pub(crate) async fn obtain(&self, job: &Job<'_>) -> Result<Obtained, Failure> {
        let keys = self.calls.cache.keys(&job.request.user_id, &job.request.workflow_id);
        let mut budget = self.calls.budget(job);
        loop {
            job.check_not_lost()?;
            job.check_deadline()?;
            let joined_at = Instant::now();
            match self.in_flight.join(&keys.link) {
                Joined::Leader(leader) => {
                    let obtained = self.claim_or_make(job, &keys, &mut budget, &leader).await;
                    leader.finish(obtained.clone());
                    return obtained;
                }
                Joined::Follower(follower) => match self.follow(job, &budget, follower).await? {
                    // A renewal may use a link that appeared while it waited, but no older one.
                    Some(Ok(obtained))
                        if obtained.seen_at >= job.delivered_at
                            && (!job.request.renew
                                || obtained
                                    .not_before
                                    .is_some_and(|moment| moment >= joined_at)) =>
                    {
                        return Ok(obtained.shared());
                    }
                    // The leader spent its budget; this request may have some left.
                    Some(Err(failure @ Failure::Transient(_))) => {
                        match budget.schedule.next_delay() {
                            Some(delay) => self.calls.pause(job, delay).await?,
                            None => return Err(failure),
                        }
                    }
                    _ if self.calls.draining.is_cancelled() => return Err(Failure::Interrupted),
                    // The link is too old for a renewal, or may have ended since, or the leader failed for
                    // a reason of its own: join again, perhaps as the leader.
                    _ => {}
                },
            }
        }
    }

    /// Waits for the result of another request of the same user, within the request's deadline.
    async fn follow(
        &self,
        job: &Job<'_>,
        budget: &CallBudget<'_>,
        follower: Follower<Result<Obtained, Failure>>,
    ) -> Result<Option<Result<Obtained, Failure>>, Failure> {
        if job.request.renew {
            follower.announce_renewal();
        }
        tokio::select! {
            biased;
            result = job.result_of(follower.result()) => result,
            failure = until_follower_makes_room(job, budget.ticket.place()) => Err(failure),
        }
    }

    /// Records in Redis that a link is handed out, so that it can be found by its session. No event waits for
    /// this, but the request is acked only then.
    pub(crate) async fn record(&self, job: &Job<'_>, obtained: &Obtained) {
        obtained.record(&self.calls.cache, job).await;
    }

    /// Returns the cached link, or takes the lease and makes a new one. One worker at a time holds the lease.
    async fn claim_or_make(
        &self,
        job: &Job<'_>,
        keys: &Keys,
        budget: &mut CallBudget<'_>,
        leader: &Leader<Result<Obtained, Failure>>,
    ) -> Result<Obtained, Failure> {
        let stamp = job.stamp();
        let mut not_before = None;
        let mut freshness =
            if job.request.renew { Freshness::SinceRequest } else { Freshness::Any };
        let mut poll_backoff =
            Backoff::between(Duration::from_millis(20), Duration::from_millis(250));
        // Reserve a rate permit early: without a cached link, a platform call comes next.
        budget.ticket.reserve(flow::first_call(self.flow));
        let mut lease_wait = LeaseWait::new(&self.calls.metrics);
        let cache = &self.calls.cache;
        let mut patience = cache.patience();
        let mut unanswered: Option<UnansweredClaim> = None;
        let mut link_had_ended = false;
        loop {
            if let Err(failure) = job.check_not_lost().and_then(|()| job.check_deadline()) {
                if let Some(claim) = unanswered {
                    claim.release();
                }
                return Err(failure);
            }
            let claimed_at = Instant::now();
            match cache.claim(keys, &stamp, &freshness, unanswered.take()).await {
                Ok(Claim::Link(link)) => {
                    match Obtained::unless_ended(cache, keys, link, claimed_at).await {
                        Ok(obtained) => return Ok(Obtained { not_before, ..obtained }),
                        // The link is gone. If another has ended, too, or Redis failed to remove it, a new one is
                        // needed; before that, refusing all links of the same request could cost a session.
                        Err(newest) if link_had_ended => {
                            freshness = Freshness::OtherThan(newest);
                        }
                        Err(_) => link_had_ended = true,
                    }
                }
                Ok(Claim::Lease(lease)) => {
                    lease_wait.end();
                    // Should the lease be lost, a renewal accepts any link but the one it has seen.
                    if job.request.renew {
                        freshness = Freshness::OtherThan(lease.newest.clone());
                    }
                    if let Some((_, session)) = self.pending_link(job, keys, &stamp) {
                        // Boxed to keep this future small; this follows an outage of Redis.
                        let stored = Obtained::store_pending(keys, &lease, session, &stamp);
                        if let Some(pending) = Box::pin(stored).await {
                            return Ok(pending);
                        }
                    } else {
                        // Boxed: 2.8 KiB that a request for a cached link never needs.
                        let making = self.make_and_store(job, keys, &lease, &stamp, budget);
                        if let Some(made) = Box::pin(making).await? {
                            return Ok(made);
                        }
                    }
                }
                Ok(Claim::LeaseTaken { newest }) => {
                    // A renewal then accepts any link that replaces the current one.
                    if freshness == Freshness::SinceRequest {
                        freshness = Freshness::OtherThan(newest);
                    }
                    not_before = Some(claimed_at);
                    lease_wait.begin();
                    budget.ticket.cancel_reservation();
                    tokio::select! {
                        waited = self.calls.pause(job, poll_backoff.next_delay()) => waited?,
                        // Claims again at once: without a claim between a renewal and the link, the renewal
                        // could not know that the link is the later one, and would make another.
                        () = leader.renewal_joined() => poll_backoff.reset(),
                    }
                }
                Err(claim) => {
                    lease_wait.end();
                    budget.ticket.cancel_reservation();
                    let waited = self.wait_for_redis(job, &mut patience, claimed_at, &claim).await;
                    budget.exclude(claimed_at.elapsed());
                    match waited {
                        Ok(true) => {
                            unanswered = Some(claim);
                            continue;
                        }
                        Ok(false) => {}
                        Err(failure) => {
                            claim.release();
                            return Err(failure);
                        }
                    }
                    if let Some((made_for, session)) = self.pending_link(job, keys, &stamp) {
                        claim.release();
                        return Ok(Obtained::pending(keys, session, &made_for));
                    }
                    // Boxed for the same reason.
                    let making = self.make_without_cache(job, keys, &stamp, budget, claim);
                    match Box::pin(making).await? {
                        Made::Session(made) => return Ok(made),
                        Made::ClaimAgain(claim) => unanswered = Some(claim),
                    }
                }
            }
        }
    }

    /// Waits after a failed claim until it can be repeated. `false`: the request is served without Redis.
    async fn wait_for_redis(
        &self,
        job: &Job<'_>,
        patience: &mut Patience,
        claimed_at: Instant,
        claim: &UnansweredClaim,
    ) -> Result<bool, Failure> {
        let wait = self.calls.cache.wait_to_repeat(patience, claimed_at, claim);
        // Boxed to keep the caller's future small; it lives only while Redis is unavailable.
        Box::pin(async {
            tokio::select! {
                waited = job.result_of(wait) => waited,
                () = self.calls.draining.cancelled() => Err(Failure::Interrupted),
            }
        })
        .await
    }

    /// A link that this replica has made and could not store yet, if the request accepts it.
    fn pending_link(&self, job: &Job<'_>, keys: &Keys, stamp: &Stamp) -> Option<(Stamp, Session)> {
        self.calls.cache.pending_link(keys, stamp, !job.request.renew)
    }

    /// Makes a session under the lease. `None`: Redis reports the lease lost, or that the session has ended; claim
    /// again.
    async fn make_and_store(
        &self,
        job: &Job<'_>,
        keys: &Keys,
        lease: &Lease,
        stamp: &Stamp,
        budget: &mut CallBudget<'_>,
    ) -> Result<Option<Obtained>, Failure> {
        let made = {
            let make = pin!(flow::make(self.flow, &self.calls, job, Some(lease), budget));
            with_background(make, pin!(lease.keep_alive())).await
        };
        match made {
            Ok(NewSession { session, is_of_repeat }) => {
                let made = Obtained::new(keys, session, stamp);
                // An earlier try or delivery may have made the session, and it may have ended since.
                let stored = if is_of_repeat || job.may_be_repeat || budget.got_ended_session() {
                    // Boxed, too: few calls are repeated.
                    Box::pin(lease.store_unless_ended(&made.session)).await
                } else {
                    lease.store(&made.session).await
                };
                match stored {
                    Ok(StoreOutcome::Stored { is_indexed }) => Ok(Some(made.stored(is_indexed))),
                    Ok(StoreOutcome::Fenced) => {
                        log::lease_lost(job.request_id);
                        Ok(None)
                    }
                    Ok(StoreOutcome::Ended) => {
                        log::session_had_ended(job.request_id);
                        budget.count_ended_session()?;
                        Ok(None)
                    }
                    // The link works all the same. The cache stores it once Redis is back.
                    Err(error) => {
                        log::link_not_stored(job.request_id, &error);
                        Ok(Some(made))
                    }
                }
            }
            Err(Stopped::ClaimAgain) => Ok(None),
            Err(stopped) => {
                lease.release(stopped.blames_token()).await;
                Err(stopped.into())
            }
        }
    }

    /// Makes a session without a lease while Redis is unavailable.
    async fn make_without_cache(
        &self,
        job: &Job<'_>,
        keys: &Keys,
        stamp: &Stamp,
        budget: &mut CallBudget<'_>,
        unanswered: UnansweredClaim,
    ) -> Result<Made, Failure> {
        log::without_cache(job.request_id, &unanswered.error);
        match flow::make(self.flow, &self.calls, job, None, budget).await {
            Ok(NewSession { session, .. }) => {
                // If this fails, too, the cache stores the link once Redis is back.
                let overwrite =
                    if job.request.renew { Overwrite::Any } else { Overwrite::IfAbsent };
                let made = Obtained::new(keys, session, stamp);
                let _ = unanswered.store(&made.session, overwrite).await;
                Ok(Made::Session(made))
            }
            Err(Stopped::ClaimAgain) => Ok(Made::ClaimAgain(unanswered)),
            Err(stopped) => {
                unanswered.release();
                Err(stopped.into())
            }
        }
    }
}

/// What came of making a session without Redis.
enum Made {
    Session(Obtained),
    /// Redis is back before the token call.
    ClaimAgain(UnansweredClaim),
}
