//! The rate limit that all replicas share.
//!
//! Permits come from a token bucket that the replicas share; one task requests them for all waiting calls. Replicas that
//! find it empty take turns, so that each gets the same share. While the bucket cannot be reached, each replica keeps to
//! its own share of the limit. Session calls go before token calls: finishing some requests is better than starting them
//! all.

mod share;
#[cfg(test)]
mod tests;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, timeout_at},
};
use tokio_util::task::AbortOnDropHandle;

use self::share::LocalShare;
pub(crate) use self::share::{BucketGrant, ReplicaCount, Turn};
use crate::{config::RateLimit, session::Call};

/// A permit expires at this age, so that a permit of one window is not used in the next …
const MAX_PERMIT_LIFETIME: Duration = Duration::from_millis(500);
/// … but never so early that no call could use it. In between, it lives for half a window.
const MIN_PERMIT_LIFETIME: Duration = Duration::from_millis(25);
/// Longest wait for a turn. Many of the replicas that are ahead may have ended: their calls go to those that ask.
const MAX_TURN_WAIT: Duration = Duration::from_secs(5);
/// Longest wait while the shared bucket cannot be reached: it may be reachable again.
const MAX_SHARE_WAIT: Duration = Duration::from_secs(1);

/// The token bucket that all replicas share. Returns `None` while it cannot be reached.
pub(crate) type SharedBucket =
    Box<dyn Fn(BucketRequest) -> BoxFuture<'static, Option<BucketGrant>> + Send + Sync>;

/// What a replica asks of the shared bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BucketRequest {
    /// Takes up to this number of calls.
    Take { calls: u32, turn: Option<Turn> },
    /// Puts back calls that were not made.
    PutBack(u32),
}

/// Grants permits for calls, within the limit.
pub struct RateLimiter {
    queue: Arc<Queue>,
    _dispatcher: AbortOnDropHandle<()>,
}

struct Queue {
    permit_lifetime: Duration,
    waiters: Mutex<Waiters>,
    requested: Notify,
    returned: Notify,
}

/// Where and when a permit was granted.
#[derive(Clone, Copy)]
struct Grant {
    at: Instant,
    /// From the shared bucket, which gets it back if it is not used. A permit of the local share is never
    /// put into the shared bucket, which did not grant it.
    is_shared: bool,
}

/// Calls that wait for a permit. Each receives the grant of its permit.
#[derive(Default)]
struct Waiters {
    sessions: VecDeque<oneshot::Sender<Grant>>,
    /// Or for deeplinks.
    tokens: VecDeque<oneshot::Sender<Grant>>,
    unused: Vec<Grant>,
    /// A call waits that came while no other did: it need not wait for the time to ask that was named to those before.
    is_first: bool,
}

/// A permit for one call: requested, then granted, then consumed or, if dropped, returned.
pub(super) struct RatePermit {
    queue: Arc<Queue>,
    call: Call,
    request: Option<oneshot::Receiver<Grant>>,
    grant: Option<Grant>,
}

impl RateLimiter {
    /// Starts the task that dispatches permits.
    pub(crate) fn new(limit: RateLimit, bucket: SharedBucket, replicas: Arc<ReplicaCount>) -> Self {
        let queue = Arc::new(Queue {
            permit_lifetime: MAX_PERMIT_LIFETIME.min(limit.per / 2).max(MIN_PERMIT_LIFETIME),
            waiters: Mutex::default(),
            requested: Notify::new(),
            returned: Notify::new(),
        });
        let share = LocalShare::new(limit, replicas);
        let dispatcher = tokio::spawn(dispatch(Arc::clone(&queue), bucket, share));
        Self { queue, _dispatcher: AbortOnDropHandle::new(dispatcher) }
    }

    /// Requests a permit; await [`RatePermit::granted`] before the call.
    pub(super) fn request(&self, call: Call) -> RatePermit {
        let queue = Arc::clone(&self.queue);
        let request = Some(queue.enqueue(call));
        RatePermit { queue, call, request, grant: None }
    }
}

impl RatePermit {
    /// Waits until the permit is granted; requests another if it has expired.
    pub(super) async fn granted(&mut self) {
        loop {
            if let Some(request) = &mut self.request {
                // The dispatcher answers every request. If it ever did not, calls would go unlimited
                // rather than wait indefinitely.
                let unlimited = |_| Grant { at: Instant::now(), is_shared: false };
                self.grant = Some(request.await.unwrap_or_else(unlimited));
                self.request = None;
            }
            if self.grant.is_some_and(|grant| self.queue.is_fresh(grant)) {
                return;
            }
            self.give_back();
            self.request = Some(self.queue.enqueue(self.call));
        }
    }

