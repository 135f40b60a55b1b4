//! Slow start: few calls in flight until the platform is seen to answer.
//!
//! After an outage, calls grow only with what is answered: all replicas have requests waiting, and together
//! they would bring down a platform that has just come back.

use std::time::Duration;

use tokio::time::Instant;

use super::{decision::Decision, streak::FAILURE_THRESHOLD};

/// Calls in flight before the first success: if the platform is down, no more calls than these are wasted.
const WINDOW: u32 = 4;
/// Further calls in flight for each success.
const GROWTH: u32 = 2;
/// Successes that end slow start: after them, calls are unlimited.
const SUCCESSES: u32 = 4;
/// With no call in flight, time since the last success after which the next call begins a slow start.
const IDLE: Duration = Duration::from_millis(100);
/// A platform that answers nothing for this long is slow rather than down: calls are unlimited.
const SILENCE_LIMIT: Duration = Duration::from_millis(500);

pub(super) struct SlowStart {
    pub(super) in_flight: u32,
    pub(super) last_success: Option<Instant>,
    /// Successes since slow start began.
    successes: u32,
    /// The platform was down. Until as many calls as there are slots have succeeded, or none was needed for a moment,
    /// each success allows one more call in flight.
    recovery: Option<Recovery>,
    slots: u32,
    /// When a call last ended, if others are still in flight; or else when the first of these began.
    silent_since: Option<Instant>,
}

struct Recovery {
    /// Successes until it ends, whatever fails meanwhile.
    left: u32,
    /// Calls in flight that began in the outage, and may hang: they leave the window to others. Each call that ends
    /// counts as one of them, so that they stand in no other's way, and are forgotten within as many calls.
    stale: u32,
}

impl SlowStart {
    pub(super) fn new(slots: u16) -> Self {
        Self {
            in_flight: 0,
            last_success: None,
            successes: 0,
            recovery: None,
            slots: slots.into(),
            silent_since: None,
        }
    }

    /// Decides whether another call may start. `failures`: the length of the current streak.
    pub(super) fn decide(&self, failures: u32, now: Instant) -> Decision {
        let stale = self.recovery.as_ref().map_or(0, |recovery| recovery.stale);
        if self.in_flight.saturating_sub(stale) < self.window(failures, now) {
            return Decision::Proceed;
        }
        match self.silent_since {
            Some(since) if failures == 0 && self.recovery.is_none() => {
                Decision::WaitUntil(since + SILENCE_LIMIT)
            }
            _ => Decision::Wait,
        }
    }

    pub(super) fn start_call(&mut self, now: Instant) {
        if self.is_idle(now) {
            self.successes = 0;
            self.recovery = None;
        }
        self.in_flight += 1;
        self.silent_since.get_or_insert(now);
    }

    /// Records that a call ended without a result.
    pub(super) fn end_call(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if let Some(recovery) = &mut self.recovery {
            recovery.stale = recovery.stale.saturating_sub(1);
        }
        if self.in_flight == 0 {
            self.silent_since = None;
        }
    }

    /// Records that a call ended with a result.
    pub(super) fn record_answer(&mut self, now: Instant) {
        self.end_call();
        self.silent_since = (self.in_flight > 0).then_some(now);
    }

    pub(super) fn record_success(&mut self, now: Instant) {
        self.last_success = Some(now);
        self.successes = self.successes.saturating_add(1);
        if let Some(recovery) = &mut self.recovery {
            recovery.left = recovery.left.saturating_sub(1);
            if recovery.left == 0 {
                // Calls are unlimited from here on, whatever failed.
                self.successes = self.successes.max(SUCCESSES);
                self.recovery = None;
            }
        }
    }

    pub(super) fn restart(&mut self) {
        self.successes = 0;
    }

    /// Begins the recovery from an outage, with the success that ended it.
    pub(super) fn start_recovery(&mut self) {
        self.successes = 1;
        self.recovery =
            Some(Recovery { left: self.slots.saturating_sub(1), stale: self.in_flight });
    }

    /// Records a failed call that may be part of an outage.
    pub(super) fn record_failure(&mut self) {
        if self.recovery.is_some() {
            self.successes /= 2;
        }
    }

    /// The number of calls that may be in flight at once.
    fn window(&self, failures: u32, now: Instant) -> u32 {
        let is_idle = self.is_idle(now);
        let successes = if is_idle { 0 } else { self.successes };
        let slow = self.silent_since.is_some_and(|since| now - since >= SILENCE_LIMIT);
        match failures {
            0 if self.recovery.is_some() && !is_idle => 1 + successes,
            _ if successes >= SUCCESSES && self.recovery.is_none() => u32::MAX,
            0 if slow => u32::MAX,
            0 => WINDOW + GROWTH * successes,
            // No more than would complete the streak.
            failures => FAILURE_THRESHOLD.saturating_sub(failures).clamp(1, WINDOW),
        }
    }

    fn is_idle(&self, now: Instant) -> bool {
        self.in_flight == 0 && self.last_success.is_none_or(|last| now - last > IDLE)
    }
}
