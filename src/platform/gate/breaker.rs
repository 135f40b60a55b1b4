//! The open circuit breaker: which calls probe the platform, and when.
//!
//! An open breaker admits one probe per interval, and a probe that gets no answer does not delay the next.
//! While session calls fail, callers that have not failed in this pause probe first, and sooner: the fault
//! may be that of a workflow, a locale or a user. If no request is there to probe, a token call that
//! succeeds makes the breaker half-open: the next request is the probe.

use std::{collections::HashSet, ops::RangeInclusive, time::Duration};

use tokio::time::Instant;

use super::{
    decision::{Caller, Cause, Decision, Refusal},
    probe_permits::ProbePermits,
};
use crate::session::Call;

/// The interval between probes doubles from the start of this range to its end. Without jitter: people wait
/// for the result of the next probe.
const DOWN: RangeInclusive<Duration> = Duration::from_millis(750)..=Duration::from_millis(2_500);
/// Longer, because an operator has to fix a setting first.
const REFUSED: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(30);
/// The interval of probes by workflows that have not failed in this pause.
const OTHER_WORKFLOW: Duration = Duration::from_millis(200);
/// The shortest interval of probes by callers that have not failed, of workflows that have. It grows to the
/// age of the pause divided by [`OTHER_CALLER_GROWTH`], because this is most likely an outage.
const OTHER_CALLER: Duration = Duration::from_millis(250);
const OTHER_CALLER_GROWTH: u32 = 12;

/// How long a caller waits for others that are more likely to succeed.
const YIELD: Duration = Duration::from_millis(50);
/// Failed probes in a row by one request that close the breaker. Other requests would have probed in
/// between, so that none waits, and the fault may be that request's alone.
const LONE_FAILURES: u32 = 3;

pub(super) struct OpenBreaker {
    pub(super) cause: Cause,
    is_half_open: bool,
    interval: Duration,
    next_probe: Instant,
    opened: Instant,
    /// When the last probe began, or the breaker opened.
    last_probe: Instant,
    /// The callers that probe. Usually one: an unanswered probe does not delay the next.
    probes: HashSet<u64>,
    /// The caller of the last failed probe, and how many in a row were its own.
    last_failed: Option<(u64, u32)>,
    /// The callers and the workflows that have failed in this pause.
    failed: HashSet<u64>,
    failed_workflows: HashSet<u64>,
    /// A probe has failed since a request last made room for others.
    is_room_to_make: bool,
    /// The last refusal may be its workflow's fault.
    may_refuse_workflow: bool,
    /// The permits to probe, if the replicas share them.
    pub(super) permits: Option<ProbePermits>,
}

/// How likely a caller's probe is to succeed, the likeliest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    OtherWorkflow,
    OtherCaller,
    Failed,
}

/// What a failed call says about an open breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FailedProbe {
    /// Nothing: it was no probe.
    NoProbe,
    /// The platform is still down.
    OneOfSeveral,
    /// Only this caller's probes fail.
    Alone,
}

impl OpenBreaker {
    /// `shares_probes`: whether replicas share the probes of a platform that is down. A key that one is refused may be
    /// its own.
    pub(super) fn new(cause: Cause, shares_probes: bool, now: Instant) -> Self {
        let interval = *cause.probe_intervals().start();
        Self {
            cause,
            is_half_open: false,
            interval,
            next_probe: now + interval,
            opened: now,
            last_probe: now,
            probes: HashSet::new(),
            last_failed: None,
            failed: HashSet::new(),
            failed_workflows: HashSet::new(),
            is_room_to_make: true,
            may_refuse_workflow: false,
            permits: (shares_probes && matches!(cause, Cause::Down(_)))
                .then(|| ProbePermits::new(now)),
        }
    }

    /// Returns whether the breaker blocks this call.
    ///
    /// A platform that refuses the token call may still start sessions with the tokens it gave.
    pub(super) fn blocks(&self, call: Call) -> bool {
        match self.cause {
            Cause::Down(_) => true,
            Cause::Refused(refused) => call == refused,
        }
    }

    pub(super) fn is_half_open(&self) -> bool {
        self.is_half_open
    }

    /// Returns whether a request probes.
    pub(super) fn is_probed_by_request(&self) -> bool {
        self.probes.iter().any(|id| *id != Caller::IDLE.id)
    }

    pub(super) fn rank(&self, caller: Caller) -> Rank {
        if self.failed.contains(&caller.id) {
            Rank::Failed
        } else if self.failed_workflows.contains(&caller.workflow) {
            Rank::OtherCaller
        } else {
            Rank::OtherWorkflow
        }
    }

    /// `better_waits`: whether a caller of a better rank waits to probe.
    pub(super) fn decide(&self, caller: Caller, better_waits: bool, now: Instant) -> Decision {
        if self.probes.contains(&caller.id) {
            // The token call of a probe was answered. Its session call needs a permit, too, but is due at once.
            let permits = self.permits.as_ref();
            return permits.map_or(Decision::Proceed, |permits| permits.decide(true, false, now));
        }
        let failed_last = self.last_failed.is_some_and(|(last, _)| last == caller.id);
        let yields = if better_waits {
            YIELD * 2
        } else if failed_last {
            YIELD
        } else {
            Duration::ZERO
        };
        let due = self.next_probe_of(caller) + yields;
        match &self.permits {
            _ if due > now => Decision::WaitUntil(due),
            Some(permits) => permits.decide(false, better_waits || failed_last, now),
            None => Decision::Probe,
        }
    }

