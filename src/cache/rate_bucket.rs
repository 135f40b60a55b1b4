//! The token bucket for platform calls that all replicas share, filled by Redis' own clock.

use std::time::Duration;

use super::{error::CacheError, handle::Cache, scripts};
use crate::config::RateLimit;

/// A replica's turn takes at least the calls of this much time, so that a high limit costs Redis no script for each.
const TURN: Duration = Duration::from_millis(10);
/// How long the calls of a turn are kept for a replica that is late. No more than half of what fills the bucket.
const MAX_KEPT: Duration = Duration::from_millis(500);

/// A token bucket that holds half the limit's count, at least one, and fills evenly.
///
/// A window of the limit's length therefore sees at most one and a half times the count, or twice the
/// count where calls are made a little after they were granted.
///
/// Replicas that find it empty wait in line: each has a turn, the time at which the bucket will have a call for it.
/// The line only orders replicas. The bucket alone grants calls, also to release 0.1, which knows no line.
#[derive(Clone)]
pub(crate) struct RateBucket {
    cache: Cache,
    key: String,
    line: String,
    shape: BucketShape,
}

/// The constants of a bucket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BucketShape {
    /// How long the bucket takes to gain one call, in microseconds.
    pub(crate) refill_micros: u64,
    pub(crate) capacity: u32,
    /// The most calls of a turn.
    pub(crate) turn_calls: u32,
    /// How long the calls of a turn are kept, in microseconds.
    pub(crate) kept_micros: u64,
}

/// The answer of the bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TakenCalls {
    pub(crate) granted: u32,
    /// When to ask again if fewer were granted than wanted. If all were, when calls that other replicas left unused may
    /// be granted, if there are any.
    pub(crate) wait: Duration,
    /// The caller's turn: a time in microseconds by Redis' clock, and a number of calls. To be passed on then.
    pub(crate) turn: (u64, u32),
}

impl BucketShape {
    pub(crate) fn of(limit: RateLimit) -> Self {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        // Rounded up, so that the long-term rate stays within the limit.
        let refill = limit.per.div_f64(limit.count.into()).as_nanos().div_ceil(1_000).max(1);
        let refill_micros = u64::try_from(refill).unwrap_or(u64::MAX);
        Self {
            refill_micros,
            capacity: (limit.count / 2).max(1),
            turn_calls: u32::try_from(micros(TURN) / refill_micros).unwrap_or(u32::MAX).max(1),
            kept_micros: micros(MAX_KEPT.min(limit.per / 4)).max(1),
        }
    }
}

impl RateBucket {
    pub(crate) fn new(cache: Cache, limit: RateLimit) -> Self {
        let key = |kind| format!("{}:{{calls}}:{kind}", cache.0.prefix);
        Self { key: key("rate"), line: key("line"), shape: BucketShape::of(limit), cache }
    }

    /// Takes up to `calls` out of the bucket, if it is this replica's turn or no other replica waits.
    ///
    /// After an error, the bucket may or may not have changed.
    pub(crate) async fn take(
        &self,
        calls: u32,
        turn: (u64, u32),
    ) -> Result<TakenCalls, CacheError> {
        self.run(calls.into(), turn).await
    }

    /// Puts back calls that were not made.
    pub(crate) async fn put_back(&self, calls: u32) -> Result<(), CacheError> {
        self.run(-i64::from(calls), (0, 0)).await.map(drop)
    }

    async fn run(&self, calls: i64, turn: (u64, u32)) -> Result<TakenCalls, CacheError> {
        let BucketShape { refill_micros, capacity, turn_calls, kept_micros } = self.shape;
        let mut script = scripts::TAKE_CALLS.call([&self.key, &self.line]);
        script.arg(refill_micros).arg(capacity).arg(calls).arg(turn_calls);
        script.arg(kept_micros).arg(turn.0).arg(turn.1);
        let (granted, wait_micros, at, of_turn) =
            self.cache.run::<(i64, u64, u64, u32)>(&self.key, &script).await?;
        Ok(TakenCalls {
            granted: u32::try_from(granted).unwrap_or(0),
            wait: Duration::from_micros(wait_micros),
            turn: (at, of_turn),
        })
    }
}
