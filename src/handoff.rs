//! The use case: one request in, one link out.
//!
//! The way of a request, top to bottom: [`Handoff::serve`] gets a session and tells of it;
//! [`Handoff::session`] lets one of several requests for the same person do the work;
//! [`Handoff::claim_or_make`] takes the link from Redis or the lease to make one;
//! [`Handoff::make`] asks the platform for a token and, with it, a session.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use futures_util::future::{Either, select};
use secrecy::ExposeSecret;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::{
    broker::{PublishError, Publisher},
    cache::{Cache, CacheError, Claim, Keys, Lease, Stamp, Stored, Want},
    flights::{Boarded, Flights},
    message::{Event, EventBody, Request, RequestId, TraceContext},
    platform::{CallError, Platform, SessionCall, handoff_url},
    retry::{Delays, RetryPolicy, RetrySchedule},
    session::{Session, Token},
};

/// A request on its way through the worker.
#[derive(Debug)]
pub struct Job<'a> {
    /// What is asked for.
    pub request: &'a Request,
    /// Under which id.
    pub request_id: &'a RequestId,
    /// What its event carries as `correlation_id`.
    pub correlation_id: &'a str,
    /// The trace it belongs to.
    pub trace: &'a TraceContext,
}

/// A request was served: its event is confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// Whether the link was made for another request, or an earlier try.
    pub reused: bool,
}

/// Why a request was not served this time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It may be served later. Says what happened; holds no secret.
    Transient(String),
    /// It never will be. Says what happened; holds no secret.
    Rejected(String),
    /// Its `expiresAt` has passed: nobody waits any more.
    Expired,
    /// The worker is shutting down, or has lost RabbitMQ: somebody else shall have it.
    Interrupted,
}

/// Everything that serving a request takes.
pub struct Handoff {
    platform: Platform,
    cache: Cache,
    flights: Flights<Result<Obtained, Failure>>,
    retry: RetryPolicy,
    public_url: Url,
    draining: CancellationToken,
}

/// A session, and whether it was there before.
#[derive(Clone, Debug)]
struct Obtained {
    session: Arc<Session>,
    reused: bool,
    /// A moment at which there was no such link yet. `None`: it was there when we came.
    made_after: Option<Instant>,
}

impl Handoff {
    /// `draining` says that no more time is to be spent waiting.
    pub fn new(
        platform: Platform,
        cache: Cache,
        retry: RetryPolicy,
        public_url: Url,
        draining: CancellationToken,
    ) -> Self {
        Self { platform, cache, flights: Flights::new(), retry, public_url, draining }
    }

    /// Serves one request: when this returns well, its event is confirmed.
    ///
    /// # Errors
    /// The request was not served; [`Failure`] says what that means for it.
    pub async fn serve(&self, job: &Job<'_>, publisher: &Publisher) -> Result<Served, Failure> {
        let keys = self.cache.keys(&job.request.user_id, &job.request.workflow_id);
        let Obtained { session, reused, .. } = self.session(job, &keys).await?;
        let told = self.tell(job, &session, reused, publisher);
        match job.request.renew && reused {
            // Should this request come again, it shall find that this link was made for it, too.
            true => beside(told, self.cache.sign(&keys, &job.stamp())).await?,
            false => told.await?,
        }
        Ok(Served { reused })
    }

    /// Gets the person's session, together with whoever else wants it at this moment.
    async fn session(&self, job: &Job<'_>, keys: &Keys) -> Result<Obtained, Failure> {
        loop {
            job.still_wanted()?;
            let boarded = Instant::now();
            match self.flights.board(&keys.link) {
                Boarded::Pilot(flight) => {
                    let obtained = self.claim_or_make(job, keys).await;
                    flight.land(obtained.clone());
                    return obtained;
                }
                Boarded::Passenger(flight) => match job.unless_expired(flight.landing()).await? {
                    // Who asks for a new session takes one made meanwhile, but none made before.
                    Some(Ok(obtained))
                        if !job.request.renew || obtained.made_after >= Some(boarded) =>
                    {
                        return Ok(Obtained { reused: true, ..obtained });
                    }
                    // The platform is in trouble: asking it once more for each of us would not help.
                    Some(Err(failure @ Failure::Transient(_))) => return Err(failure),
                    // What went wrong was the other request's own affair.
                    _ => {}
                },
            }
        }
    }

    /// Takes the link from Redis, or the lease to make one. Only one worker at a time has that.
    async fn claim_or_make(&self, job: &Job<'_>, keys: &Keys) -> Result<Obtained, Failure> {
        let stamp = job.stamp();
        let mut made_after = None;
        let mut want = if job.request.renew { Want::OwnOrNewer } else { Want::Any };
        let mut pauses = Delays::between(Duration::from_millis(20), Duration::from_millis(250));
        loop {
            job.still_wanted()?;
            let claimed = Instant::now();
            match self.cache.claim(keys, &stamp, &want).await {
                Ok(Claim::Link(session)) => {
                    let session = Arc::new(session);
                    return Ok(Obtained { session, reused: true, made_after });
                }
                Ok(Claim::Lease(lease)) => {
                    // Should we be too slow and somebody else go ahead, theirs is the link that counts.
                    want = if job.request.renew {
                        Want::OtherThan(lease.newest().clone())
                    } else {
                        Want::Any
                    };
                    if let Some(session) = self.make_and_store(job, lease).await? {
                        return Ok(Obtained::new(session));
                    }
                }
                Ok(Claim::Held { newest }) => {
                    // Whatever comes after this link is new enough for us.
                    if want == Want::OwnOrNewer {
                        want = Want::OtherThan(newest);
                    }
                    made_after = Some(claimed);
                    self.pause(job, pauses.next()).await?;
                }
                Err(error) => return self.make_without_cache(job, keys, &stamp, &error).await,
            }
        }
    }

