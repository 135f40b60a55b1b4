//! The gate's rules: which calls may start, given the results of recent calls.
//!
//! The rules neither wait nor read a clock: callers pass the time in, so that property tests can run
//! any schedule.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    breaker::{FailedProbe, OpenBreaker, Rank},
    decision::{CallResult, Caller, Cause, Change, Decision, FailureScope},
    deferrals::Deferrals,
    evidence::{Evidence, Weight},
    held::HeldRequests,
    paused_clock::PausedClock,
    probe_permits::UnreportedAnswer,
    refusals::Refusals,
    slow_start::SlowStart,
    streak::{FAILURE_THRESHOLD, Streak},
};
use crate::{session::Call, telemetry::metrics::PausedFor};

/// The number of callers whose failures open the circuit breaker: a single request may fail every time.
/// Workers with fewer slots need only as many callers as slots, since no more can fail at once.
const CALLER_THRESHOLD: usize = 3;

/// The shortest and longest wait of a failed request to see whether this is an outage. Within these limits it
/// waits for as long as its call took: calls that began later may be about to fail in the same way.
const MIN_OUTAGE_WAIT: Duration = Duration::from_secs(1);
const MAX_OUTAGE_WAIT: Duration = Duration::from_secs(10);

/// How long no request must have been held before a token call replaces a request as the probe. A request
/// that moved to the end of the queue is back within moments, and is the better probe.
const HALF_OPEN_AFTER: Duration = Duration::from_secs(3);

pub(super) struct GateState {
    caller_threshold: usize,
    pub(super) deferrals: Deferrals,
    pub(super) breaker: Option<OpenBreaker>,
    /// By call: the platform may serve one and fail another.
    streaks: [Streak; 3],
    evidence: Evidence,
    pub(super) refusals: Refusals,
    pub(super) held: HeldRequests,
    slow_start: SlowStart,
    pub(super) paused_clock: PausedClock,
    /// Whether replicas share the probes of a platform that is down.
    pub(super) shares_probes: bool,
    /// The good answer that ended an outage, if the other replicas do not know it yet.
    pub(super) unreported_answer: Option<UnreportedAnswer>,
}

impl GateState {
    /// `slots`: how many requests may be in flight.
    pub(super) fn new(slots: u16) -> Self {
        Self {
            caller_threshold: CALLER_THRESHOLD.min(slots.into()),
            deferrals: Deferrals::default(),
            breaker: None,
            streaks: Default::default(),
            evidence: Evidence::default(),
            refusals: Refusals::default(),
            held: HeldRequests::default(),
            slow_start: SlowStart::new(slots),
            paused_clock: PausedClock::default(),
            shares_probes: false,
            unreported_answer: None,
        }
    }

    /// Returns why the circuit breaker is open, or `None` while it is closed or half-open.
    pub(super) fn open_cause(&self) -> Option<Cause> {
        self.breaker.as_ref().filter(|breaker| !breaker.is_half_open()).map(|breaker| breaker.cause)
    }

    /// Returns whether a `Retry-After` that holds all calls is still running.
    pub(super) fn is_retry_after_running(&self, now: Instant) -> bool {
        self.deferrals.is_running(now)
    }

    /// Returns whether this call is paused. A full slow-start window is not a pause.
    pub(super) fn is_paused(&self, call: Call, now: Instant) -> bool {
        self.is_retry_after_running(now)
            || self.breaker.as_ref().is_some_and(|breaker| breaker.blocks(call))
    }

    /// Returns whether an open breaker has no request to probe with.
    pub(super) fn needs_idle_probe(&self) -> bool {
        let probed =
            |breaker: &OpenBreaker| breaker.is_half_open() || breaker.is_probed_by_request();
        self.held.is_empty() && self.breaker.as_ref().is_some_and(|breaker| !probed(breaker))
    }

    /// How long a failed call that began at `began` may still prove to be part of an outage.
    ///
    /// Long if other requests fail as well. Otherwise zero if any such call has succeeded since, long if calls
    /// are in flight and failures count, and short if there are none, since some may be about to start.
    pub(super) fn outage_wait(&self, call: Call, began: Instant, now: Instant) -> Duration {
        let failing = self.streaks[call as usize].counted(now).callers;
        // A token says nothing about session calls.
        let last_success = match call {
            Call::Token => self.slow_start.last_success,
            Call::Session | Call::Deeplink => self.evidence.last_session(),
        };
        let no_success_since = last_success.is_none_or(|last| last < began);
        if no_success_since && self.in_flight() > 0 && failing > 0 {
            (now - began).clamp(MIN_OUTAGE_WAIT, MAX_OUTAGE_WAIT)
        } else if failing > 1 || (no_success_since && self.in_flight() > 0) {
            MIN_OUTAGE_WAIT
        } else if no_success_since {
            MIN_OUTAGE_WAIT / 4
        } else {
            Duration::ZERO
        }
    }

