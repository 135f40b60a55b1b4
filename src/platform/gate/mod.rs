//! The gate in front of every call to the platform: circuit breaker, `Retry-After`, slow start.
//!
//! While calls are pointless, because the platform is down, asked for a pause or refuses the API key,
//! the gate holds requests back. A waiting request keeps its place and spends neither an attempt nor a
//! call; one request at a time probes whether the platform works again. The rules are in `state`. A call
//! that they allow then waits for a permit of the rate limit that all replicas share (`rate_limit`).

mod breaker;
mod decision;
mod deferrals;
mod evidence;
mod held;
mod log;
mod paused_clock;
mod slow_start;
mod state;
mod streak;
#[cfg(test)]
mod tests;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout, timeout_at},
};

pub(crate) use self::decision::FailureScope;
use self::{
    decision::{CallResult, Caller, Decision},
    log::BreakerLog,
    state::GateState,
};
use super::{
    error::{CallError, TransientCause},
    rate_limit::{RateLimiter, RatePermit},
};
use crate::{session::Call, telemetry::metrics::Metrics};

/// How often a request that waits looks whether it must make room for others.
const ROOM_CHECK: Duration = Duration::from_secs(1);

/// How many turns a request stays that fails in an outage while there are free slots. Then it leaves, too: another
/// replica may know that the platform works.
const TURNS_WITH_FREE_SLOTS: u32 = 3;

/// Decides which calls to the platform may be made, and when.
pub(crate) struct Gate {
    state: Mutex<GateState>,
    rate_limiter: Option<RateLimiter>,
    /// Wakes waiting requests when a decision may have changed.
    changed: watch::Sender<()>,
    /// Requests that the gate holds back.
    waiting: AtomicUsize,
    metrics: Arc<Metrics>,
    log: Mutex<BreakerLog>,
}

/// One delivery's access to the gate, for all its calls.
pub(crate) struct Ticket<'a> {
    gate: &'a Gate,
    caller: Caller,
    arrived: Instant,
    rate_permit: Option<RatePermit>,
}

/// A request's place at the gate while it waits there.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    gate: &'a Gate,
    caller: Caller,
    arrived: Instant,
}

/// Why a request makes room for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// The platform wants no calls for this request for this long.
    Deferred(Duration),
    /// It has failed in an outage, as have all others in flight.
    Failed,
}

/// A call that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FailedCall {
    pub(crate) error: CallError,
    pub(crate) scope: FailureScope,
}

/// Permits one call. If dropped without a report, the call counts as neither success nor failure.
pub(crate) struct CallPermit<'a> {
    gate: &'a Gate,
    caller: Caller,
    call: Call,
    is_probe: bool,
    /// Whether calls were paused when this one began, so that it belongs to a probe.
    began_in_pause: bool,
    reported: bool,
}

