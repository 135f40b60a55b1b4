//! The rules for refused calls, and for the pauses that they begin.

use tokio::time::Instant;

use super::{
    decision::{Caller, Cause, Change, Decision, Refusal},
    state::GateState,
};
use crate::session::Call;

impl GateState {
    /// Makes the breaker half-open if a probe is due and no request is held: the next request is the probe.
    /// Returns what to do otherwise.
    pub(super) fn half_open_if_due(&mut self, now: Instant) -> Result<Change, Decision> {
        if !self.needs_idle_probe() {
            return Err(Decision::Wait);
        }
        let decision = self.decide(Caller::IDLE, Call::Deeplink, now);
        match &mut self.breaker {
            // No call follows, so that no permit is needed.
            Some(breaker) if matches!(decision, Decision::Probe | Decision::AwaitPermit { .. }) => {
                self.paused_clock.advance(Some(breaker.cause), self.deferrals.all_until(), now);
                breaker.half_open();
                Ok(Change::HalfOpenedForNext)
            }
            _ => Err(decision),
        }
    }

    /// Records a refused call. Returns what it changed.
    pub(super) fn record_refusal(
        &mut self,
        caller: Caller,
        call: Call,
        refusal: Refusal,
        now: Instant,
    ) -> Option<Change> {
        let cause = Cause::Refused(call);
        let goes_on = self.breaker.as_ref().is_some_and(|breaker| breaker.cause == cause);
        self.refusals.record_refused(caller, refusal, !goes_on);
        // Even if the platform was down, it responds again, and refuses the call.
        let opened = (!goes_on).then(|| self.open(cause, caller, now));
        let breaker = self.breaker.as_mut()?;
        breaker.record_refusal(refusal);
        if opened.is_some() {
            return opened;
        }
        breaker.record_failed(caller, call);
        breaker.end_failed_probe(caller);
        let reopened = breaker.reopen();
        self.held.recount(self.breaker.as_ref());
        reopened.then_some(Change::Reopened)
    }
}
