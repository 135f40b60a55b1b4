//! Who may call, decided from what the last calls met. No clock of its own, no waiting: just rules.

use std::{collections::HashSet, time::Duration};

use tokio::time::Instant;

use super::{
    breaker::{Cause, OpenBreaker},
    paused_clock::Pauses,
};
use crate::{session::Call, telemetry::metrics::PausedFor};

/// Failures in a row after which the platform counts as down …
const FAILURES: u32 = 5;
/// … if they are those of so many requests: one that always fails proves nothing.
const REQUESTS: usize = 3;
/// Failures this far apart are not in a row: with so little to do, they may well be one request's.
const STREAK_ENDS: Duration = Duration::from_secs(60);

/// Calls at once while nothing shows that the platform answers: when it does not, few have asked in
/// vain.
const UNPROVEN: u32 = 4;
/// So many more with each good answer …
const GROWTH: u32 = 2;
/// … up to so many, which are proof enough to call freely …
const PROOF: u32 = 4;
/// … until there has been nothing to call for this long.
const PROOF_ENDS: Duration = Duration::from_millis(100);
/// A platform that says nothing at all for this long is slow, rather than away: then all may call.
const SLOW: Duration = Duration::from_millis(500);

/// How long who has failed waits to see whether the others do.
const DOUBT: Duration = Duration::from_secs(1);

/// Who is asked again to call later lets others go first for a tenth of that time, and at least so long.
const LEAST_TURN: Duration = Duration::from_secs(1);

/// Who calls: a number for the request, the same whenever it is delivered.
pub(super) type Caller = u64;

/// What a call met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CallResult {
    /// A platform that works, whatever it thinks of the request.
    Success,
    /// A failure that may pass.
    Failure,
    /// The wish to be left alone for a while, of a platform that works.
    Later(Duration),
    /// The same of one that fails.
    Away(Duration),
    /// A refusal that is not about the request.
    Refusal,
}

/// The answer to whoever wants to call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    Go,
    /// Go as one that finds out whether the platform works again.
    Probe,
    /// Not before then, or something changes.
    WaitUntil(Instant),
    /// Not before something changes.
    Wait,
}

/// What a report changed, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    OpenBreaker(Cause),
    Opened,
    /// It fails for one request alone, as it seems: the others go on.
    Doubted,
}

#[derive(Default)]
pub(super) struct State {
    later_until: Option<Instant>,
    /// Whose call was told so last, and until when that one waits.
    told: Option<(Caller, Instant)>,
    shut: Option<OpenBreaker>,
    /// By call: one may work while the other does not.
    streaks: [Streak; 2],
    under_way: u32,
    /// Good answers that vouch for the next, and the latest.
    proof: u32,
    last_good: Option<Instant>,
    /// Since when calls are under way and none has been answered.
    silent_since: Option<Instant>,
    pauses: Pauses,
}

/// Failures without a success between.
#[derive(Default)]
struct Streak {
    failures: u32,
    callers: HashSet<Caller>,
    last: Option<Instant>,
}

impl State {
    /// Cause only a probe can open the gate, if it is so.
    pub(super) fn open_cause(&self) -> Option<Cause> {
        self.shut.as_ref().map(OpenBreaker::why)
    }

    /// Whether the platform has asked to be left alone until later than now.
    pub(super) fn asked_to_wait(&self, now: Instant) -> bool {
        self.later_until.is_some_and(|until| until > now)
    }

    /// Whether such a call is held back, for whatever reason but a window that is full.
    pub(super) fn holds(&self, call: Call, now: Instant) -> bool {
        self.asked_to_wait(now) || self.shut.as_ref().is_some_and(|shut| shut.holds(call))
    }

    /// For how long a failure of a call that began then may yet turn out to be one of a streak that shuts
    /// the gate: long where others fail, too, or are under way; for a moment where there is nobody else,
    /// since others may be about to come; not at all where somebody has been answered well since.
    pub(super) fn outage_wait(&self, call: Call, began: Instant) -> Duration {
        let others_fail = self.streaks[call as usize].callers.len() > 1;
        let nobody_answered = self.last_good.is_none_or(|last| last < began);
        match (others_fail, nobody_answered) {
            (true, _) => DOUBT,
            (_, true) if self.under_way > 0 => DOUBT,
            (_, true) => DOUBT / 4,
            _ => Duration::ZERO,
        }
    }

    /// For how long calls were held back until now.
    pub(super) fn paused_for(&mut self, now: Instant) -> PausedFor {
        self.pauses.look(self.open_cause(), self.later_until, now)
    }

    /// Calls under way.
    #[cfg(test)]
    pub(super) fn under_way(&self) -> u32 {
        self.under_way
    }

    /// What somebody who wants to call has to do.
    pub(super) fn decide(&self, caller: Caller, call: Call, now: Instant) -> Decision {
        let own = self.told.filter(|(told, _)| *told == caller).map(|(_, until)| until);
        if let Some(until) = self.later_until.max(own).filter(|until| *until > now) {
            return Decision::WaitUntil(until);
        }
        match &self.shut {
            Some(shut) if shut.holds(call) => shut.decide(caller, now),
            _ if self.under_way < self.window(now) => Decision::Go,
            _ => match self.silent_since {
                Some(since) if self.failures() == 0 => Decision::WaitUntil(since + SLOW),
                _ => Decision::Wait,
            },
        }
    }

