//! The limit that all replicas keep together.
//!
//! Leave for a call comes from a bucket that the replicas share, asked by one task for all that wait.
//! While the bucket cannot be reached, each replica keeps to its own share. Who has a token goes before
//! who wants one: better some people served than all half-way.

mod share;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use self::share::LocalShare;
pub use self::share::ReplicaCount;
use crate::{config::RateLimit, session::Call};

/// Leave that is older is asked for anew, so that what was granted in one window is not used in the
/// next. It is at most half of the limit's window, but never too short to be used at all.
const FRESH: Duration = Duration::from_millis(500);
const LEAST_FRESH: Duration = Duration::from_millis(25);
/// Longest time until the shared bucket is asked again: it may be back, or hold more than it said.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What the shared bucket gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketGrant {
    /// Calls that may be made now.
    pub calls: u32,
    /// Time until there is leave for the next.
    pub wait: Duration,
}

/// The bucket that all replicas share: grants up to so many calls, takes them back where the number is
/// negative. `None` while it cannot be reached.
pub type SharedBucket = Box<dyn Fn(i64) -> BoxFuture<'static, Option<BucketGrant>> + Send + Sync>;

/// Gives leave for calls, within the limit.
pub struct RateLimiter {
    queue: Arc<Queue>,
    _dispatcher: AbortOnDropHandle<()>,
}

struct Queue {
    /// How old leave may be when it is used.
    fresh: Duration,
    waiting: Mutex<Waiting>,
    asked: Notify,
    returned: Notify,
}

#[derive(Default)]
struct Waiting {
    /// In the order they are served: those that have a token first.
    sessions: VecDeque<oneshot::Sender<Instant>>,
    tokens: VecDeque<oneshot::Sender<Instant>>,
    /// Leave that was not used, by when it was granted.
    unused: Vec<Instant>,
}

/// Leave for one call: asked for, granted, and then used, or else given back.
pub(super) struct RatePermit {
    queue: Arc<Queue>,
    call: Call,
    asked: Option<oneshot::Receiver<Instant>>,
    granted: Option<Instant>,
}

impl RateLimiter {
    /// Starts to serve those who will ask.
    pub fn new(limit: RateLimit, shared: SharedBucket, replicas: Arc<ReplicaCount>) -> Self {
        let queue = Arc::new(Queue::new(limit));
        let share = LocalShare::new(limit, replicas);
        let dispatcher = tokio::spawn(serve(Arc::clone(&queue), shared, share));
        Self { queue, _dispatcher: AbortOnDropHandle::new(dispatcher) }
    }

    /// Asks for leave.
    pub(super) fn ask(&self, call: Call) -> RatePermit {
        RatePermit { queue: Arc::clone(&self.queue), call, asked: None, granted: None }.queue()
    }
}

impl RatePermit {
    fn queue(mut self) -> Self {
        self.asked = Some(self.queue.queue(self.call));
        self
    }

    /// Waits until leave is granted.
    pub(super) async fn granted(&mut self) {
        loop {
            if let Some(asked) = &mut self.asked {
                // Whoever waits is answered; should that ever fail, nobody limits.
                self.granted = Some(asked.await.unwrap_or_else(|_| Instant::now()));
                self.asked = None;
            }
            match self.granted.is_some_and(|granted| self.queue.is_fresh(granted)) {
                true => return,
                false => {
                    self.give_back();
                    self.asked = Some(self.queue.queue(self.call));
                }
            }
        }
    }

    /// The call is made.
    pub(super) fn used(mut self) {
        self.granted = None;
        self.asked = None;
    }

    fn give_back(&mut self) {
        let late = self.asked.take().and_then(|mut asked| asked.try_recv().ok());
        if let Some(granted) = self.granted.take().or(late) {
            self.queue.waiting().unused.push(granted);
            self.queue.asked.notify_one();
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
    fn new(limit: RateLimit) -> Self {
        let fresh = FRESH.min(limit.per / 2).max(LEAST_FRESH);
        let (asked, returned) = (Notify::new(), Notify::new());
        Self { fresh, waiting: Mutex::default(), asked, returned }
    }

    fn is_fresh(&self, granted: Instant) -> bool {
        granted.elapsed() < self.fresh
    }

    /// Hands on what was not used and is still fresh. Returns how much is left over, and how many wait.
    fn hand_on(&self) -> (usize, u32) {
        let mut waiting = self.waiting();
        let (fresh, old): (Vec<_>, Vec<_>) =
            std::mem::take(&mut waiting.unused).into_iter().partition(|at| self.is_fresh(*at));
        waiting.grant(fresh);
        let left_over = std::mem::take(&mut waiting.unused).len() + old.len();
        (left_over, waiting.count())
    }

    fn queue(&self, call: Call) -> oneshot::Receiver<Instant> {
        let (grant, asked) = oneshot::channel();
        let mut waiting = self.waiting();
        match call {
            Call::Session => waiting.sessions.push_back(grant),
            Call::Token => waiting.tokens.push_back(grant),
        }
        self.asked.notify_one();
        asked
    }

    /// Whole after every step, so a panic elsewhere does not spoil it.
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// How many wait: those who have gone are forgotten.
    fn count(&mut self) -> u32 {
        for queue in [&mut self.sessions, &mut self.tokens] {
            queue.retain(|grant| !grant.is_closed());
        }
        u32::try_from(self.sessions.len() + self.tokens.len()).unwrap_or(u32::MAX)
    }

    /// Grants leave to those who wait; what is left over is unused.
    fn grant(&mut self, permits: impl IntoIterator<Item = Instant>) {
        for granted in permits {
            let mut waiting = std::iter::from_fn(|| {
                self.sessions.pop_front().or_else(|| self.tokens.pop_front())
            });
            if !waiting.any(|next| next.send(granted).is_ok()) {
                self.unused.push(granted);
            }
        }
    }
}

/// Serves those who wait. Never ends.
async fn serve(queue: Arc<Queue>, shared: SharedBucket, mut share: LocalShare) {
    loop {
        let (left_over, wanted) = queue.hand_on();
        if left_over > 0 {
            // Lost if it cannot be reached, and then fewer calls are made than might be.
            let _ = shared(-i64::try_from(left_over).unwrap_or(i64::MAX)).await;
        }
        if wanted == 0 {
            queue.asked.notified().await;
            continue;
        }
        let granted = match shared(wanted.into()).await {
            Some(granted) => {
                share.end();
                granted
            }
            None => share.take(wanted, Instant::now()),
        };
        queue.waiting().grant(std::iter::repeat_n(Instant::now(), granted.calls as usize));
        if granted.calls < wanted {
            let pause = granted.wait.clamp(Duration::from_millis(1), LONGEST_PAUSE);
            // What is given back meanwhile is for those who wait.
            let _ = timeout(pause, queue.returned.notified()).await;
        }
    }
}

#[cfg(test)]
mod tests;
