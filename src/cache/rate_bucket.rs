//! The token bucket for platform calls that all replicas share, filled by Redis' own clock.

use std::time::Duration;

use super::{error::CacheError, handle::Cache, scripts};
use crate::config::RateLimit;

/// A token bucket that holds half the limit's count, at least one, and fills evenly.
///
/// A window of the limit's length therefore sees at most one and a half times the count, or twice the
/// count where calls are made a little after they were granted.
#[derive(Clone)]
pub(crate) struct RateBucket {
    cache: Cache,
    key: String,
    /// How long the bucket takes to gain one call, in microseconds.
    refill_micros: u64,
    capacity: u32,
}

impl RateBucket {
    pub(crate) fn new(cache: Cache, limit: RateLimit) -> Self {
        let key = format!("{}:{{calls}}:rate", cache.0.prefix);
        // Rounded up, so that the long-term rate stays within the limit.
        let refill_micros = limit.per.div_f64(limit.count.into()).as_nanos().div_ceil(1_000).max(1);
        Self {
            cache,
            key,
            refill_micros: u64::try_from(refill_micros).unwrap_or(u64::MAX),
            capacity: (limit.count / 2).max(1),
        }
    }

    /// Takes up to `calls` out of the bucket. A negative number returns calls that were not made.
    ///
    /// Returns how many calls were granted, and the time until the bucket gains another.
    /// After an error, the bucket may or may not have changed.
    pub(crate) async fn take(&self, calls: i64) -> Result<(u32, Duration), CacheError> {
        let mut script = scripts::TAKE_CALLS.key(&self.key);
        script.arg(self.refill_micros).arg(self.capacity).arg(calls);
        let (granted, wait_micros) = self.cache.run::<(i64, u64)>(&self.key, &script).await?;
        Ok((u32::try_from(granted).unwrap_or(0), Duration::from_micros(wait_micros)))
    }
}
