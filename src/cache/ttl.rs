//! How long what the cache stores may live.

use std::time::{Duration, SystemTime};

use crate::units::millis;

/// How long a lease outlives a killed holder. A live holder extends it three times in this time.
pub(super) const LEASE_TTL: Duration = Duration::from_secs(6);

/// Milliseconds from now until `end`; zero once it has passed.
pub(super) fn remaining_ms(end: SystemTime) -> u64 {
    millis(end.duration_since(SystemTime::now()).unwrap_or_default())
}