    /// Returns whether the permit is granted and has not expired.
    pub(super) fn is_granted(&self) -> bool {
        self.grant.is_some_and(|grant| self.queue.is_fresh(grant))
    }

    /// Uses the permit for a call.
    pub(super) fn consume(mut self) {
        self.grant = None;
        self.request = None;
    }

    fn give_back(&mut self) {
        let granted_late = self.request.take().and_then(|mut request| request.try_recv().ok());
        if let Some(grant) = self.grant.take().or(granted_late) {
            self.queue.waiters.lock().unused.push(grant);
            self.queue.requested.notify_one();
            self.queue.returned.notify_one();
        }
    }
}

impl Drop for RatePermit {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl Queue {
    fn is_fresh(&self, grant: Grant) -> bool {
        grant.at.elapsed() < self.permit_lifetime
    }

    /// Reissues unused permits that are still fresh. Returns how many permits go back to the shared
    /// bucket, and how many calls still wait.
    fn reissue(&self) -> (u32, u32) {
        let mut waiters = self.waiters.lock();
        let (fresh, expired): (Vec<_>, Vec<_>) = std::mem::take(&mut waiters.unused)
            .into_iter()
            .partition(|grant| self.is_fresh(*grant));
        waiters.grant(fresh);
        let unused = std::mem::take(&mut waiters.unused).into_iter().chain(expired);
        let remaining = unused.filter(|grant| grant.is_shared).count();
        (u32::try_from(remaining).unwrap_or(u32::MAX), waiters.remove_closed_and_count())
    }

    fn enqueue(&self, call: Call) -> oneshot::Receiver<Grant> {
        let (grant, request) = oneshot::channel();
        let mut waiters = self.waiters.lock();
        if waiters.sessions.iter().chain(&waiters.tokens).all(oneshot::Sender::is_closed) {
            waiters.is_first = true;
            self.returned.notify_one();
        }
        match call {
            Call::Session => waiters.sessions.push_back(grant),
            Call::Token | Call::Deeplink => waiters.tokens.push_back(grant),
        }
        self.requested.notify_one();
        request
    }
}

impl Waiters {
    fn remove_closed_and_count(&mut self) -> u32 {
        for queue in [&mut self.sessions, &mut self.tokens] {
            queue.retain(|grant| !grant.is_closed());
        }
        u32::try_from(self.sessions.len() + self.tokens.len()).unwrap_or(u32::MAX)
    }

    /// Grants permits to waiting calls, session calls first; the rest become unused permits.
    fn grant(&mut self, permits: impl IntoIterator<Item = Grant>) {
        for grant in permits {
            let mut waiters = std::iter::from_fn(|| {
                self.sessions.pop_front().or_else(|| self.tokens.pop_front())
            });
            if !waiters.any(|waiter| waiter.send(grant).is_ok()) {
                self.unused.push(grant);
            }
        }
    }
}

/// Dispatches permits to waiting calls. Never returns.
async fn dispatch(queue: Arc<Queue>, bucket: SharedBucket, mut share: LocalShare) {
    let mut ask_at = Instant::now();
    let mut more_at = ask_at;
    let mut turn = None;
    loop {
        let (remaining, wanted) = queue.reissue();
        if remaining > 0 {
            // If the bucket cannot be reached, they are lost, and fewer calls are made than allowed.
            let _ = bucket(BucketRequest::PutBack(remaining)).await;
        }
        if wanted == 0 {
            queue.requested.notified().await;
            continue;
        }
        if std::mem::take(&mut queue.waiters.lock().is_first) {
            ask_at = Instant::now();
        }
        // Permits returned meanwhile go to waiting calls at once, and a first call asks at once. A timer would add a millisecond to a time that has
        // passed.
        if Instant::now() < ask_at && timeout_at(ask_at, queue.returned.notified()).await.is_ok() {
            continue;
        }
        let answer = bucket(BucketRequest::Take { calls: wanted, turn: turn.take() }).await;
        let is_shared = answer.is_some();
        let granted = match answer {
            Some(granted) => {
                share.reset();
                granted
            }
            None => share.take(wanted, Instant::now()),
        };
        turn = granted.turn;
        let now = Instant::now();
        let permits = std::iter::repeat_n(Grant { at: now, is_shared }, granted.calls as usize);
        queue.waiters.lock().grant(permits);
        ask_at = now;
        if granted.calls < wanted {
            let longest = if is_shared { MAX_TURN_WAIT } else { MAX_SHARE_WAIT };
            ask_at += granted.wait.clamp(Duration::from_millis(1), longest);
            if more_at > now {
                ask_at = ask_at.min(more_at);
            }
        } else {
            more_at = now + granted.wait;
        }
    }
}
