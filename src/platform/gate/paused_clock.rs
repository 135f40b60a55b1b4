//! How long calls were paused, by cause.

use tokio::time::Instant;

use super::decision::Cause;
use crate::telemetry::metrics::PausedFor;

/// Adds up paused time. Must be advanced before every change of the cause.
#[derive(Default)]
pub(super) struct PausedClock {
    advanced_at: Option<Instant>,
    total: PausedFor,
}

impl PausedClock {
    /// Adds the time since the last call to this cause, and returns the totals.
    ///
    /// An open breaker takes precedence over a `Retry-After`, which ends on its own.
    pub(super) fn advance(
        &mut self,
        open_cause: Option<Cause>,
        retry_after_until: Option<Instant>,
        now: Instant,
    ) -> PausedFor {
        let since = self.advanced_at.replace(now).unwrap_or(now);
        let total = &mut self.total;
        match (open_cause, retry_after_until) {
            (Some(Cause::Down(_)), _) => total.down += now - since,
            (Some(Cause::Refused(_)), _) => total.refused += now - since,
            (None, Some(until)) => total.asked += until.min(now).saturating_duration_since(since),
            (None, None) => {}
        }
        *total
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::session::Call;

    #[test]
    fn time_counts_for_the_cause_that_held() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let down = Some(Cause::Down(Call::Token));
        let retry_after = Some(at(12));
        let mut clock = PausedClock::default();
        clock.advance(None, None, at(0));
        clock.advance(None, None, at(1));
        clock.advance(down, None, at(3));
        clock.advance(Some(Cause::Refused(Call::Token)), None, at(6));
        clock.advance(down, retry_after, at(7));
        clock.advance(None, retry_after, at(9));
        let total = clock.advance(None, retry_after, at(20));
        assert_eq!(clock.advance(None, retry_after, at(30)), total, "Retry-After ended at 12 s");
        let seconds = Duration::from_secs;
        let expected = PausedFor { down: seconds(3), refused: seconds(3), asked: seconds(5) };
        assert_eq!(total, expected);
    }
}
