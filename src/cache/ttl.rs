//! How long leases and stored values live.

use std::time::{Duration, SystemTime};

use crate::units::millis;

/// How long a lease outlives a killed holder. A live holder extends it every 2 s.
pub(super) const LEASE_TTL: Duration = Duration::from_secs(6);

/// Milliseconds from now until `end`; zero once it has passed.
pub(super) fn remaining_ms(end: SystemTime) -> u64 {
    millis(end.duration_since(SystemTime::now()).unwrap_or_default())
}
