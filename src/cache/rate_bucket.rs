//! The calls that all replicas may make together: one bucket, which Redis' own clock fills.

use std::time::Duration;

use super::{Cache, CacheError, scripts};
use crate::config::RateLimit;

/// The bucket. It holds half the limit's number, at least one, and fills evenly. So a window of the
/// limit's length sees one and a half times the number, or twice where calls are made a little after
/// they were granted.
#[derive(Clone)]
pub struct RateBucket {
    cache: Cache,
    key: String,
    /// Time in which the bucket gains one call.
    every: Duration,
    /// Calls it holds when it is full.
    most: u32,
}

impl RateBucket {
    pub(super) fn new(cache: Cache, limit: RateLimit) -> Self {
        let key = format!("{}:{{calls}}:rate", cache.0.prefix);
        let every = limit.per.div_f64(limit.count.into());
        Self { cache, key, every, most: (limit.count / 2).max(1) }
    }

    /// Takes up to so many calls out of the bucket; a negative number puts calls back that were not
    /// made. Returns how many it got, and the time until there is another.
    ///
    /// # Errors
    /// When Redis is away.
    pub async fn take(&self, wanted: i64) -> Result<(u32, Duration), CacheError> {
        let mut script = scripts::TAKE_CALLS.key(&self.key);
        // Rounded up, lest the long run exceed the limit.
        let every = self.every.as_nanos().div_ceil(1_000).max(1);
        script.arg(u64::try_from(every).unwrap_or(u64::MAX)).arg(self.most).arg(wanted);
        let (granted, wait) = self.cache.run::<(i64, u64)>(&script).await?;
        Ok((u32::try_from(granted).unwrap_or(0), Duration::from_micros(wait)))
    }
}
