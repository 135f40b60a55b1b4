//! The use case: one request in, one link out.
//!
//! The way of a request, top to bottom: [`Handoff::serve`] gets a session and tells of it;
//! `session` lets one of several requests for the same person do the work; `claim_or_make` takes the
//! link from Redis, or the lease, which is the right to make one; `make_and_store` has it made and
//! stored under the lease, `make_without_cache` where Redis is away; `make` asks the platform for a
//! token and, with it, a session; `tell` publishes the event.
//!
//! Redis keeps with each link the stamps of the requests that it was made for, the latest sixteen. By
//! its stamp a renewal that is delivered again knows its own link.

mod calls;
mod job;
mod single_flight;

use std::{
    pin::{Pin, pin},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use futures_util::future::{Either, select};
use secrecy::ExposeSecret;
use tokio_util::sync::CancellationToken;
use url::Url;

use self::calls::{NotMade, Stopped, Tries};
pub use self::job::{Failure, Job};
use self::single_flight::{Joined, SingleFlight};
use crate::{
    broker::{PublishError, Publisher},
    cache::{Cache, Claim, Freshness, Keys, Lease, Overwrite, StoreOutcome, UnansweredClaim},
    message::{Event, EventBody},
    platform::{CallError, PlatformClient, handoff_url},
    retry::{Backoff, RetryPolicy},
    session::{Call, Session},
    telemetry::metrics::Metrics,
};

/// Everything that serving a request takes.
pub struct Handoff {
    platform: Arc<PlatformClient>,
    cache: Cache,
    flights: SingleFlight<Result<Obtained, Failure>>,
    retry: RetryPolicy,
    public_url: Url,
    metrics: Arc<Metrics>,
    draining: CancellationToken,
}

/// A request was served: its event is confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// Whether the link was made for another request, or an earlier try.
    pub reused: bool,
}

/// A session, and whether it was there before.
#[derive(Clone)]
struct Obtained {
    session: Arc<Session>,
    reused: bool,
    /// Nobody could have the link before this moment: for a renewal that waited by then it is new
    /// enough. `None`: it was there when we came.
    made_after: Option<Instant>,
}

impl Handoff {
    /// `draining` says that no more time is to be spent waiting.
    pub fn new(
        platform: Arc<PlatformClient>,
        cache: Cache,
        retry: RetryPolicy,
        public_url: Url,
        metrics: Arc<Metrics>,
        draining: CancellationToken,
    ) -> Self {
        Self { platform, cache, flights: SingleFlight::new(), retry, public_url, metrics, draining }
    }

    /// Serves one request: when this returns well, its event is confirmed.
    ///
    /// # Errors
    /// The request was not served; [`Failure`] says what that means for it.
    pub async fn serve(&self, job: &Job<'_>, publisher: &Publisher) -> Result<Served, Failure> {
        let keys = self.cache.keys(&job.request.user_id, &job.request.workflow_id);
        let mut tries = self.tries(job);
        let Obtained { session, reused, .. } = self.session(job, &keys, &mut tries).await?;
        drop(tries);
        match job.request.renew && reused {
            // Should this request come again, it shall find that this link was made for it, too.
            true => {
                let stamp = job.stamp();
                let told = pin!(self.tell(job, &session, reused, publisher));
                beside(told, pin!(self.cache.add_stamp(&keys, &stamp))).await?;
            }
            false => self.tell(job, &session, reused, publisher).await?,
        }
        Ok(Served { reused })
    }

    /// Gets the person's session, together with whoever else wants it at this moment.
    async fn session(
        &self,
        job: &Job<'_>,
        keys: &Keys,
        tries: &mut Tries<'_>,
    ) -> Result<Obtained, Failure> {
        loop {
            job.still_ours()?;
            let joined = Instant::now();
            match self.flights.join(&keys.link) {
                Joined::Leader(leader) => {
                    let obtained = self.claim_or_make(job, keys, tries).await;
                    leader.finish(obtained.clone());
                    return obtained;
                }
                Joined::Follower(follower) => match job.while_ours(follower.result()).await? {
                    // Who asks for a new session takes one made meanwhile, but none made before.
                    Some(Ok(obtained))
                        if !job.request.renew || obtained.made_after >= Some(joined) =>
                    {
                        return Ok(Obtained { reused: true, ..obtained });
                    }
                    // The platform is in trouble. Who came later has time left to try again.
                    Some(Err(failure @ Failure::Transient(_))) => match tries.next_delay() {
                        Some(delay) => self.pause(job, delay).await?,
                        None => return Err(failure),
                    },
                    _ if self.draining.is_cancelled() => return Err(Failure::Interrupted),
                    // What went wrong was the other request's own affair.
                    _ => {}
                },
            }
        }
    }