    /// Returns whether a request that fails in this pause makes room for one in the queue.
    ///
    /// Once all have failed, the oldest one makes room after each failed probe. With many slots, that may take
    /// long. A request that `had_its_turn` therefore makes room, too, unless a request of a workflow that has
    /// not failed still waits to probe.
    pub(super) fn make_room(&mut self, caller: Caller, had_its_turn: bool) -> bool {
        let Some(breaker) = &mut self.breaker else { return false };
        if !breaker.cause.is_session_outage()
            || breaker.rank(caller) == Rank::OtherWorkflow
            || self.held.is_ranked(Rank::OtherWorkflow)
        {
            return false;
        }
        let have_all_failed =
            !self.held.is_ranked(Rank::OtherCaller) && !breaker.is_probed_by_request();
        had_its_turn
            || (have_all_failed && self.held.is_oldest(caller) && breaker.take_room_to_make())
    }

    /// Returns until when the platform wants no calls for this caller, if its request makes room for others.
    pub(super) fn make_room_while_deferred(
        &mut self,
        caller: Caller,
        now: Instant,
    ) -> Option<Instant> {
        let in_flight = self.in_flight();
        let Self { deferrals, held, .. } = self;
        let are_all_deferred = in_flight == 0 && held.all(|other| deferrals.is_deferred(other));
        let is_last = || are_all_deferred && held.is_newest(caller);
        deferrals.make_room(caller, is_last, now)
    }

    /// Returns for how long the platform wants no calls for this caller.
    pub(super) fn deferred_for(&self, caller: Caller, now: Instant) -> Option<Duration> {
        self.deferrals.deferred_for(caller, now)
    }

    /// Brings the paused time up to date, and returns it.
    pub(super) fn advance_paused_clock(&mut self, now: Instant) -> PausedFor {
        self.paused_clock.advance(self.open_cause(), self.deferrals.all_until(), now)
    }

    /// Records that a request waits at the gate. A caller has one such request at a time.
    pub(super) fn start_waiting(&mut self, caller: Caller, arrived: Instant, now: Instant) {
        self.held.start_waiting(caller, arrived, self.breaker.as_ref(), now);
    }

    pub(super) fn end_waiting(&mut self, caller: Caller, now: Instant) {
        self.held.end_waiting(caller, self.breaker.as_ref(), now);
    }

    /// Decides what a caller must do next.
    pub(super) fn decide(&self, caller: Caller, call: Call, now: Instant) -> Decision {
        let served_since = |then| self.evidence.was_other_served_since(caller, then, now);
        let others_wait = || !self.held.all(|other| self.deferrals.is_deferred(other));
        if let Some(until) = self.deferrals.wait_until(caller, served_since, others_wait, now) {
            return Decision::WaitUntil(until);
        }
        match &self.breaker {
            Some(breaker) if breaker.blocks(call) => {
                if caller == Caller::IDLE
                    && (breaker.cause.is_session_outage() || call == Call::Deeplink)
                    && let Some(until) = self.held.attended_until(HALF_OPEN_AFTER, now)
                {
                    return Decision::WaitUntil(until);
                }
                let better_waits = self.held.is_better_ranked(breaker.rank(caller));
                breaker.decide(caller, better_waits, now)
            }
            _ => {
                let failures = self.streaks.iter().map(|streak| streak.counted(now).failures).max();
                self.slow_start.decide(failures.unwrap_or_default(), now)
            }
        }
    }

    /// Records the start of a call that was allowed, by `Proceed` or `Probe`.
    pub(super) fn start_call(&mut self, caller: Caller, decision: Decision, now: Instant) {
        self.slow_start.start_call(now);
        self.deferrals.record_call(caller, now);
        if let (Decision::Probe, Some(breaker)) = (decision, &mut self.breaker) {
            breaker.start_probe(caller, now);
        }
    }

    /// Records that a call ended without a result.
    pub(super) fn end_call(&mut self) {
        self.slow_start.end_call();
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.slow_start.in_flight
    }

    /// Records the result of a call. Returns what it changed, and what a failure says about the request.
    /// `began_in_pause`: whether calls were paused when this one began.
    pub(super) fn report(
        &mut self,
        caller: Caller,
        call: Call,
        result: CallResult,
        began_in_pause: bool,
        now: Instant,
    ) -> (Option<Change>, FailureScope) {
        self.advance_paused_clock(now);
        self.slow_start.record_answer(now);
        if self.breaker.is_some() && caller != Caller::IDLE {
            self.held.record_seen(now);
        }
        match result {
            CallResult::Success | CallResult::Rejected => {
                let is_good = result == CallResult::Success;
                return (self.record_success(caller, call, is_good, now), FailureScope::Request);
            }
            CallResult::RateLimited(wait) => {
                let alone = self.record_retry_after(caller, wait, now);
                self.release_probe(caller);
                let scope = if alone { FailureScope::Deferred } else { FailureScope::Pause };
                return (None, scope);
            }
            _ => {}
        }
        let alone = match result {
            CallResult::Unavailable(wait) => self.record_retry_after(caller, wait, now),
            _ => false,
        };
        let (change, counts) = match result {
            CallResult::Refused(refusal) => (self.record_refusal(caller, call, refusal, now), true),
            _ => self.record_failure(caller, call, result, now),
        };
        let scope = if alone {
            FailureScope::Deferred
        } else if began_in_pause || self.is_paused(call, now) {
            // A pause that has ended meanwhile counts, too.
            FailureScope::Pause
        } else if counts {
            FailureScope::Undecided
        } else {
            FailureScope::Request
        };
        (change, scope)
    }

