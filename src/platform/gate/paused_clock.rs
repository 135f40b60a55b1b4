//! For how long calls were held back, and why.

use tokio::time::Instant;

use super::breaker::Cause;
use crate::telemetry::metrics::PausedFor;

/// The time so far. Looked at before every change, so that what held then held since the last look.
#[derive(Default)]
pub(super) struct Pauses {
    looked: Option<Instant>,
    so_far: PausedFor,
}

impl Pauses {
    /// Adds the time since the last look. `later_until` ends by itself; `shut` goes before it.
    pub(super) fn look(
        &mut self,
        shut: Option<Cause>,
        later_until: Option<Instant>,
        now: Instant,
    ) -> PausedFor {
        let since = self.looked.replace(now).unwrap_or(now);
        let so_far = &mut self.so_far;
        match (shut, later_until) {
            (Some(Cause::Down(_)), _) => so_far.down += now - since,
            (Some(Cause::Refused), _) => so_far.refused += now - since,
            (None, Some(until)) => so_far.asked += until.min(now).saturating_duration_since(since),
            (None, None) => {}
        }
        *so_far
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::session::Call;

    #[test]
    fn each_moment_counts_for_the_reason_that_held_then() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let (down, asked) = (Some(Cause::Down(Call::Token)), Some(at(12)));
        let mut pauses = Pauses::default();
        pauses.look(None, None, at(0));
        pauses.look(None, None, at(1));
        pauses.look(down, None, at(3));
        pauses.look(Some(Cause::Refused), None, at(6));
        pauses.look(down, asked, at(7));
        pauses.look(None, asked, at(9));
        let so_far = pauses.look(None, asked, at(20));
        assert_eq!(pauses.look(None, asked, at(30)), so_far, "it has ended by itself");
        let seconds = Duration::from_secs;
        let expected = PausedFor { down: seconds(3), refused: seconds(3), asked: seconds(5) };
        assert_eq!(so_far, expected);
    }
}