    /// Takes the link from Redis, or the lease to make one. Only one worker at a time has that.
    async fn claim_or_make(
        &self,
        job: &Job<'_>,
        keys: &Keys,
        tries: &mut Tries<'_>,
    ) -> Result<Obtained, Failure> {
        let stamp = job.stamp();
        let mut made_after = None;
        let mut freshness =
            if job.request.renew { Freshness::SinceRequest } else { Freshness::Any };
        let mut pauses = Backoff::between(Duration::from_millis(20), Duration::from_millis(250));
        // Should there be no link, we will want to call.
        tries.expect(Call::Token);
        let mut waited = LeaseWait::none(&self.metrics);
        loop {
            job.still_ours()?;
            let claimed = Instant::now();
            match self.cache.claim(keys, &stamp, &freshness).await {
                Ok(Claim::Link(session)) => {
                    let session = Arc::new(session);
                    return Ok(Obtained { session, reused: true, made_after });
                }
                Ok(Claim::Lease(lease)) => {
                    waited.end();
                    // Should we be too slow and somebody else go ahead, theirs is the link that
                    // counts.
                    freshness = match job.request.renew {
                        true => Freshness::NewerThan(lease.newest().clone()),
                        false => Freshness::Any,
                    };
                    if let Some(session) = self.make_and_store(job, &lease, tries).await? {
                        return Ok(Obtained::new(session));
                    }
                }
                Ok(Claim::Held { newest }) => {
                    // Whatever comes after this link is new enough for us.
                    if freshness == Freshness::SinceRequest {
                        freshness = Freshness::NewerThan(newest);
                    }
                    made_after = Some(claimed);
                    waited.begin();
                    tries.forgo();
                    self.pause(job, pauses.next_delay()).await?;
                }
                Err(unanswered) => {
                    waited.end();
                    let made = self.make_without_cache(job, tries, unanswered).await?;
                    if let Some(session) = made {
                        return Ok(Obtained::new(session));
                    }
                }
            }
        }
    }

    /// Makes a session under the lease. `None` where the lease was lost to somebody else meanwhile.
    async fn make_and_store(
        &self,
        job: &Job<'_>,
        lease: &Lease,
        tries: &mut Tries<'_>,
    ) -> Result<Option<Session>, Failure> {
        let request_id = job.request_id.short();
        let made = {
            let make = pin!(self.make(job, Some(lease), tries));
            beside(make, pin!(lease.keep_alive())).await
        };
        match made {
            Ok(session) => match lease.store(&session).await {
                Ok(StoreOutcome::Stored) => Ok(Some(session)),
                Ok(StoreOutcome::Fenced) => {
                    tracing::debug!(request_id, "the lease was lost; the successor's link counts");
                    Ok(None)
                }
                // Not stored, the link is good all the same.
                Err(why) => {
                    tracing::debug!(request_id, %why, "the link could not be stored");
                    Ok(Some(session))
                }
            },
            Err(NotMade::Outdated) => Ok(None),
            Err(NotMade::Failed { failure, bad_token }) => {
                lease.release(bad_token).await;
                Err(failure)
            }
        }
    }