    fn next_probe_of(&self, caller: Caller) -> Instant {
        let probing = !self.probes.is_empty();
        if self.is_half_open && !probing && caller != Caller::IDLE {
            return self.last_probe;
        }
        // The token call is the same for all, so that no caller is likelier to succeed.
        let may_differ = self.cause.is_session_outage() || self.may_refuse_workflow;
        if probing || !may_differ || caller == Caller::IDLE {
            return self.next_probe;
        }
        let interval = match self.rank(caller) {
            Rank::OtherWorkflow => OTHER_WORKFLOW,
            Rank::OtherCaller => {
                let age = self.last_probe - self.opened;
                (age / OTHER_CALLER_GROWTH).max(OTHER_CALLER)
            }
            Rank::Failed => self.interval,
        };
        self.next_probe.min(self.last_probe + interval)
    }

    pub(super) fn start_probe(&mut self, caller: Caller, now: Instant) {
        if let Some(permits) = &mut self.permits {
            permits.take();
        }
        // A second call is no probe of its own.
        if self.probes.insert(caller.id) {
            self.interval = (self.interval * 2).min(*self.cause.probe_intervals().end());
            self.next_probe = now + self.interval;
            self.last_probe = now;
        }
    }

    /// Records that a call of this caller is due, and that it needs a permit.
    pub(super) fn want_permit(&mut self, caller: Caller, now: Instant) {
        let is_urgent = self.cause.is_session_outage()
            && caller != Caller::IDLE
            && self.rank(caller) != Rank::Failed;
        if let Some(permits) = &mut self.permits {
            permits.want(self.probes.contains(&caller.id), is_urgent, now);
        }
    }

    /// Records that a call of this caller failed in the pause, or just before.
    pub(super) fn record_failed(&mut self, caller: Caller, call: Call) {
        if caller != Caller::IDLE {
            self.failed.insert(caller.id);
            if call.makes_session() {
                self.failed_workflows.insert(caller.workflow);
            }
        }
    }

    /// Ends the caller's probe as failed, if it has one. Returns what that means.
    pub(super) fn record_failed_probe(&mut self, caller: Caller, now: Instant) -> FailedProbe {
        if !self.end_failed_probe(caller) {
            return FailedProbe::NoProbe;
        }
        if let Cause::Refused(_) = self.cause {
            // The answer is no longer a refusal, so the setting may be changing: probe again soon.
            self.interval = *self.cause.probe_intervals().start();
            self.next_probe = now + self.interval;
            return FailedProbe::OneOfSeveral;
        }
        let alone =
            self.last_failed.is_some_and(|(last, n)| last == caller.id && n >= LONE_FAILURES);
        if alone && caller != Caller::IDLE { FailedProbe::Alone } else { FailedProbe::OneOfSeveral }
    }

    /// Ends the caller's probe, if it has one, as failed. Returns whether it had one.
    pub(super) fn end_failed_probe(&mut self, caller: Caller) -> bool {
        let was_probe = self.probes.remove(&caller.id);
        if was_probe {
            self.is_room_to_make = true;
            let before =
                self.last_failed.filter(|(last, _)| *last == caller.id).map_or(0, |(_, n)| n);
            self.last_failed = Some((caller.id, before + 1));
        }
        was_probe
    }

    /// Records what the last refusal may mean.
    pub(super) fn record_refusal(&mut self, refusal: Refusal) {
        self.may_refuse_workflow = refusal != Refusal::Setting;
    }

    /// Returns whether a request should make room for others, and assumes that it does.
    pub(super) fn take_room_to_make(&mut self) -> bool {
        std::mem::take(&mut self.is_room_to_make)
    }

    /// Opens a half-open breaker fully. Returns whether it was half-open.
    pub(super) fn reopen(&mut self) -> bool {
        std::mem::take(&mut self.is_half_open)
    }

    pub(super) fn half_open(&mut self) {
        self.is_half_open = true;
    }

    /// Makes the breaker half-open because another replica was answered. Probes that began before prove nothing now.
    pub(super) fn half_open_after_answer(&mut self, now: Instant) {
        self.is_half_open = true;
        self.probes.clear();
        self.next_probe = now;
        if let Some(permits) = &mut self.permits {
            permits.forget_wishes();
        }
    }

    /// Returns whether the success of this call closes the breaker.
    pub(super) fn is_closed_by(&self, caller: Caller, call: Call) -> bool {
        match self.cause {
            // A token call that was in flight when the key was refused proves nothing.
            Cause::Refused(refused) => call == refused && self.probes.contains(&caller.id),
            // A session proves that token calls work, too.
            Cause::Down(failing) => call == failing || call.makes_session(),
        }
    }

    /// Ends the caller's probe without a result. Returns whether it had one.
    pub(super) fn release_probe(&mut self, caller: Caller) -> bool {
        self.probes.remove(&caller.id)
    }
}

impl Cause {
    /// Returns whether calls fail that make a session: the fault may be that of a workflow, a locale or a user.
    pub(super) fn is_session_outage(self) -> bool {
        matches!(self, Self::Down(call) if call.makes_session())
    }

    fn probe_intervals(self) -> RangeInclusive<Duration> {
        match self {
            Self::Down(_) => DOWN,
            Self::Refused(_) => REFUSED,
        }
    }
}