    /// Makes a session under the lease. `None` where the lease was lost to somebody else meanwhile.
    async fn make_and_store(
        &self,
        job: &Job<'_>,
        lease: Lease,
    ) -> Result<Option<Session>, Failure> {
        let made = beside(self.make(job, Some(&lease)), lease.keep_alive()).await;
        match made {
            Ok(session) => match lease.store(&session).await {
                Ok(Stored::Fenced) => Ok(None),
                // Not stored, the link is good all the same.
                Ok(Stored::Yes) | Err(_) => Ok(Some(session)),
            },
            Err(NotMade { failure, bad_token }) => {
                lease.release(bad_token).await;
                Err(failure)
            }
        }
    }

    async fn make_without_cache(
        &self,
        job: &Job<'_>,
        keys: &Keys,
        stamp: &Stamp,
        error: &CacheError,
    ) -> Result<Obtained, Failure> {
        tracing::debug!(%error, "serving a request without the cache");
        let session = self.make(job, None).await.map_err(|not_made| not_made.failure)?;
        // Redis may be back by now; if not, the next request makes its own session.
        let _ = self.cache.store_unclaimed(keys, stamp, &session).await;
        Ok(Obtained::new(session))
    }

    /// Asks the platform for a token and, with it, a session.
    async fn make(&self, job: &Job<'_>, lease: Option<&Lease>) -> Result<Session, NotMade> {
        let mut schedule = self.retry.start();
        let mut token = match lease.and_then(Lease::stored_token) {
            Some(token) => token,
            None => self.token(job, &mut schedule).await?,
        };
        let mut renewed = false;
        loop {
            let call = self.start_session(job, &token, &mut schedule);
            let started = match lease {
                // Kept for a successor, should we die now; nobody waits for that.
                Some(lease) => beside(call, lease.save_token(&token)).await,
                None => call.await,
            };
            match started {
                Ok(id) => return Ok(Session { token, id }),
                Err(Stopped::Call(CallError::Unauthorized)) if !renewed => {
                    renewed = true;
                    token = self.token(job, &mut schedule).await?;
                }
                Err(stopped) => return Err(stopped.into()),
            }
        }
    }

    async fn token(&self, job: &Job<'_>, schedule: &mut RetrySchedule) -> Result<Token, NotMade> {
        Ok(self.retrying(job, schedule, || self.platform.token(job.trace)).await?)
    }

    async fn start_session(
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
        match publisher.event(&event, job.correlation_id, job.trace).await {
            Ok(()) => Ok(()),
            Err(PublishError::Disconnected) => Err(Failure::Interrupted),
            Err(error) => {
                Err(Failure::Transient(format!("the event could not be published: {error}")))
            }
        }
    }

    /// Waits, unless the worker shuts down or nobody waits for the request any more.
    async fn pause(&self, job: &Job<'_>, delay: Duration) -> Result<(), Failure> {
        tokio::select! {
            waited = job.unless_expired(sleep(delay)) => waited,
            () = self.draining.cancelled() => Err(Failure::Interrupted),
        }
    }
}

impl Obtained {
    fn new(session: Session) -> Self {
        let made_after = Some(Instant::now());
        Self { session: Arc::new(session), reused: false, made_after }
    }
}

impl Job<'_> {
    fn stamp(&self) -> Stamp {
        Stamp::of(self.request_id.as_str())
    }

    fn still_wanted(&self) -> Result<(), Failure> {
        match self.request.expires_at {
            Some(end) if SystemTime::now() >= end => Err(Failure::Expired),
            _ => Ok(()),
        }
    }

    /// Waits for something, but not beyond the time that somebody waits for us.
    async fn unless_expired<T>(&self, waiting: impl Future<Output = T>) -> Result<T, Failure> {
        let Some(end) = self.request.expires_at else { return Ok(waiting.await) };
        let left = end.duration_since(SystemTime::now()).unwrap_or_default();
        tokio::time::timeout(left, waiting).await.map_err(|_| Failure::Expired)
    }
}

/// Why a call was given up.
enum Stopped {
    Call(CallError),
    Failure(Failure),
}

/// Why no session was made, and whether the token is to blame.
struct NotMade {
    failure: Failure,
    bad_token: bool,
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

/// Runs something beside the work, for as long as the work takes.
async fn beside<T>(work: impl Future<Output = T>, other: impl Future<Output = ()>) -> T {
    let (work, other) = (std::pin::pin!(work), std::pin::pin!(other));
    match select(work, other).await {
        Either::Left((done, _)) => done,
        Either::Right(((), work)) => work.await,
    }
}