    /// A call goes on its way, as decided: with `Go` or as a `Probe`.
    pub(super) fn enter(&mut self, caller: Caller, decision: Decision, now: Instant) {
        if self.is_idle(now) {
            self.proof = 0;
        }
        self.under_way += 1;
        self.silent_since.get_or_insert(now);
        if let (Decision::Probe, Some(shut)) = (decision, &mut self.shut) {
            shut.start_probe(caller, now);
        }
    }

    /// A call that went has ended without an answer that says anything.
    pub(super) fn abandoned(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
        if self.under_way == 0 {
            self.silent_since = None;
        }
    }

    /// A call that went has met this.
    pub(super) fn report(
        &mut self,
        caller: Caller,
        call: Call,
        met: CallResult,
        now: Instant,
    ) -> Option<Change> {
        self.paused_for(now);
        self.abandoned();
        self.silent_since = (self.under_way > 0).then_some(now);
        match met {
            CallResult::Success => self.success(caller, call, now),
            CallResult::Later(wait) => {
                self.leave_alone(caller, wait, now);
                self.forget(caller);
                None
            }
            CallResult::Away(wait) => {
                self.leave_alone(caller, wait, now);
                self.failure(caller, call, now)
            }
            CallResult::Failure => self.failure(caller, call, now),
            CallResult::Refusal => self.refusal(caller, now),
        }
    }

    /// A request is done with, or gives up: should it have been a probe, somebody else may be it.
    /// Whether it was.
    pub(super) fn forget(&mut self, caller: Caller) -> bool {
        self.shut.as_mut().is_some_and(|shut| shut.forget(caller))
    }

    /// Calls that may be under way at once.
    fn window(&self, now: Instant) -> u32 {
        let proof = if self.is_idle(now) { 0 } else { self.proof };
        let slow = self.silent_since.is_some_and(|since| now - since >= SLOW);
        match self.failures() {
            _ if proof >= PROOF => u32::MAX,
            0 if slow => u32::MAX,
            0 => UNPROVEN + GROWTH * proof,
            // No more than would complete the streak.
            failures => FAILURES.saturating_sub(failures).clamp(1, UNPROVEN),
        }
    }

    /// Of the call that fails most.
    fn failures(&self) -> u32 {
        self.streaks.iter().map(|streak| streak.failures).max().unwrap_or_default()
    }

    fn is_idle(&self, now: Instant) -> bool {
        self.under_way == 0 && self.last_good.is_none_or(|last| now - last > PROOF_ENDS)
    }

    fn success(&mut self, caller: Caller, call: Call, now: Instant) -> Option<Change> {
        self.last_good = Some(now);
        self.proof = self.proof.saturating_add(1);
        match call {
            // Who makes sessions has given tokens.
            Call::Session => self.streaks = Default::default(),
            Call::Token => self.streaks[call as usize] = Streak::default(),
        }
        self.shut.take_if(|shut| shut.is_opened_by(caller, call)).map(|_| Change::Opened)
    }

    fn leave_alone(&mut self, caller: Caller, wait: Duration, now: Instant) {
        let until = now + wait;
        // Where it is the same one that is told so again, it may be about that one alone: others
        // shall get their turn between.
        let again = self.told.is_some_and(|(told, _)| told == caller);
        let turn = if again { (wait / 10).max(LEAST_TURN) } else { Duration::ZERO };
        self.told = Some((caller, until + turn));
        self.later_until = self.later_until.max(Some(until));
        self.proof = 0;
    }

    fn failure(&mut self, caller: Caller, call: Call, now: Instant) -> Option<Change> {
        if let Some(shut) = &mut self.shut {
            // Where it is always the same one that fails, the platform may be well: it is tried anew.
            let alone = shut.failed(caller, now);
            return self.shut.take_if(|_| alone).map(|_| Change::Doubted);
        }
        let streak = &mut self.streaks[call as usize];
        if streak.last.is_some_and(|last| now - last > STREAK_ENDS) {
            *streak = Streak::default();
        }
        streak.last = Some(now);
        streak.failures = streak.failures.saturating_add(1);
        if streak.callers.len() < REQUESTS {
            streak.callers.insert(caller);
        }
        let down = streak.failures >= FAILURES && streak.callers.len() >= REQUESTS;
        down.then(|| self.shut_for(Cause::Down(call), now))
    }

    fn refusal(&mut self, caller: Caller, now: Instant) -> Option<Change> {
        match &mut self.shut {
            Some(shut) if shut.why() == Cause::Refused => {
                shut.refused(caller);
                None
            }
            // It is up again, then, but refuses us.
            _ => Some(self.shut_for(Cause::Refused, now)),
        }
    }

    fn shut_for(&mut self, why: Cause, now: Instant) -> Change {
        self.streaks = Default::default();
        self.proof = 0;
        self.shut = Some(OpenBreaker::new(why, now));
        Change::OpenBreaker(why)
    }
}
