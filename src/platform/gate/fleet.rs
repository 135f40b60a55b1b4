//! Shares the probes of an open circuit breaker with the other replicas.

use std::{future::pending, time::Duration};

use tokio::time::{Instant, timeout_at};

use super::{
    decision::{Caller, Change},
    probe_permits::{ProbeReply, ProbeRequest},
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
                    let requested = Instant::now();
                    let reply = shared(request).await;
                    if request.is_for_permit() {
                        self.metrics.platform.probe_permit(match reply {
                            Some(reply) if reply.is_granted => ProbePermit::Granted,
                            Some(_) => ProbePermit::Denied,
                            None => ProbePermit::Unavailable,
                        });
                    }
                    let jitter = rand::random();
                    let (change, has_answer) = self.state.lock().record_reply(
                        request,
                        reply,
                        requested,
                        jitter,
                        Instant::now(),
                    );
                    self.log.lock().report(change, None);
                    if change.is_some() || has_answer {
                        self.wake_waiting();
                    }
                }
                // A new wish may be for an earlier time.
                Some((at, _)) => drop(timeout_at(at, self.fleet_work.notified()).await),
                None => self.fleet_work.notified().await,
            }
        }
    }
}

impl GateState {
    /// Records that the probe of this caller is due.
    pub(super) fn want_permit(&mut self, caller: Caller, now: Instant) {
        if let Some(breaker) = &mut self.breaker {
            breaker.want_permit(caller, now);
        }
    }

    fn next_request(&self) -> Option<(Instant, ProbeRequest)> {
        if let Some(answer) = self.unreported_answer {
            return Some((answer.report_at, ProbeRequest::Answered));
        }
        let breaker = self.breaker.as_ref()?;
        breaker.permits.as_ref()?.next_request(breaker.is_half_open())
    }

    /// Records what the other replicas replied. Returns what it changed, and whether it answers a wish for a permit.
    fn record_reply(
        &mut self,
        request: ProbeRequest,
        reply: Option<ProbeReply>,
        requested: Instant,
        jitter: f64,
        now: Instant,
    ) -> (Option<Change>, bool) {
        if request == ProbeRequest::Answered {
            // This replica's own answer is no news to it.
            let unreported = self.unreported_answer.take_if(|answer| answer.at <= requested);
            if reply.is_none() {
                let mut again = unreported.filter(|answer| now - answer.at < NEWS);
                if let Some(answer) = &mut again {
                    answer.report_at = now + REPORT_AGAIN;
                }
                self.unreported_answer = self.unreported_answer.or(again);
            }
            return (None, false);
        }
        let has_answer = request.is_for_permit();
        let Some(breaker) = &mut self.breaker else { return (None, false) };
        let Some(permits) = &mut breaker.permits else { return (None, false) };
        let is_news = permits.record(request, reply, requested, jitter, now);
        if !is_news || breaker.is_half_open() {
            return (None, has_answer);
        }
        self.paused_clock.advance(Some(breaker.cause), self.deferrals.all_until(), now);
        breaker.half_open_after_answer(now);
        (Some(Change::HalfOpenedAfterAnswer), has_answer)
    }
}
