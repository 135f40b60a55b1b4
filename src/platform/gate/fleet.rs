//! Shares the probes of an open circuit breaker with the other replicas.

use std::{future::pending, time::Duration};

use tokio::time::{Instant, timeout_at};

use super::{
    decision::{Caller, Change},
    probe_permits::{Exchange, ProbeRequest, SharedProbes, UnreportedAnswer},
    shared::Gate,
    state::GateState,
};
use crate::telemetry::metrics::ProbePermit;

/// How long a good answer is news to the other replicas, and how often it is reported if Redis does not reply.
const NEWS: Duration = Duration::from_secs(3);
const REPORT_AGAIN: Duration = Duration::from_millis(250);

impl Gate {
    /// Requests permits for callers whose probe is due, looks whether another replica was answered, and reports
    /// when this one was. Never returns.
    pub(crate) async fn share_probes(&self) {
        let Some(shared) = &self.shared_probes else { return pending().await };
        loop {
            let next = self.state.lock().next_request();
            match next {
                Some((at, request)) if at <= Instant::now() => {
                    self.exchange(shared, request).await;
                }
                // A new wish may be for an earlier time.
                Some((at, _)) => drop(timeout_at(at, self.fleet_work.notified()).await),
                None => self.fleet_work.notified().await,
            }
        }
    }

    /// Sends a request, and records the reply.
    async fn exchange(&self, shared: &SharedProbes, request: ProbeRequest) {
        let requested = Instant::now();
        let reply = shared(request).await;
        let is_for_permit = matches!(request, ProbeRequest::Permit(_));
        if is_for_permit {
            self.metrics.platform.probe_permit(match reply {
                Some(reply) if reply.is_granted => ProbePermit::Granted,
                Some(_) => ProbePermit::Denied,
                None => ProbePermit::Unavailable,
            });
        }
        let (replied, jitter) = (Instant::now(), rand::random());
        let exchange = Exchange { request, reply, requested, replied, jitter };
        let change = self.state.lock().record_reply(exchange);
        self.log.lock().report(change, None);
        if change.is_some() || is_for_permit {
            self.wake_waiting();
        }
    }
}

impl GateState {
    /// Records that a call of this caller is due, and needs a permit.
    pub(super) fn want_permit(&mut self, caller: Caller, now: Instant) {
        if let Some(breaker) = &mut self.breaker {
            breaker.want_permit(caller, now);
        }
    }

    fn next_request(&self) -> Option<(Instant, ProbeRequest)> {
        if let Some(UnreportedAnswer { report_at, calls, .. }) = self.unreported_answer {
            return Some((report_at, ProbeRequest::Answered { calls }));
        }
        let breaker = self.breaker.as_ref()?;
        breaker.permits.as_ref()?.next_request(breaker.is_half_open())
    }

    /// Records what the other replicas replied. Returns what it changed.
    fn record_reply(&mut self, exchange: Exchange) -> Option<Change> {
        let Exchange { request, reply, requested, replied: now, .. } = exchange;
        if let ProbeRequest::Answered { .. } = request {
            // This replica's own answer is no news to it.
            let unreported = self.unreported_answer.take_if(|answer| answer.at <= requested);
            if reply.is_none() {
                let mut again = unreported.filter(|answer| now - answer.at < NEWS);
                if let Some(answer) = &mut again {
                    answer.report_at = now + REPORT_AGAIN;
                }
                self.unreported_answer = self.unreported_answer.or(again);
            }
            return None;
        }
        let breaker = self.breaker.as_mut()?;
        let is_news = breaker.permits.as_mut()?.record(exchange);
        if !is_news || breaker.is_half_open() {
            return None;
        }
        self.paused_clock.advance(Some(breaker.cause), self.deferrals.all_until(), now);
        breaker.half_open_after_answer(now);
        Some(Change::HalfOpenedAfterAnswer)
    }
}