    /// Ends the caller's probe, so that another may probe. Returns whether it had one.
    pub(super) fn release_probe(&mut self, caller: Caller) -> bool {
        self.breaker.as_mut().is_some_and(|breaker| breaker.release_probe(caller))
    }

    /// `is_good`: the platform did what it was asked for. It may reject a request while it refuses the key to others.
    fn record_success(
        &mut self,
        caller: Caller,
        call: Call,
        is_good: bool,
        now: Instant,
    ) -> Option<Change> {
        let proves_url =
            call == Call::Deeplink && is_good && self.refusals.record_good(caller, now);
        self.slow_start.record_success(now);
        match call {
            // A session needs a token, so both calls work.
            Call::Session | Call::Deeplink => {
                self.streaks = Default::default();
                self.evidence.record_session(caller, now);
                self.deferrals.record_served(caller);
            }
            Call::Token => self.streaks[call as usize] = Streak::default(),
        }
        let breaker = self.breaker.as_mut()?;
        let is_refused = matches!(breaker.cause, Cause::Refused(_));
        if proves_url || (breaker.is_closed_by(caller, call) && (is_good || !is_refused)) {
            if is_refused {
                self.refusals.end_pause(caller);
            } else {
                self.slow_start.start_recovery();
                self.unreported_answer =
                    self.shares_probes.then(|| UnreportedAnswer::new(call, now));
            }
            self.breaker = None;
            self.held.recount(None);
            return Some(Change::Closed);
        }
        // An idle probe makes no session, so it proves nothing about session calls: only a request can.
        if caller == Caller::IDLE && breaker.release_probe(caller) {
            let attended = self.held.attended_until(HALF_OPEN_AFTER, now).is_some();
            if !attended && !breaker.is_probed_by_request() {
                breaker.half_open();
                return Some(Change::HalfOpened);
            }
        }
        None
    }

    /// Returns whether the `Retry-After` holds this caller alone.
    fn record_retry_after(&mut self, caller: Caller, wait: Duration, now: Instant) -> bool {
        let evidence = &self.evidence;
        let served_since = |then| evidence.was_other_served_since(caller, then, now);
        let alone = self.deferrals.record(caller, wait, served_since, now);
        if !alone {
            self.slow_start.restart();
        }
        alone
    }

    /// Returns what changed, and whether the failure may be part of an outage.
    fn record_failure(
        &mut self,
        caller: Caller,
        call: Call,
        result: CallResult,
        now: Instant,
    ) -> (Option<Change>, bool) {
        let weight = self.evidence.record_failure(caller, call, result, now);
        if let Some(breaker) = &mut self.breaker {
            breaker.record_failed(caller, call);
            let change = match breaker.record_failed_probe(caller, now) {
                // If only one request fails, the platform may serve the others.
                FailedProbe::Alone if self.held.all(|other| other == caller) => {
                    self.breaker = None;
                    Some(Change::ClosedForOthers)
                }
                FailedProbe::Alone | FailedProbe::OneOfSeveral => {
                    breaker.reopen().then_some(Change::Reopened)
                }
                // It began before the breaker was half-open.
                FailedProbe::NoProbe => None,
            };
            self.held.recount(self.breaker.as_ref());
            return (change, false);
        }
        let is_excusable = match weight {
            Weight::Never => return (None, false),
            Weight::UnlessOthersAreServed => true,
            Weight::Always => false,
        };
        let is_excused = |caller| self.evidence.is_other_workflow_well(caller, now);
        let streak = &mut self.streaks[call as usize];
        streak.add(caller, result, is_excusable, is_excused, now);
        let counted = streak.counted(now);
        // One that times out spends the whole budget, perhaps before enough workflows have failed to prove an
        // outage.
        let counts = result == CallResult::Timeout || !(is_excusable && is_excused(caller));
        if counts {
            self.slow_start.record_failure();
        }
        let down =
            counted.failures >= FAILURE_THRESHOLD && counted.callers >= self.caller_threshold;
        (down.then(|| self.open(Cause::Down(call), caller, now)), counts)
    }

    /// Opens the breaker. `caller` is the one whose call failed last.
    pub(super) fn open(&mut self, cause: Cause, caller: Caller, now: Instant) -> Change {
        let mut breaker = OpenBreaker::new(cause, self.shares_probes, now);
        let streaks = std::mem::take(&mut self.streaks);
        match cause {
            Cause::Down(call) => {
                for caller in streaks[call as usize].callers() {
                    breaker.record_failed(caller, call);
                }
            }
            Cause::Refused(call) => breaker.record_failed(caller, call),
        }
        self.slow_start.restart();
        self.unreported_answer = None;
        self.breaker = Some(breaker);
        self.held.record_seen(now);
        self.held.recount(self.breaker.as_ref());
        Change::Opened(cause)
    }
}
