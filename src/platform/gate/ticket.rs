//! A delivery's access to the gate: waits until a call may be made.

use std::{sync::atomic::Ordering, time::Duration};

use tokio::time::{Instant, timeout, timeout_at};

use super::{
    decision::{Caller, Decision},
    permit::CallPermit,
    room::Place,
    shared::Gate,
};
use crate::{platform::rate_limit::RatePermit, session::Call};

/// How long a probe that has a rate-limit permit waits for the permit to probe: a little longer than Redis may take.
const RATE_PERMIT_KEPT: Duration = Duration::from_millis(300);

/// One delivery's access to the gate, for all its calls.
pub(crate) struct Ticket<'a> {
    gate: &'a Gate,
    caller: Caller,
    arrived: Instant,
    rate_permit: Option<RatePermit>,
    /// Another ticket of the same caller may have the probe.
    has_probed: bool,
}

/// Counts a request as waiting at the gate until dropped.
struct Waiting<'a> {
    gate: &'a Gate,
    caller: Caller,
}

impl<'a> Waiting<'a> {
    fn start(gate: &'a Gate, caller: Caller, arrived: Instant) -> Self {
        gate.waiting.fetch_add(1, Ordering::Relaxed);
        gate.state.lock().start_waiting(caller, arrived, Instant::now());
        Self { gate, caller }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.gate.state.lock().end_waiting(self.caller, Instant::now());
        if self.gate.waiting.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.gate.wake_waiting();
        }
    }
}

impl Gate {
    pub(crate) fn ticket(&self, user_id: &str, workflow_id: &str) -> Ticket<'_> {
        self.ticket_for(Caller::new(user_id, workflow_id))
    }

    /// A ticket for a probe that no request makes, once one is needed.
    pub(crate) async fn idle_ticket(&self) -> Ticket<'_> {
        self.until_probe_needed(true).await;
        self.ticket_for(Caller::IDLE)
    }

    fn ticket_for(&self, caller: Caller) -> Ticket<'_> {
        Ticket { gate: self, caller, arrived: Instant::now(), rate_permit: None, has_probed: false }
    }

    /// Waits until this call would be allowed.
    async fn until_allowed(&self, caller: Caller, arrived: Instant, call: Call) {
        let _waiting = (caller != Caller::IDLE).then(|| Waiting::start(self, caller, arrived));
        let mut changed = self.changed.subscribe();
        loop {
            let change = changed.changed();
            // `change` cannot fail: `self` holds the sender.
            let _ = match self.decide(caller, call) {
                Decision::Proceed | Decision::Probe => return,
                Decision::WaitUntil(at) | Decision::AwaitPermit { until: at } => {
                    timeout_at(at, change).await
                }
                Decision::Wait => Ok(change.await),
            };
        }
    }
}

impl<'a> Ticket<'a> {
    /// Requests a rate-limit permit for a call that will follow soon, so that it need not wait then.
    pub(crate) fn reserve(&mut self, call: Call) {
        if self.rate_permit.is_none() {
            self.rate_permit = self.gate.rate_limiter.as_ref().map(|limiter| limiter.request(call));
        }
    }

    /// Returns the rate-limit permit for other requests to use: no call will follow soon.
    pub(crate) fn cancel_reservation(&mut self) {
        self.rate_permit = None;
    }

    /// How long ago the request arrived.
    pub(crate) fn age(&self) -> Duration {
        self.arrived.elapsed()
    }

    pub(crate) fn place(&self) -> Place<'a> {
        Place { gate: self.gate, caller: self.caller, arrived: self.arrived }
    }

    /// Waits until a probe may be made. `None` if a request probes instead, or none is needed any more.
    ///
    /// A half-open breaker needs none: its permits are for requests.
    pub(crate) async fn acquire_idle_probe(&mut self) -> Option<CallPermit<'a>> {
        let gate = self.gate;
        tokio::select! {
            biased;
            () = gate.until_probe_needed(false) => None,
            permit = self.acquire(Call::Token) => Some(permit).filter(CallPermit::is_probe),
        }
    }

    /// Waits until a call may be made.
    pub(crate) async fn acquire(&mut self, call: Call) -> CallPermit<'a> {
        let gate = self.gate;
        let caller = self.caller;
        loop {
            let decision = gate.decide(caller, call);
            if let Decision::AwaitPermit { .. } = decision
                && self.rate_permit.as_ref().is_some_and(RatePermit::is_granted)
            {
                // The rate limit took longer than the permit to probe was valid. A call needs both at once.
                let allowed = gate.until_allowed(caller, self.arrived, call);
                let _ = timeout(RATE_PERMIT_KEPT, allowed).await;
                continue;
            }
            if !decision.allows_call() {
                // Waiting requests hold no permits: they would all use them at once when the pause ends.
                self.cancel_reservation();
                gate.until_allowed(caller, self.arrived, call).await;
            }
            self.reserve(call);
            if let Some(permit) = &mut self.rate_permit {
                let requested = Instant::now();
                permit.granted().await;
                gate.metrics.platform.rate_waited(requested.elapsed());
            }
            // A pause may have begun meanwhile.
            let mut state = gate.state.lock();
            let now = Instant::now();
            let decision = state.decide(caller, call, now);
            if decision.allows_call() {
                let began_in_pause = state.is_paused(call, now);
                state.start_call(caller, decision, now);
                if let Some(permit) = self.rate_permit.take() {
                    permit.consume();
                }
                let is_probe = decision == Decision::Probe;
                self.has_probed |= is_probe;
                return CallPermit {
                    gate,
                    caller,
                    call,
                    is_probe,
                    began_in_pause,
                    reported: false,
                };
            }
        }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if self.has_probed && self.gate.state.lock().release_probe(self.caller) {
            self.gate.wake_waiting();
        }
    }
}
