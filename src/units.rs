//! Unit conversions shared by log fields, Redis arguments and metrics.

use std::time::Duration;

/// Whole milliseconds of a duration, capped at `u64::MAX`.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