    /// Makes a session without a lease: Redis did not answer the claim. `None` where that took so long
    /// that Redis is back.
    async fn make_without_cache(
        &self,
        job: &Job<'_>,
        tries: &mut Tries<'_>,
        unanswered: UnansweredClaim,
    ) -> Result<Option<Session>, Failure> {
        let request_id = job.request_id.short();
        tracing::debug!(request_id, error = %unanswered.error(), "serving a request without the cache");
        let session = match self.make(job, None, tries).await {
            Ok(session) => session,
            Err(NotMade::Outdated) => return Ok(None),
            Err(NotMade::Failed { failure, .. }) => return Err(failure),
        };
        // Redis may be back by now. If not, this is made up for when it is.
        let overwrite = if job.request.renew { Overwrite::Any } else { Overwrite::Never };
        let _ = unanswered.store(&session, overwrite).await;
        Ok(Some(session))
    }

    /// Asks the platform for a token, unless an earlier try has left one, and with it for a session.
    async fn make(
        &self,
        job: &Job<'_>,
        lease: Option<&Lease>,
        tries: &mut Tries<'_>,
    ) -> Result<Session, NotMade> {
        let mut token = match lease.and_then(Lease::stored_token) {
            Some(token) => token,
            None => self.token(job, lease, tries).await?,
        };
        let mut renewed = false;
        loop {
            let started = match lease {
                // Kept for a successor, should we die now; nobody waits for that.
                Some(held) => {
                    let call = pin!(self.start_session(job, &token, lease, tries));
                    beside(call, pin!(held.save_token(&token))).await
                }
                None => self.start_session(job, &token, lease, tries).await,
            };
            match started {
                Ok(id) => return Ok(Session { token, id }),
                Err(Stopped::Call(error @ CallError::Unauthorized)) if !renewed => {
                    renewed = true;
                    self.metrics.retried(Call::Session, error.label());
                    token = self.token(job, lease, tries).await?;
                }
                // It was held for so long that its token is of little use by now.
                Err(Stopped::Stale) => token = self.token(job, lease, tries).await?,
                // That says nothing about the request. Each time a try has failed before, so that the
                // budget limits this.
                Err(Stopped::Used) => {
                    renewed = true;
                    self.metrics.retried(Call::Session, CallError::Unauthorized.label());
                    token = self.token(job, lease, tries).await?;
                }
                Err(stopped) => return Err(stopped.into()),
            }
        }
    }

    /// Publishes the event that carries the link.
    async fn tell(
        &self,
        job: &Job<'_>,
        session: &Session,
        reused: bool,
        publisher: &Publisher,
    ) -> Result<(), Failure> {
        let url = handoff_url(&self.public_url, session.token.value.expose_secret(), &session.id);
        let body = EventBody::Ready {
            request_id: job.request_id.as_str(),
            user_id: &job.request.user_id,
            workflow_id: &job.request.workflow_id,
            session_id: &session.id,
            url: &url,
            expires_at: session.token.expires_at,
            reused,
        };
        let event = Event::new(&body, SystemTime::now());
        match publisher.publish_event(&event, job.correlation_id, job.span).await {
            Ok(()) => Ok(()),
            Err(PublishError::Disconnected) => Err(Failure::Interrupted),
            Err(error) => {
                Err(Failure::Transient(format!("the event could not be published: {error}")))
            }
        }
    }
}

impl Obtained {
    fn new(session: Session) -> Self {
        let made_after = Some(Instant::now());
        Self { session: Arc::new(session), reused: false, made_after }
    }
}

/// The time that a request waits for somebody else's lease, however the waiting ends.
struct LeaseWait<'a> {
    metrics: &'a Metrics,
    since: Option<Instant>,
}

impl<'a> LeaseWait<'a> {
    fn none(metrics: &'a Metrics) -> Self {
        Self { metrics, since: None }
    }

    fn begin(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    fn end(&mut self) {
        if let Some(since) = self.since.take() {
            self.metrics.lease_waited(since.elapsed());
        }
    }
}

impl Drop for LeaseWait<'_> {
    fn drop(&mut self) {
        self.end();
    }
}

/// Runs something beside the work, for as long as the work takes. Both are pinned where they are made:
/// handed over as they are, they would take their room twice.
async fn beside<T>(
    work: Pin<&mut impl Future<Output = T>>,
    other: Pin<&mut impl Future<Output = ()>>,
) -> T {
    match select(work, other).await {
        Either::Left((done, _)) => done,
        Either::Right(((), work)) => work.await,
    }
}
