//! The gate's rules: which calls may start, given the results of recent calls.
//!
//! The rules neither wait nor read a clock: callers pass the time in, so that property tests can run
//! any schedule.

use std::{collections::HashSet, time::Duration};

use tokio::time::Instant;

use super::{
    breaker::OpenBreaker,
    decision::{CallResult, Caller, Cause, Change, Decision},
    paused_clock::PausedClock,
};
use crate::{session::Call, telemetry::metrics::PausedFor};

/// Failures in a row that open the circuit breaker …
const FAILURE_THRESHOLD: u32 = 5;
/// … if this many requests caused them: a single request may fail every time.
const CALLER_THRESHOLD: usize = 3;
/// A longer gap between failures starts a new streak: with that little traffic, one request may cause
/// them all.
const STREAK_GAP: Duration = Duration::from_secs(60);

/// Calls in flight during slow start, before the first success: if the platform is down, no more calls
/// than these are wasted.
const SLOW_START_WINDOW: u32 = 4;
/// Further calls in flight for each success.
const SLOW_START_GROWTH: u32 = 2;
/// Successes that end slow start: after them, calls are unlimited.
const SLOW_START_SUCCESSES: u32 = 4;
/// With no call in flight, time since the last success after which the next call begins a slow start.
const SLOW_START_IDLE: Duration = Duration::from_millis(100);
/// A platform that answers nothing for this long is slow rather than down: calls are unlimited.
const SILENCE_LIMIT: Duration = Duration::from_millis(500);

/// How long a failed request waits to see whether this is an outage.
const OUTAGE_WAIT: Duration = Duration::from_secs(1);

/// A request that receives `Retry-After` twice in a row lets the others go first, for a tenth of that
/// time and at least for this long.
const MIN_YIELD: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(super) struct GateState {
    /// No call before this time: the platform's latest `Retry-After`.
    retry_after_until: Option<Instant>,
    /// The caller that last received a `Retry-After`, and until when it waits.
    last_deferred: Option<(Caller, Instant)>,
    breaker: Option<OpenBreaker>,
    /// By call: the platform may serve one and fail the other.
    streaks: [Streak; 2],
    pub(super) in_flight: u32,
    /// Successes since slow start began.
    successes: u32,
    last_success: Option<Instant>,
    /// When a call last ended, if others are still in flight; or else when the first of these began.
    silent_since: Option<Instant>,
    paused_clock: PausedClock,
}

/// Failures without a success in between.
#[derive(Default)]
struct Streak {
    failures: u32,
    /// The callers that failed, up to `CALLER_THRESHOLD` of them.
    callers: HashSet<Caller>,
    last: Option<Instant>,
}

impl GateState {
    /// Returns why the circuit breaker is open, or `None` while it is closed.
    pub(super) fn open_cause(&self) -> Option<Cause> {
        self.breaker.as_ref().map(|breaker| breaker.cause)
    }

    /// Returns whether a `Retry-After` of the platform is still running.
    pub(super) fn is_retry_after_running(&self, now: Instant) -> bool {
        self.retry_after_until.is_some_and(|until| until > now)
    }

    /// Returns whether this call is paused. A full slow-start window is not a pause.
    pub(super) fn is_paused(&self, call: Call, now: Instant) -> bool {
        self.is_retry_after_running(now)
            || self.breaker.as_ref().is_some_and(|breaker| breaker.blocks(call))
    }

    /// How long a failed call that began at `began` may still prove to be part of an outage.
    ///
    /// Long if other requests fail as well. Otherwise zero if any call has succeeded since, long if calls
    /// are in flight, and short if there are none, since some may be about to start.
    pub(super) fn outage_wait(&self, call: Call, began: Instant) -> Duration {
        let others_fail = self.streaks[call as usize].callers.len() > 1;
        let no_success_since = self.last_success.is_none_or(|last| last < began);
        if others_fail || (no_success_since && self.in_flight > 0) {
            OUTAGE_WAIT
        } else if no_success_since {
            OUTAGE_WAIT / 4
        } else {
            Duration::ZERO
        }
    }

    /// Brings the paused time up to date, and returns it.
    pub(super) fn advance_paused_clock(&mut self, now: Instant) -> PausedFor {
        self.paused_clock.advance(self.open_cause(), self.retry_after_until, now)
    }

    /// Decides what a caller must do next.
    pub(super) fn decide(&self, caller: Caller, call: Call, now: Instant) -> Decision {
        let own = self.last_deferred.filter(|(last, _)| *last == caller).map(|(_, until)| until);
        if let Some(until) = self.retry_after_until.max(own).filter(|until| *until > now) {
            return Decision::WaitUntil(until);
        }
        match &self.breaker {
            Some(breaker) if breaker.blocks(call) => breaker.decide(caller, now),
            _ if self.in_flight < self.window(now) => Decision::Proceed,
            _ => match self.silent_since {
                Some(since) if self.failures() == 0 => Decision::WaitUntil(since + SILENCE_LIMIT),
                _ => Decision::Wait,
            },
        }
    }

