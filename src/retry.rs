//! When to try again: transient or permanent, how long to wait, and the retry queues' delays.

use std::time::{Duration, SystemTime};

use backoff::{ExponentialBackoff, ExponentialBackoffBuilder, backoff::Backoff as _};
use tokio::time::Instant;

/// Longest `Retry-After` that is honoured; a platform that asks for more is tried again after this.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

const FIRST_DELAY: Duration = Duration::from_millis(200);
const LONGEST_DELAY: Duration = Duration::from_secs(5);

/// One of the retry queues: how long it keeps a message, and the name that says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryDelay {
    name: String,
    delay: Duration,
}

impl RetryDelay {
    /// A delay under the name it was written with, such as `1m`.
    pub fn new(name: &str, delay: Duration) -> Self {
        Self { name: name.to_owned(), delay }
    }

    /// The delay as it was written.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How long the queue keeps a message; from 1 ms to just below 2³² ms.
    pub fn duration(&self) -> Duration {
        self.delay
    }
}

/// Retrying in process: exponential backoff with jitter, for a limited time.
#[derive(Clone, Debug)]
pub struct RetryPolicy {
    budget: Duration,
}

impl RetryPolicy {
    /// Retries start within `budget` of the first try; zero means no retry at all.
    pub fn new(budget: Duration) -> Self {
        Self { budget }
    }

    /// Starts the clock for one delivery. All its calls share one budget.
    pub fn start(&self) -> RetrySchedule {
        RetrySchedule { deadline: Instant::now() + self.budget, delays: Backoff::default() }
    }
}

/// What is left of one delivery's budget.
#[derive(Debug)]
pub struct RetrySchedule {
    deadline: Instant,
    delays: Backoff,
}

impl RetrySchedule {
    /// How long to wait before the next try, or `None` where that would pass the budget.
    pub fn next_delay(&mut self) -> Option<Duration> {
        let delay = self.delays.next_delay();
        let in_budget = Instant::now().checked_add(delay)? <= self.deadline;
        in_budget.then_some(delay)
    }

    /// Time that was none to try in: it does not count.
    pub fn extend(&mut self, by: Duration) {
        // Beyond what a clock can tell, there is no end to come to.
        self.deadline = self.deadline.checked_add(by).unwrap_or(self.deadline);
    }
}

/// Endless delays that grow from one bound to another, with jitter, and never pass the upper one.
#[derive(Debug)]
pub struct Backoff {
    policy: ExponentialBackoff,
    longest: Duration,
}

impl Backoff {
    /// Backoff that double from around `first` up to `longest`.
    pub fn between(first: Duration, longest: Duration) -> Self {
        let policy = ExponentialBackoffBuilder::new()
            .with_initial_interval(first.min(longest))
            .with_max_interval(longest)
            .with_multiplier(2.0)
            .with_randomization_factor(0.5)
            // The caller keeps the time: this crate's clock knows nothing of tokio's.
            .with_max_elapsed_time(None)
            .build();
        Self { policy, longest }
    }

    /// The next delay.
    pub fn next_delay(&mut self) -> Duration {
        // Without a maximum elapsed time there is always a next one. Jitter passes the maximum
        // interval by half, hence the clamp.
        self.policy.next_backoff().unwrap_or(self.longest).min(self.longest)
    }

    /// Starts from the first delay again.
    pub fn reset(&mut self) {
        self.policy.reset();
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::between(FIRST_DELAY, LONGEST_DELAY)
    }
}

/// Reads a `Retry-After` value: seconds or an HTTP date. At most [`MAX_RETRY_AFTER`].
///
/// `None` where it is neither, which is the same as no header at all.
pub fn parse_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
    let wait = if digits {
        // More digits than fit are still a number, and the cap makes them all alike.
        value.parse().map_or(MAX_RETRY_AFTER, Duration::from_secs)
    } else {
        httpdate::parse_http_date(value).ok()?.duration_since(now).unwrap_or_default()
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
        let mut schedule = RetryPolicy::new(Duration::from_secs(10)).start();
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
    async fn time_that_does_not_count_is_added_to_the_budget() {
        let mut schedule = RetryPolicy::new(Duration::from_secs(2)).start();
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(schedule.next_delay(), None);
        schedule.extend(Duration::from_secs(10));
        assert!(schedule.next_delay().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn no_budget_means_no_retry() {
        assert_eq!(RetryPolicy::new(Duration::ZERO).start().next_delay(), None);
    }

    proptest! {
        #[test]
        fn delays_grow_and_keep_to_their_bounds(first in 1u64..1_000, longest in 1u64..60_000) {
            let (first, longest) = (Duration::from_millis(first), Duration::from_millis(longest));
            let mut delays = Backoff::between(first, longest);
            for n in 0..40 {
                let delay = delays.next_delay();
                prop_assert!(delay <= longest);
                prop_assert!(delay >= first.min(longest) / 2);
                // Far along, even the shortest jitter lies well above the first delay.
                if n > 30 { prop_assert!(delay >= longest / 2 - Duration::from_millis(1)); }
            }
        }
    }
}
