//! The open circuit breaker: which calls probe the platform, and when.
//!
//! There is no separate half-open state. An open breaker admits one probe per interval, and a probe that
//! gets no answer does not delay the next.

use std::{collections::HashSet, ops::RangeInclusive, time::Duration};

use tokio::time::Instant;

use super::decision::{Caller, Cause, Decision, IDLE_CALLER};
use crate::session::Call;

/// The interval between probes doubles from the start of this range to its end. Without jitter: people wait
/// for the result of the next probe.
const DOWN: RangeInclusive<Duration> = Duration::from_millis(750)..=Duration::from_millis(2_900);
/// Longer, because an operator has to fix a setting first.
const REFUSED: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(30);

/// How long the caller of the last failed probe lets other callers go first.
const YIELD: Duration = Duration::from_millis(50);
/// Failed probes in a row by one request that close the breaker. Other requests would have probed in
/// between, so that none waits, and the fault may be that request's alone.
const LONE_FAILURES: u32 = 3;

pub(super) struct OpenBreaker {
    pub(super) cause: Cause,
    interval: Duration,
    next_probe: Instant,
    /// The callers that probe. Usually one: an unanswered probe does not delay the next.
    probes: HashSet<Caller>,
    /// The caller of the last failed probe, and how many in a row were its own.
    last_failed: Option<(Caller, u32)>,
}

impl OpenBreaker {
    pub(super) fn new(cause: Cause, now: Instant) -> Self {
        let interval = *cause.probe_intervals().start();
        Self {
            cause,
            interval,
            next_probe: now + interval,
            probes: HashSet::new(),
            last_failed: None,
        }
    }

    /// Returns whether the breaker blocks this call.
    ///
    /// A platform that refuses the token call may still start sessions with the tokens it gave.
    pub(super) fn blocks(&self, call: Call) -> bool {
        self.cause != Cause::Refused || call == Call::Token
    }

    pub(super) fn decide(&self, caller: Caller, now: Instant) -> Decision {
        if self.probes.contains(&caller) {
            return Decision::Proceed;
        }
        let failed_last = self.last_failed.is_some_and(|(last, _)| last == caller);
        let next_probe = self.next_probe + if failed_last { YIELD } else { Duration::ZERO };
        if next_probe <= now { Decision::Probe } else { Decision::WaitUntil(next_probe) }
    }

    pub(super) fn start_probe(&mut self, caller: Caller, now: Instant) {
        self.probes.insert(caller);
        self.interval = (self.interval * 2).min(*self.cause.probe_intervals().end());
        self.next_probe = now + self.interval;
    }

    /// Records a failed call. Returns whether only this caller's probes fail.
    pub(super) fn record_failure(&mut self, caller: Caller, now: Instant) -> bool {
        if !self.end_failed_probe(caller) {
            return false;
        }
        if self.cause == Cause::Refused {
            // The answer is no longer a refusal, so the setting may be changing: probe again soon.
            self.interval = *self.cause.probe_intervals().start();
            self.next_probe = now + self.interval;
            return false;
        }
        let alone = self.last_failed.is_some_and(|(last, n)| last == caller && n >= LONE_FAILURES);
        alone && caller != IDLE_CALLER
    }

    /// Ends the caller's probe, if it has one, as failed. Returns whether it had one.
    pub(super) fn end_failed_probe(&mut self, caller: Caller) -> bool {
        let was_probe = self.probes.remove(&caller);
        if was_probe {
            let before = self.last_failed.filter(|(last, _)| *last == caller).map_or(0, |(_, n)| n);
            self.last_failed = Some((caller, before + 1));
        }
        was_probe
    }

    /// Returns whether the success of this call closes the breaker.
    pub(super) fn is_closed_by(&self, caller: Caller, call: Call) -> bool {
        match self.cause {
            // A token call that was in flight when the key was refused proves nothing.
            Cause::Refused => call == Call::Token && self.probes.contains(&caller),
            // A session proves that token calls work, too. The idle probe makes no session, since no
            // request waits for one: the next request finds out.
            Cause::Down(failing) => {
                call == failing || call == Call::Session || caller == IDLE_CALLER
            }
        }
    }

    /// Ends the caller's probe without a result. Returns whether it had one.
    pub(super) fn release_probe(&mut self, caller: Caller) -> bool {
        self.probes.remove(&caller)
    }
}

impl Cause {
    fn probe_intervals(self) -> RangeInclusive<Duration> {
        match self {
            Self::Down(_) => DOWN,
            Self::Refused => REFUSED,
        }
    }
}