impl Gate {
    /// Creates a gate with a closed circuit breaker.
    ///
    /// `slots`: how many requests may be in flight.
    pub(super) fn new(
        rate_limiter: Option<RateLimiter>,
        slots: u16,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            state: Mutex::new(GateState::new(slots)),
            rate_limiter,
            changed: watch::Sender::new(()),
            waiting: AtomicUsize::new(0),
            metrics,
            log: Mutex::default(),
        }
    }

    pub(crate) fn ticket(&self, user_id: &str, workflow_id: &str) -> Ticket<'_> {
        self.ticket_for(Caller::new(user_id, workflow_id))
    }

    /// A ticket for a probe that no request makes.
    pub(super) fn idle_ticket(&self) -> Ticket<'_> {
        self.ticket_for(Caller::IDLE)
    }

    fn ticket_for(&self, caller: Caller) -> Ticket<'_> {
        Ticket { gate: self, caller, arrived: Instant::now(), rate_permit: None }
    }

    /// Returns whether the circuit breaker is open, not half-open. A `Retry-After` does not open it.
    pub(crate) fn is_breaker_open(&self) -> bool {
        self.state.lock().open_cause().is_some()
    }

    /// Returns whether calls are paused. Waiting for the rate limiter is not a pause.
    pub(crate) fn is_paused(&self) -> bool {
        let state = self.state.lock();
        state.open_cause().is_some() || state.is_retry_after_running(Instant::now())
    }

    /// Brings the metrics of pauses up to date.
    pub(crate) fn update_metrics(&self) {
        let paused = self.is_paused();
        let paused_for = self.state.lock().advance_paused_clock(Instant::now());
        self.metrics.platform.set_paused(paused, paused_for);
    }

    /// Waits until calls are paused.
    pub(crate) async fn until_paused(&self) {
        // Cannot fail: `self` holds the sender.
        let _ = self.changed.subscribe().wait_for(|()| self.is_paused()).await;
    }

    /// How long to wait to see whether a failed call that began at `began` is part of an outage.
    ///
    /// If calls are paused within that time, the failure says nothing about the request.
    pub(crate) fn outage_wait(&self, call: Call, began: Instant) -> Duration {
        self.state.lock().outage_wait(call, began, Instant::now())
    }

    /// Waits until the circuit breaker is open and no request is there to probe.
    pub(super) async fn until_probe_needed(&self) {
        let needed = || self.state.lock().needs_idle_probe();
        // Cannot fail: `self` holds the sender.
        let _ = self.changed.subscribe().wait_for(|()| needed()).await;
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
                Decision::WaitUntil(at) => timeout_at(at, change).await,
                Decision::Wait => Ok(change.await),
            };
        }
    }

    fn decide(&self, caller: Caller, call: Call) -> Decision {
        self.state.lock().decide(caller, call, Instant::now())
    }

    fn wake_waiting(&self) {
        self.changed.send_replace(());
    }
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

    pub(crate) fn place(&self) -> Place<'a> {
        Place { gate: self.gate, caller: self.caller, arrived: self.arrived }
    }

    /// Waits until a call may be made.
    pub(crate) async fn acquire(&mut self, call: Call) -> CallPermit<'a> {
        let gate = self.gate;
        let caller = self.caller;
        loop {
            if !gate.decide(caller, call).allows_call() {
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

impl Place<'_> {
    /// Waits until the request should make room for those in the queue, `min_stay` at least. In an outage, it
    /// may stay for `turn` after it arrived, and longer while the worker's slots are not all taken (`is_full`).
    pub(crate) async fn until_room_is_needed(
        self,
        is_full: impl Fn() -> bool,
        min_stay: Duration,
        turn: Duration,
    ) -> Room {
        sleep(min_stay).await;
        let mut changed = self.gate.changed.subscribe();
        loop {
            if let Some(room) = self.make_room(is_full(), turn) {
                return room;
            }
            // `changed` does not report that a slot is taken, or that time passes.
            let _ = timeout(ROOM_CHECK, changed.changed()).await;
        }
    }

    fn make_room(self, is_full: bool, turn: Duration) -> Option<Room> {
        let now = Instant::now();
        if !is_full && now < self.arrived + turn * TURNS_WITH_FREE_SLOTS {
            return None;
        }
        let mut state = self.gate.state.lock();
        if is_full && let Some(until) = state.make_room_while_deferred(self.caller, now) {
            return Some(Room::Deferred(until - now));
        }
        state.make_room(self.caller, now >= self.arrived + turn).then_some(Room::Failed)
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let was_probe = self.gate.state.lock().release_probe(self.caller);
        if was_probe {
            self.gate.wake_waiting();
        }
    }
}

impl CallPermit<'_> {
    /// Returns whether this call probes whether the platform works again.
    pub(super) fn is_probe(&self) -> bool {
        self.is_probe
    }

    /// Reports the call's result to the gate.
    pub(super) fn report<T>(mut self, answer: Result<T, CallError>) -> Result<T, FailedCall> {
        self.reported = true;
        let result = call_result(&answer);
        let (change, scope, pause_began, is_paused) = {
            let mut state = self.gate.state.lock();
            let now = Instant::now();
            let was_running = state.is_retry_after_running(now);
            let (change, scope) =
                state.report(self.caller, self.call, result, self.began_in_pause, now);
            let pause_began = !was_running && state.is_retry_after_running(now);
            (change, scope, pause_began, state.is_paused(self.call, now))
        };
        if pause_began {
            log::retry_after(result);
        }
        self.gate.log.lock().report(change, answer.as_ref().err());
        // In a pause, the idle prober waits, too, which is not counted.
        if change.is_some() || is_paused || self.gate.waiting.load(Ordering::Relaxed) > 0 {
            self.gate.wake_waiting();
        }
        answer.map_err(|error| FailedCall { error, scope })
    }
}

impl Drop for CallPermit<'_> {
    fn drop(&mut self) {
        if !self.reported {
            self.gate.state.lock().end_call();
            self.gate.wake_waiting();
        }
    }
}

fn call_result<T>(answer: &Result<T, CallError>) -> CallResult {
    match answer {
        Ok(_) | Err(CallError::Rejected(_) | CallError::Unauthorized) => CallResult::Success,
        Err(CallError::Refused(_)) => CallResult::Refused,
        Err(CallError::Transient { cause, .. }) => {
            match (cause.retry_after().filter(|wait| !wait.is_zero()), cause) {
                (Some(wait), TransientCause::RateLimited { .. }) => CallResult::RateLimited(wait),
                (Some(wait), _) => CallResult::Unavailable(wait),
                (None, TransientCause::Timeout { .. }) => CallResult::Timeout,
                (None, TransientCause::Closed { .. }) => CallResult::Closed,
                (
                    None,
                    TransientCause::Connection
                    | TransientCause::Tls(_)
                    | TransientCause::Proxy { .. },
                ) => CallResult::Unreachable,
                (None, _) => CallResult::Failure,
            }
        }
    }
}