    /// Records the start of a call that was allowed, by `Proceed` or `Probe`.
    pub(super) fn start_call(&mut self, caller: Caller, decision: Decision, now: Instant) {
        if self.is_idle(now) {
            self.successes = 0;
        }
        self.in_flight += 1;
        self.silent_since.get_or_insert(now);
        if let (Decision::Probe, Some(breaker)) = (decision, &mut self.breaker) {
            breaker.start_probe(caller, now);
        }
    }

    /// Records that a call ended without a result.
    pub(super) fn end_call(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if self.in_flight == 0 {
            self.silent_since = None;
        }
    }

    /// Records the result of a call, and returns what it changed.
    pub(super) fn report(
        &mut self,
        caller: Caller,
        call: Call,
        result: CallResult,
        now: Instant,
    ) -> Option<Change> {
        self.advance_paused_clock(now);
        self.end_call();
        self.silent_since = (self.in_flight > 0).then_some(now);
        match result {
            CallResult::Success => self.record_success(caller, call, now),
            CallResult::RateLimited(wait) => {
                self.record_retry_after(caller, wait, now);
                self.release_probe(caller);
                None
            }
            CallResult::Unavailable(wait) => {
                self.record_retry_after(caller, wait, now);
                self.record_failure(caller, call, now)
            }
            CallResult::Failure => self.record_failure(caller, call, now),
            CallResult::Refused => self.record_refusal(caller, now),
        }
    }

    /// Ends the caller's probe, so that another may probe. Returns whether it had one.
    pub(super) fn release_probe(&mut self, caller: Caller) -> bool {
        self.breaker.as_mut().is_some_and(|breaker| breaker.release_probe(caller))
    }

    /// The number of calls that may be in flight at once.
    fn window(&self, now: Instant) -> u32 {
        let successes = if self.is_idle(now) { 0 } else { self.successes };
        let slow = self.silent_since.is_some_and(|since| now - since >= SILENCE_LIMIT);
        match self.failures() {
            _ if successes >= SLOW_START_SUCCESSES => u32::MAX,
            0 if slow => u32::MAX,
            0 => SLOW_START_WINDOW + SLOW_START_GROWTH * successes,
            // No more than would complete the streak.
            failures => FAILURE_THRESHOLD.saturating_sub(failures).clamp(1, SLOW_START_WINDOW),
        }
    }

    /// The length of the longer streak.
    fn failures(&self) -> u32 {
        self.streaks.iter().map(|streak| streak.failures).max().unwrap_or_default()
    }

    fn is_idle(&self, now: Instant) -> bool {
        self.in_flight == 0 && self.last_success.is_none_or(|last| now - last > SLOW_START_IDLE)
    }

    fn record_success(&mut self, caller: Caller, call: Call, now: Instant) -> Option<Change> {
        self.last_success = Some(now);
        self.successes = self.successes.saturating_add(1);
        match call {
            // A session needs a token, so both calls work.
            Call::Session => self.streaks = Default::default(),
            Call::Token => self.streaks[call as usize] = Streak::default(),
        }
        self.breaker.take_if(|breaker| breaker.is_closed_by(caller, call)).map(|_| Change::Closed)
    }

    fn record_retry_after(&mut self, caller: Caller, wait: Duration, now: Instant) {
        let until = now + wait;
        // The platform may be limiting this request alone: if it was the last one to be deferred, let
        // the others call before it does.
        let again = self.last_deferred.is_some_and(|(last, _)| last == caller);
        let yielding = if again { (wait / 10).max(MIN_YIELD) } else { Duration::ZERO };
        self.last_deferred = Some((caller, until + yielding));
        self.retry_after_until = self.retry_after_until.max(Some(until));
        self.successes = 0;
    }

    fn record_failure(&mut self, caller: Caller, call: Call, now: Instant) -> Option<Change> {
        if let Some(breaker) = &mut self.breaker {
            // If only one request fails, the platform may serve the others.
            let alone = breaker.record_failure(caller, now);
            return self.breaker.take_if(|_| alone).map(|_| Change::ClosedForOthers);
        }
        let streak = &mut self.streaks[call as usize];
        if streak.last.is_some_and(|last| now - last > STREAK_GAP) {
            *streak = Streak::default();
        }
        streak.last = Some(now);
        streak.failures = streak.failures.saturating_add(1);
        if streak.callers.len() < CALLER_THRESHOLD {
            streak.callers.insert(caller);
        }
        let down = streak.failures >= FAILURE_THRESHOLD && streak.callers.len() >= CALLER_THRESHOLD;
        down.then(|| self.open(Cause::Down(call), now))
    }

    fn record_refusal(&mut self, caller: Caller, now: Instant) -> Option<Change> {
        match &mut self.breaker {
            Some(breaker) if breaker.cause == Cause::Refused => {
                breaker.end_failed_probe(caller);
                None
            }
            // Even if the platform was down, it responds again, and refuses the token call.
            _ => Some(self.open(Cause::Refused, now)),
        }
    }

    fn open(&mut self, cause: Cause, now: Instant) -> Change {
        self.streaks = Default::default();
        self.successes = 0;
        self.breaker = Some(OpenBreaker::new(cause, now));
        Change::Opened(cause)
    }
}
