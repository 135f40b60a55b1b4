//! Unit conversions shared by log fields, Redis arguments and metrics.

use std::time::{Duration, SystemTime};

/// Whole milliseconds of a duration, capped at `u64::MAX`.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Whole milliseconds since 1970; 0 for an earlier time.
pub(crate) fn unix_millis(time: SystemTime) -> u64 {
    millis(time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}
