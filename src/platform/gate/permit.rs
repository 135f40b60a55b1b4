//! Permits one call, and takes its result.

use std::sync::atomic::Ordering;

use reqwest::StatusCode;
use tokio::time::Instant;

use super::{
    decision::{CallResult, Caller, FailureScope, Refusal},
    log,
    shared::Gate,
};
use crate::{
    platform::error::{CallError, TransientCause},
    session::Call,
};

/// A call that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FailedCall {
    pub(crate) error: CallError,
    pub(crate) scope: FailureScope,
}

/// Permits one call. If dropped without a report, the call counts as neither success nor failure.
pub(crate) struct CallPermit<'a> {
    pub(super) gate: &'a Gate,
    pub(super) caller: Caller,
    pub(super) call: Call,
    pub(super) is_probe: bool,
    /// Whether calls were paused when this one began, so that it belongs to a probe.
    pub(super) began_in_pause: bool,
    pub(super) reported: bool,
}

impl CallPermit<'_> {
    /// Returns whether this call probes whether the platform works again.
    pub(crate) fn is_probe(&self) -> bool {
        self.is_probe
    }

    /// The call that this permits.
    pub(in crate::platform) fn call(&self) -> Call {
        self.call
    }

    /// Decides whether a refused call of the one-call flow is its request's own fault. Do so once for each answer.
    pub(in crate::platform) fn judge(&self, error: CallError) -> CallError {
        let CallError::Refused { call, status } = error else { return error };
        let mut state = self.gate.state.lock();
        if state.refusals.blame(self.caller, refusal(call, status), Instant::now()) {
            CallError::Rejected(status)
        } else {
            error
        }
    }

    /// Reports the call's result to the gate.
    pub(crate) fn report<T>(mut self, answer: Result<T, CallError>) -> Result<T, FailedCall> {
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
        if change.is_some() {
            self.gate.fleet_work.notify_one();
        }
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

fn refusal(call: Call, status: StatusCode) -> Refusal {
    match (call, status) {
        (Call::Deeplink, StatusCode::FORBIDDEN) => Refusal::Forbidden,
        (Call::Deeplink, StatusCode::NOT_FOUND) => Refusal::Missing,
        _ => Refusal::Setting,
    }
}

fn call_result<T>(answer: &Result<T, CallError>) -> CallResult {
    match answer {
        Ok(_) => CallResult::Success,
        Err(CallError::Rejected(_) | CallError::Unauthorized) => CallResult::Rejected,
        Err(CallError::Refused { call, status }) => CallResult::Refused(refusal(*call, *status)),
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
