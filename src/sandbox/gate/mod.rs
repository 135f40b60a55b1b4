//! What becomes of a call before it is looked at: how long it takes, and whether it is refused by
//! chance, by the rate limit, or by a fault.

use std::time::{Duration, Instant};

use rand::{RngExt, rngs::StdRng};

use super::{
    faults::{Answer, Faults},
    options::{Options, RateLimit},
    record::Call,
};

/// The state of the gate.
#[derive(Default)]
pub(super) struct Gate {
    pub(super) faults: Faults,
    window: Option<Window>,
}

struct Window {
    opened: Instant,
    admitted: u32,
}

/// What the gate says to a call.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ruling {
    /// How long the call takes.
    pub(super) latency: Duration,
    /// What it does.
    pub(super) course: Course,
}

/// What a call does.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Course {
    /// Its work, which it answers.
    Work,
    /// Its work, but the answer is another.
    WorkThen(Answer),
    /// Nothing but answer.
    Instead(Answer),
}

impl Gate {
    /// Rules on a call. A fault goes first: it is what somebody asked for.
    pub(super) fn rule(
        &mut self,
        call: Call,
        options: &Options,
        rng: &mut StdRng,
        now: Instant,
    ) -> Ruling {
        let fault = self.faults.take(call).unwrap_or_default();
        let latency = fault
            .latency
            .unwrap_or_else(|| options.latency + options.jitter.mul_f64(rng.random::<f64>()));
        let course = match fault.answer {
            Some(answer) if fault.carry_out => Course::WorkThen(answer),
            Some(answer) => Course::Instead(answer),
            None if rng.random::<f64>() < options.failure_rate => {
                Course::Instead(response(503, None))
            }
            None => match options.rate_limit.and_then(|limit| self.over(limit, now)) {
                Some(seconds) => Course::Instead(response(429, Some(seconds))),
                None => Course::Work,
            },
        };
        Ruling { latency, course }
    }

    /// In how many seconds to come back, if the limit is reached.
    fn over(&mut self, limit: RateLimit, now: Instant) -> Option<u64> {
        let window = self
            .window
            .take_if(|window| now.duration_since(window.opened) < limit.per)
            .unwrap_or(Window { opened: now, admitted: 0 });
        let window = self.window.insert(window);
        if window.admitted < limit.count {
            window.admitted += 1;
            return None;
        }
        let left = limit.per.saturating_sub(now.duration_since(window.opened));
        Some(left.as_secs() + u64::from(left.subsec_nanos() > 0))
    }
}

fn response(status: u16, retry_after: Option<u64>) -> Answer {
    Answer::Response { status, retry_after: retry_after.map(|s| s.to_string()), body: None }
}

#[cfg(test)]
mod tests;
