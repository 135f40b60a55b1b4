//! What a replica may do on its own, while the bucket that all share cannot be reached.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::BucketGrant;
use crate::config::RateLimit;

/// What a replica on its own may make up for after having been held up.
const CATCH_UP: Duration = Duration::from_millis(20);

/// How old a count of the replicas may be before another is asked for, how old it may be at all, and
/// how long it is waited for.
const RECOUNT: Duration = Duration::from_secs(1);
pub(super) const COUNT_LIMIT: Duration = Duration::from_secs(3);
const COUNT_WAIT: Duration = Duration::from_millis(20);

/// How many replicas there are, by the last count: at least this one.
#[derive(Debug, Default)]
pub struct ReplicaCount {
    count: Mutex<Count>,
    wanted: Notify,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    replicas: u32,
    at: Option<Instant>,
    /// Since when a new count is waited for.
    wanted_since: Option<Instant>,
}

impl ReplicaCount {
    /// There are so many now.
    pub fn set(&self, replicas: u32) {
        *self.count() = Count { replicas, at: Some(Instant::now()), wanted_since: None };
    }

    /// Waits until somebody wants to know.
    pub async fn count_requested(&self) {
        self.wanted.notified().await;
    }

    /// `None` while it is worth waiting for a new count.
    fn get(&self, now: Instant) -> Option<u32> {
        let mut count = self.count();
        let age = count.at.map(|at| now - at);
        if age.is_none_or(|age| age > RECOUNT) {
            count.wanted_since.get_or_insert(now);
            self.wanted.notify_one();
        }
        let in_vain = count.wanted_since.is_some_and(|since| now - since > COUNT_LIMIT);
        let known = in_vain || age.is_some_and(|age| age <= COUNT_LIMIT);
        known.then_some(count.replicas.max(1))
    }

    fn count(&self) -> MutexGuard<'_, Count> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one replica may do on its own.
pub(super) struct LocalShare {
    /// All replicas together.
    every: Duration,
    replicas: Arc<ReplicaCount>,
    /// When the next call may be made. `None`: not on its own yet. It then begins with nothing, since
    /// what there was may have been used up together.
    next: Option<Instant>,
}

impl LocalShare {
    pub(super) fn new(limit: RateLimit, replicas: Arc<ReplicaCount>) -> Self {
        Self { every: limit.per / limit.count, replicas, next: None }
    }

    /// It is not on its own any more.
    pub(super) fn end(&mut self) {
        self.next = None;
    }

    pub(super) fn take(&mut self, wanted: u32, now: Instant) -> BucketGrant {
        let Some(replicas) = self.replicas.get(now) else {
            return BucketGrant { calls: 0, wait: COUNT_WAIT };
        };
        let every = (self.every * replicas).max(Duration::from_nanos(1));
        let mut next = self.next.unwrap_or(now + every).max(now - CATCH_UP);
        let mut calls = 0;
        while calls < wanted && next <= now {
            calls += 1;
            next += every;
        }
        self.next = Some(next);
        BucketGrant { calls, wait: next.saturating_duration_since(now) }
    }
}
