//! Failures without a success in between.

use std::time::Duration;

use tokio::time::Instant;

use super::decision::{CallResult, Caller};

/// Failures in a row that open the circuit breaker.
pub(super) const FAILURE_THRESHOLD: u32 = 5;
/// A timeout counts for this many failures: with a long one, each request fails only once.
const TIMEOUT_WEIGHT: u32 = 2;
/// A longer gap between failures starts a new streak: with that little traffic, one request may cause
/// them all.
const GAP: Duration = Duration::from_secs(60);
/// Limit of remembered callers: many more than open the breaker.
const MAX_CALLERS: usize = 64;

#[derive(Default)]
pub(super) struct Streak {
    entries: Vec<Entry>,
    last: Option<Instant>,
    counted: Counted,
}

struct Entry {
    caller: Caller,
    failures: u32,
    /// Whether the failures do not count while another workflow is served.
    is_excusable: bool,
}

/// The failures that count, and the callers that caused them.
#[derive(Clone, Copy, Default)]
pub(super) struct Counted {
    pub(super) failures: u32,
    pub(super) callers: usize,
}

impl Streak {
    /// Adds a failure. `is_excused` says whose failures do not count at the moment.
    pub(super) fn add(
        &mut self,
        caller: Caller,
        result: CallResult,
        is_excusable: bool,
        is_excused: impl Fn(Caller) -> bool,
        now: Instant,
    ) {
        if self.is_over(now) {
            self.entries.clear();
        }
        self.last = Some(now);
        let failures = if result == CallResult::Timeout { TIMEOUT_WEIGHT } else { 1 };
        let same =
            |entry: &&mut Entry| entry.caller == caller && entry.is_excusable == is_excusable;
        if let Some(entry) = self.entries.iter_mut().find(same) {
            entry.failures = entry.failures.saturating_add(failures);
        } else if self.entries.len() < MAX_CALLERS {
            self.entries.push(Entry { caller, failures, is_excusable });
        }
        self.counted = Counted::default();
        for entry in &self.entries {
            if !(entry.is_excusable && is_excused(entry.caller)) {
                self.counted.failures = self.counted.failures.saturating_add(entry.failures);
                self.counted.callers += 1;
            }
        }
    }

    /// What counts; a streak ends by itself.
    pub(super) fn counted(&self, now: Instant) -> Counted {
        if self.is_over(now) { Counted::default() } else { self.counted }
    }

    pub(super) fn callers(&self) -> impl Iterator<Item = Caller> {
        self.entries.iter().map(|entry| entry.caller)
    }

    fn is_over(&self, now: Instant) -> bool {
        self.last.is_none_or(|last| now - last > GAP)
    }
}
