//! How long a delivery may stay with the worker while its request waits.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use super::log;
use crate::units::millis;

/// The limit for a request that RabbitMQ has redelivered often: connections, consumers or workers that
/// live only moments would bring it to the delivery limit.
const SHORT_HOLD: Duration = Duration::from_secs(1);
/// The shortest limit that a consumer time-out leads to.
const MIN_HOLD: Duration = Duration::from_secs(1);
/// How long a platform call may continue beyond the limit before its delivery is let go.
const CALL_MARGIN: Duration = Duration::from_millis(250);

/// The time after which a held request goes to the end of the queue, in milliseconds.
pub(super) struct HoldLimit(AtomicU64);

impl HoldLimit {
    pub(super) fn new(limit: Duration) -> Self {
        Self(AtomicU64::new(millis(limit)))
    }

    /// `was_returned_often`: RabbitMQ's count of redeliveries is near the delivery limit. A copy's count
    /// starts at zero.
    pub(super) fn get(&self, was_returned_often: bool) -> Duration {
        let limit = Duration::from_millis(self.0.load(Ordering::Relaxed));
        if was_returned_often { SHORT_HOLD.min(limit) } else { limit }
    }

    /// How long a delivery that was returned often may stay, the platform call it is in included.
    pub(super) fn with_call(&self) -> Duration {
        self.get(true) + CALL_MARGIN
    }

    /// Lowers the limit to half of RabbitMQ's consumer time-out, which has just closed the channel. The
    /// other half is for platform calls, and for a place among the requests in flight.
    pub(super) fn on_consumer_timeout(&self, timeout: Duration) {
        let limit = (timeout / 2).max(MIN_HOLD);
        let former = self.0.fetch_min(millis(limit), Ordering::Relaxed);
        if millis(limit) < former {
            log::hold_limit_lowered(timeout, limit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consumer_timeout_halves_the_limit_and_never_raises_it() {
        let limit = HoldLimit::new(Duration::from_secs(900));
        limit.on_consumer_timeout(Duration::from_secs(3_600));
        assert_eq!(limit.get(false), Duration::from_secs(900));
        limit.on_consumer_timeout(Duration::from_secs(300));
        assert_eq!(limit.get(false), Duration::from_secs(150));
        limit.on_consumer_timeout(Duration::from_secs(1_200));
        assert_eq!(limit.get(false), Duration::from_secs(150));
        assert_eq!(limit.get(true), SHORT_HOLD);
        limit.on_consumer_timeout(Duration::ZERO);
        assert_eq!(limit.get(false), MIN_HOLD);
    }
}
