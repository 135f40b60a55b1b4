//! A replica's share of the limit, used while the shared bucket cannot be reached.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use crate::config::RateLimit;

/// How much time a delayed replica may catch up on.
const CATCH_UP: Duration = Duration::from_millis(20);

/// Age of the replica count after which a new one is requested.
const RECOUNT_AGE: Duration = Duration::from_secs(1);
/// Oldest count that is used, and the longest wait for a new one. After that wait, the old count serves.
pub(super) const COUNT_LIMIT: Duration = Duration::from_secs(3);
/// How often to look whether a new count has arrived.
const COUNT_POLL: Duration = Duration::from_millis(20);

/// Permits granted now, by the shared bucket or from the local share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BucketGrant {
    /// Calls that may be made now.
    pub(crate) calls: u32,
    /// When to ask again if fewer were granted than wanted. If all were, when calls that other replicas left unused may
    /// be granted, if there are any.
    pub(crate) wait: Duration,
    /// This replica's turn at the shared bucket, if it has one.
    pub(crate) turn: Option<Turn>,
}

/// A replica's place among those that wait for the shared bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    /// When the bucket will have the calls, in microseconds by its own clock.
    pub(crate) at: u64,
    pub(crate) calls: u32,
}

/// The number of replicas at the last count, at least one.
#[derive(Debug, Default)]
pub(crate) struct ReplicaCount {
    count: Mutex<Count>,
    requested: Notify,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    replicas: u32,
    at: Option<Instant>,
    /// When the new count that has not arrived yet was requested.
    requested_at: Option<Instant>,
}

impl ReplicaCount {
    pub(crate) fn set(&self, replicas: u32) {
        *self.count.lock() = Count { replicas, at: Some(Instant::now()), requested_at: None };
    }

    /// Waits until a new count is requested.
    pub(crate) async fn count_requested(&self) {
        self.requested.notified().await;
    }

    /// Returns the count, or `None` while a newer one is worth waiting for.
    ///
    /// Requests a new count if this one is old.
    fn get_or_request(&self, now: Instant) -> Option<u32> {
        let mut count = self.count.lock();
        let age = count.at.map(|at| now - at);
        if age.is_none_or(|age| age > RECOUNT_AGE) {
            count.requested_at.get_or_insert(now);
            self.requested.notify_one();
        }
        let waited_too_long = count.requested_at.is_some_and(|at| now - at > COUNT_LIMIT);
        let usable = waited_too_long || age.is_some_and(|age| age <= COUNT_LIMIT);
        usable.then_some(count.replicas.max(1))
    }
}

/// What one replica may call without the shared bucket.
pub(super) struct LocalShare {
    /// Interval between two calls of all replicas together.
    interval: Duration,
    replicas: Arc<ReplicaCount>,
    /// When the next call may be made, or `None` while the shared bucket is in use. The share starts
    /// empty, because the shared bucket may have been used up.
    next: Option<Instant>,
}

impl LocalShare {
    pub(super) fn new(limit: RateLimit, replicas: Arc<ReplicaCount>) -> Self {
        Self { interval: limit.per / limit.count, replicas, next: None }
    }

    /// Records that the shared bucket is in use again.
    pub(super) fn reset(&mut self) {
        self.next = None;
    }

    pub(super) fn take(&mut self, wanted: u32, now: Instant) -> BucketGrant {
        let Some(replicas) = self.replicas.get_or_request(now) else {
            return BucketGrant { calls: 0, wait: COUNT_POLL, turn: None };
        };
        let interval = (self.interval * replicas).max(Duration::from_nanos(1));
        let mut next = self.next.unwrap_or(now + interval).max(now - CATCH_UP);
        let mut calls = 0;
        while calls < wanted && next <= now {
            calls += 1;
            next += interval;
        }
        self.next = Some(next);
        BucketGrant { calls, wait: next.saturating_duration_since(now), turn: None }
    }
}
