//! The gate that every call to the platform passes.
//!
//! It is shut while calling is of no use: for as long as the platform asks to be left alone, while it
//! fails for everyone, while it refuses our key. Then requests are held: they keep their place, spend
//! no attempt and no call, and one of them at a time finds out whether the platform works again.
//! `state` has the rules; behind them, `rate` keeps all replicas together within a limit.

mod log;
mod paused_clock;

mod breaker;
mod state;

use std::{
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

pub use self::breaker::Cause;
use self::{
    log::News,
    state::{CallResult, Caller, Decision, State},
};
use super::{
    error::CallError,
    rate_limit::{RateLimiter, RatePermit},
};
use crate::{session::Call, telemetry::metrics::Metrics};

/// Calls where no request is there to do so.
const IDLE: Caller = 0;

/// Decides who may call the platform, and when.
pub struct Gate {
    state: Mutex<State>,
    rate: Option<RateLimiter>,
    /// Tells those who are held that something may have changed.
    changed: watch::Sender<()>,
    held: AtomicUsize,
    metrics: Arc<Metrics>,
    news: Mutex<News>,
}

/// A request on its way to the platform.
pub struct Ticket<'a> {
    gate: &'a Gate,
    caller: Caller,
    permit: Option<RatePermit>,
}

/// A call that brought nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedCall {
    /// Cause.
    pub error: CallError,
    /// Calls are held back now, or were when this one began: so this failure says nothing about the
    /// request, and is not to be counted against it.
    pub during_pause: bool,
}

/// The right to make one call. Dropped without a report, it says nothing.
pub struct CallPermit<'a> {
    gate: &'a Gate,
    caller: Caller,
    call: Call,
    /// It is to find out whether the platform works again.
    probe: bool,
    /// It went while such calls were held back: by a probe, that is.
    while_held: bool,
    reported: bool,
}

impl Gate {
    /// Open.
    pub(super) fn new(rate: Option<RateLimiter>, metrics: Arc<Metrics>) -> Self {
        let (state, held) = (Mutex::default(), AtomicUsize::new(0));
        Self { state, rate, changed: watch::Sender::new(()), held, metrics, news: Mutex::default() }
    }

    /// A ticket for the request with this id.
    pub fn ticket(&self, request_id: &str) -> Ticket<'_> {
        // Two requests that share a hash are taken for one, and no harm comes of it.
        let mut hash = DefaultHasher::new();
        request_id.hash(&mut hash);
        self.ticket_of(hash.finish().max(IDLE + 1))
    }

    pub(super) fn idle_ticket(&self) -> Ticket<'_> {
        self.ticket_of(IDLE)
    }

    fn ticket_of(&self, caller: Caller) -> Ticket<'_> {
        Ticket { gate: self, caller, permit: None }
    }

    /// Cause only a probe can open the gate, if it is so. That the platform asked to wait is no such
    /// reason.
    fn open_cause(&self) -> Option<Cause> {
        self.state().open_cause()
    }

    /// Returns whether the circuit breaker is open.
    pub fn is_breaker_open(&self) -> bool {
        self.open_cause().is_some()
    }

    /// Whether calls are held back, for whatever reason but the rate.
    pub fn is_paused(&self) -> bool {
        let state = self.state();
        state.open_cause().is_some() || state.asked_to_wait(Instant::now())
    }

    /// Brings the metrics of pauses up to date.
    pub fn update_metrics(&self) {
        let (holding, so_far) = (self.is_paused(), self.state().paused_for(Instant::now()));
        self.metrics.platform_paused(holding, so_far);
    }

    /// Waits until calls are held back, and not for a moment only.
    pub async fn until_paused(&self) {
        let mut changed = self.changed.subscribe();
        while !self.is_paused() {
            // Never closed: the sender is ours.
            let _ = changed.changed().await;
        }
    }

    /// For how long to wait and see whether a call that began then, and failed, is one of those that
    /// shut the gate: then its failure says nothing about its request.
    pub fn outage_wait(&self, call: Call, began: Instant) -> Duration {
        self.state().outage_wait(call, began)
    }

    /// Waits until the gate is shut and holds no request, so that none would find out when to open it.
    pub(super) async fn until_unattended(&self) {
        let mut changed = self.changed.subscribe();
        while self.open_cause().is_none() || self.held.load(Ordering::Relaxed) > 0 {
            // Never closed: the sender is ours.
            let _ = changed.changed().await;
        }
    }

    /// Waits until a call would be let through.
    async fn until_open(&self, caller: Caller, call: Call) {
        let _held = (caller != IDLE).then(|| self.hold());
        let mut changed = self.changed.subscribe();
        while let Err(until) = self.lets_through(caller, call) {
            let later = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = changed.changed() => {}
                () = later => {}
            }
        }
    }

    /// Until when not, where it is known.
    fn lets_through(&self, caller: Caller, call: Call) -> Result<(), Option<Instant>> {
        match self.state().decide(caller, call, Instant::now()) {
            Decision::Go | Decision::Probe => Ok(()),
            Decision::WaitUntil(until) => Err(Some(until)),
            Decision::Wait => Err(None),
        }
    }

    fn hold(&self) -> Held<'_> {
        self.held.fetch_add(1, Ordering::Relaxed);
        Held(self)
    }

    fn news(&self) -> MutexGuard<'_, News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state is whole after every step, so a panic elsewhere does not spoil it.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("shut", &self.open_cause()).finish_non_exhaustive()
    }
}

