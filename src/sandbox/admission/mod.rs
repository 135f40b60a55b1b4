//! Decides how a call is treated before it is processed: latency, faults, random failures, and the
//! rate limit.

use std::time::{Duration, Instant};

use rand::{RngExt, rngs::StdRng};

use super::{
    call::Endpoint,
    faults::{Answer, Faults},
    options::Options,
};
use crate::config::RateLimit;

#[derive(Default)]
pub(super) struct Admission {
    pub(super) faults: Faults,
    window: Option<RateWindow>,
}

/// A window of the rate limit.
struct RateWindow {
    opened: Instant,
    admitted: u32,
}

/// How a call is treated.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Treatment {
    pub(super) latency: Duration,
    pub(super) action: AdmissionAction,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum AdmissionAction {
    /// Process the call.
    Serve,
    /// Process the call, but return this answer.
    ServeThenAnswer(Answer),
    /// Only return this answer.
    Answer(Answer),
}

impl Admission {
    /// Decides on a call. Faults take precedence, as someone set them on purpose.
    pub(super) fn decide(
        &mut self,
        endpoint: Endpoint,
        options: &Options,
        rng: &mut StdRng,
        now: Instant,
    ) -> Treatment {
        let fault = self.faults.take(endpoint).unwrap_or_default();
        let latency = fault
            .latency()
            .unwrap_or_else(|| options.latency + options.jitter.mul_f64(rng.random::<f64>()));
        let action = match fault.answer() {
            Some(answer) if fault.is_carried_out() => AdmissionAction::ServeThenAnswer(answer),
            Some(answer) => AdmissionAction::Answer(answer),
            None if rng.random::<f64>() < options.failure_rate => {
                AdmissionAction::Answer(response(503, None))
            }
            None => match options.rate_limit.and_then(|limit| self.admit(limit, now).err()) {
                Some(retry_after_s) => AdmissionAction::Answer(response(429, Some(retry_after_s))),
                None => AdmissionAction::Serve,
            },
        };
        Treatment { latency, action }
    }

    /// Counts a call against the limit. `Err`: seconds after which to retry.
    fn admit(&mut self, limit: RateLimit, now: Instant) -> Result<(), u64> {
        let window = self
            .window
            .take_if(|window| now.duration_since(window.opened) < limit.per)
            .unwrap_or(RateWindow { opened: now, admitted: 0 });
        let window = self.window.insert(window);
        if window.admitted < limit.count {
            window.admitted += 1;
            return Ok(());
        }
        let left = limit.per.saturating_sub(now.duration_since(window.opened));
        Err(left.as_secs() + u64::from(left.subsec_nanos() > 0))
    }
}

fn response(status: u16, retry_after_s: Option<u64>) -> Answer {
    Answer::Response { status, retry_after: retry_after_s.map(|s| s.to_string()), body: None }
}

#[cfg(test)]
mod tests;
