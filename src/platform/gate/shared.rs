//! What all requests share: the rules' state, and the signal that it has changed.

use std::{
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout_at},
};

use super::{
    decision::{Caller, Decision},
    log::BreakerLog,
    probe_permits::SharedProbes,
    state::GateState,
};
use crate::{platform::rate_limit::RateLimiter, session::Call, telemetry::metrics::Metrics};

/// Decides which calls to the platform may be made, and when.
pub(crate) struct Gate {
    pub(super) state: Mutex<GateState>,
    pub(super) rate_limiter: Option<RateLimiter>,
    /// Wakes waiting requests when a decision may have changed.
    pub(super) changed: watch::Sender<()>,
    /// Requests that the gate holds back.
    pub(super) waiting: AtomicUsize,
    pub(super) metrics: Arc<Metrics>,
    pub(super) log: Mutex<BreakerLog>,
    /// What the replicas share about their probes.
    pub(super) shared_probes: Option<SharedProbes>,
    /// There may be something to ask the other replicas.
    pub(super) fleet_work: Notify,
}

impl Gate {
    /// Creates a gate with a closed circuit breaker.
    ///
    /// `slots`: how many requests may be in flight.
    pub(crate) fn new(
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
            shared_probes: None,
            fleet_work: Notify::new(),
        }
    }

    /// Shares the probes of a platform that is down, once `share_probes` runs.
    pub(crate) fn with_shared_probes(mut self, probes: SharedProbes) -> Self {
        self.state.get_mut().shares_probes = true;
        self.shared_probes = Some(probes);
        self
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

    /// Waits until the circuit breaker is open and no request is there to probe, or until that is over.
    pub(super) async fn until_probe_needed(&self, needed: bool) {
        let is_so = || self.state.lock().needs_idle_probe() == needed;
        // Cannot fail: `self` holds the sender.
        let _ = self.changed.subscribe().wait_for(|()| is_so()).await;
    }

    /// Makes the circuit breaker half-open whenever it is open, a probe is due and no request is held. Never returns.
    ///
    /// For the one-call flow: a probe makes a session, so that only a request may send one.
    pub(in crate::platform) async fn half_open_when_idle(&self) {
        loop {
            self.until_probe_needed(true).await;
            let mut changed = self.changed.subscribe();
            let half_opened = self.state.lock().half_open_if_due(Instant::now());
            // Cannot fail: `self` holds the sender.
            let _ = match half_opened {
                Ok(change) => {
                    self.log.lock().report(Some(change), None);
                    self.wake_waiting();
                    continue;
                }
                Err(Decision::WaitUntil(at)) => timeout_at(at, changed.changed()).await,
                Err(_) => Ok(changed.changed().await),
            };
        }
    }

    pub(super) fn decide(&self, caller: Caller, call: Call) -> Decision {
        let mut state = self.state.lock();
        let now = Instant::now();
        let decision = state.decide(caller, call, now);
        if let Decision::AwaitPermit { .. } = decision {
            state.want_permit(caller, now);
            self.fleet_work.notify_one();
        }
        decision
    }

    pub(super) fn wake_waiting(&self) {
        self.changed.send_replace(());
    }
}