/// A request that is held.
struct Held<'a>(&'a Gate);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if self.0.held.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.changed.send_replace(());
        }
    }
}

impl<'a> Ticket<'a> {
    /// Asks for leave to make a call soon, so that it need not be waited for then.
    pub fn reserve(&mut self, call: Call) {
        if self.permit.is_none() {
            self.permit = self.gate.rate.as_ref().map(|rate| rate.ask(call));
        }
    }

    /// No call is to come soon: somebody else shall have the leave.
    pub fn cancel_reservation(&mut self) {
        self.permit = None;
    }

    /// Waits until a call may be made.
    pub async fn acquire(&mut self, call: Call) -> CallPermit<'a> {
        let (gate, caller) = (self.gate, self.caller);
        loop {
            if gate.lets_through(caller, call).is_err() {
                // Leave is not saved up: all that is held would use it at once.
                self.cancel_reservation();
                gate.until_open(caller, call).await;
            }
            self.reserve(call);
            if let Some(permit) = &mut self.permit {
                let asked = Instant::now();
                permit.granted().await;
                gate.metrics.rate_waited(asked.elapsed());
            }
            // It may have been shut meanwhile.
            let (mut state, now) = (gate.state(), Instant::now());
            let decision = state.decide(caller, call, now);
            if let Decision::Go | Decision::Probe = decision {
                let while_held = state.holds(call, now);
                state.enter(caller, decision, now);
                if let Some(permit) = self.permit.take() {
                    permit.used();
                }
                let probe = decision == Decision::Probe;
                return CallPermit { gate, caller, call, probe, while_held, reported: false };
            }
        }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if self.gate.state().forget(self.caller) {
            self.gate.changed.send_replace(());
        }
    }
}

impl CallPermit<'_> {
    /// Whether this call is to find out if the platform works again.
    pub(super) fn is_probe(&self) -> bool {
        self.probe
    }

    /// Reports what the call met.
    pub(super) fn report<T>(mut self, answer: Result<T, CallError>) -> Result<T, FailedCall> {
        self.reported = true;
        let met = met(&answer);
        let (first, change, held) = {
            let (mut state, now) = (self.gate.state(), Instant::now());
            let first = !state.asked_to_wait(now);
            let change = state.report(self.caller, self.call, met, now);
            // Somebody else may have found out meanwhile that the platform is back.
            (first, change, self.while_held || state.holds(self.call, now))
        };
        if let CallResult::Later(wait) | CallResult::Away(wait) = met
            && first
        {
            log::asked_to_wait(wait);
        }
        self.gate.news().tell(change, answer.as_ref().err());
        if change.is_some() || self.gate.held.load(Ordering::Relaxed) > 0 {
            self.gate.changed.send_replace(());
        }
        answer
            .map_err(|error| FailedCall { during_pause: held && met != CallResult::Success, error })
    }
}

impl Drop for CallPermit<'_> {
    fn drop(&mut self) {
        if !self.reported {
            self.gate.state().abandoned();
            self.gate.changed.send_replace(());
        }
    }
}

fn met<T>(answer: &Result<T, CallError>) -> CallResult {
    match answer {
        Ok(_) | Err(CallError::Rejected(_) | CallError::Unauthorized) => CallResult::Success,
        Err(CallError::Refused(_)) => CallResult::Refusal,
        Err(CallError::Transient { retry_after: Some(wait), why, .. })
            if *wait > Duration::ZERO =>
        {
            if why.is_rate_limit() {
                CallResult::Later(*wait)
            } else {
                CallResult::Away(*wait)
            }
        }
        Err(CallError::Transient { .. }) => CallResult::Failure,
    }
}

#[cfg(test)]
mod tests;
