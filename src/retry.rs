//! Delays between tries: backoff with jitter, retry budgets, refused logins, `Retry-After`, retry queues.

use std::time::{Duration, SystemTime};

use backoff::{ExponentialBackoff, ExponentialBackoffBuilder, backoff::Backoff as _};
use tokio::time::Instant;

/// Longest `Retry-After` that is honoured. After a longer one, the platform is tried at this time.
pub(crate) const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

const FIRST_DELAY: Duration = Duration::from_millis(200);
const MAX_DELAY: Duration = Duration::from_secs(5);

/// How long to wait after a refused login, at first and at most: one try a second can lock an account, fills the
/// server's log and looks like an attack.
const MIN_LOGIN_DELAY: Duration = Duration::from_secs(1);
const MAX_LOGIN_DELAY: Duration = Duration::from_secs(30);

/// The delay of a retry queue, and the text that names the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryDelay {
    /// The delay as the setting spells it, for example `1m`.
    pub(crate) name: String,
    /// How long the queue keeps a message: at least 1 ms, less than 2³² ms.
    pub(crate) duration: Duration,
}

/// The retries of one delivery, which all its calls share: backoff with jitter, within a time budget.
#[derive(Debug)]
pub(crate) struct RetrySchedule {
    deadline: Instant,
    backoff: Backoff,
}

impl RetrySchedule {
    /// Retries start within `budget` from now; a budget of zero allows none.
    pub(crate) fn new(budget: Duration) -> Self {
        let backoff = Backoff::between(FIRST_DELAY, MAX_DELAY);
        Self { deadline: Instant::now() + budget, backoff }
    }

    /// Returns the delay before the next try, or `None` if that try would start after the deadline.
    pub(crate) fn next_delay(&mut self) -> Option<Duration> {
        let delay = self.backoff.next_delay();
        let in_budget = Instant::now().checked_add(delay)? <= self.deadline;
        in_budget.then_some(delay)
    }

    /// Moves the deadline: time that the delivery spent in a pause does not count.
    pub(crate) fn extend(&mut self, by: Duration) {
        // On overflow, the deadline is centuries ahead already.
        self.deadline = self.deadline.checked_add(by).unwrap_or(self.deadline);
    }
}

/// An endless sequence of delays that double, with jitter, up to a maximum.
///
/// Only the delays come from `backoff`: the retry loop of version 0.4 does not check `max_elapsed_time`
/// if an error carries a `retry_after` (since ihrwein/backoff#41; not reported upstream).
#[derive(Debug)]
pub(crate) struct Backoff {
    delays: ExponentialBackoff,
    max: Duration,
}

impl Backoff {
    /// Delays from about `first` up to `max`; if `first` is longer than `max`, all are up to `max`.
    pub(crate) fn between(first: Duration, max: Duration) -> Self {
        let delays = ExponentialBackoffBuilder::new()
            .with_initial_interval(first.min(max))
            .with_max_interval(max)
            .with_multiplier(2.0)
            .with_randomization_factor(0.5)
            // `RetrySchedule` keeps the deadline, by tokio's clock, which tests can pause.
            .with_max_elapsed_time(None)
            .build();
        Self { delays, max }
    }

    pub(crate) fn next_delay(&mut self) -> Duration {
        // `next_backoff` returns `None` only after a maximum elapsed time. It applies jitter after the
        // maximum interval, so that its delays exceed that by up to a half.
        self.delays.next_backoff().unwrap_or(self.max).min(self.max)
    }

    /// Starts from the first delay again.
    pub(crate) fn reset(&mut self) {
        self.delays.reset();
    }
}

/// Delays after refused logins, which double.
#[derive(Clone, Debug)]
pub(crate) struct LoginWait {
    next: Duration,
}

impl LoginWait {
    pub(crate) const fn new() -> Self {
        Self { next: MIN_LOGIN_DELAY }
    }

    pub(crate) fn next_delay(&mut self) -> Duration {
        let delay = self.next;
        self.next = MAX_LOGIN_DELAY.min(2 * delay);
        delay
    }

    /// A login was accepted.
    pub(crate) fn reset(&mut self) {
        *self = Self::new();
    }
}

/// Parses a `Retry-After` value: seconds or an HTTP date, capped at [`MAX_RETRY_AFTER`].
///
/// Returns `None` if it is neither; the caller treats that as no header.
pub(crate) fn parse_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    let is_number = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
    let wait = if is_number {
        // A number that does not fit is above the cap, too.
        value.parse().map_or(MAX_RETRY_AFTER, Duration::from_secs)
    } else {
        httpdate::parse_http_date(value).ok()?.duration_since(now).unwrap_or_default()
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Wed, 21 Oct 2026 07:28:00 GMT").unwrap();
        let secs = |s| Some(Duration::from_secs(s));
        assert_eq!(parse_retry_after("0", now), secs(0));
        assert_eq!(parse_retry_after(" 120 ", now), secs(120));
        assert_eq!(parse_retry_after("99999999999999999999999", now), secs(300));
        assert_eq!(parse_retry_after("Wed, 21 Oct 2026 07:28:30 GMT", now), secs(30));
        assert_eq!(parse_retry_after("Wed, 21 Oct 2026 07:00:00 GMT", now), secs(0));
        assert_eq!(parse_retry_after("Wed, 21 Oct 2099 07:28:30 GMT", now), secs(300));
        for wrong in ["", "-1", "1.5", "soon", "+3"] {
            assert_eq!(parse_retry_after(wrong, now), None, "{wrong:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn retries_end_with_the_budget() {
        let mut schedule = RetrySchedule::new(Duration::from_secs(10));
        let start = Instant::now();
        let mut tries = 0;
        while let Some(delay) = schedule.next_delay() {
            tokio::time::sleep(delay).await;
            tries += 1;
        }
        assert!(start.elapsed() <= Duration::from_secs(10));
        assert!((4..20).contains(&tries), "{tries} tries");
    }

    #[tokio::test(start_paused = true)]
    async fn extension_moves_the_deadline() {
        let mut schedule = RetrySchedule::new(Duration::from_secs(2));
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(schedule.next_delay(), None);
        schedule.extend(Duration::from_secs(10));
        assert!(schedule.next_delay().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn zero_budget_allows_no_retry() {
        assert_eq!(RetrySchedule::new(Duration::ZERO).next_delay(), None);
    }

    #[test]
    fn login_delay_grows_from_one_to_thirty_seconds() {
        let mut wait = LoginWait::new();
        let mut delays = || (0..7).map(|_| wait.next_delay().as_secs()).collect::<Vec<_>>();
        assert_eq!(delays(), [1, 2, 4, 8, 16, 30, 30]);
        wait.reset();
        assert_eq!(wait.next_delay(), MIN_LOGIN_DELAY);
    }

    proptest! {
        #[test]
        fn delays_grow_and_stay_within_bounds(first in 1u64..1_000, max in 1u64..60_000) {
            let first = Duration::from_millis(first);
            let max = Duration::from_millis(max);
            let mut backoff = Backoff::between(first, max);
            for n in 0..40 {
                let delay = backoff.next_delay();
                prop_assert!(delay <= max);
                prop_assert!(delay >= first.min(max) / 2);
                // After 30 delays, even the shortest jitter gives half the maximum.
                if n > 30 { prop_assert!(delay >= max / 2 - Duration::from_millis(1)); }
            }
        }
    }
}
