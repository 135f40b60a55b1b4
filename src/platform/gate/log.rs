//! All log messages of the gate.

use super::decision::{CallResult, Cause, Change};
use crate::{
    platform::error::CallError,
    session::Call,
    telemetry::log_limit::{LogLimit, Outage},
};

const RATE_LIMITED_TEXT: &str = "platform paused: rate limited";
const UNAVAILABLE_TEXT: &str = "platform paused: unavailable, waiting for Retry-After";
const HALF_OPEN_TEXT: &str = "token calls succeed: circuit breaker half-open";
const HALF_OPEN_FOR_NEXT_TEXT: &str =
    "no request is held: circuit breaker half-open, the next request is the probe";
const REOPENED_TEXT: &str = "probe failed: circuit breaker open again";
const ONE_REQUEST_FAILS_TEXT: &str = "only one request fails: circuit breaker closed";
const HALF_OPEN_AFTER_ANSWER_TEXT: &str =
    "platform answers another replica: circuit breaker half-open, the next request is the probe";

static OPEN: LogLimit = LogLimit::new("platform paused: circuit breaker open, or call refused", 3);
static RATE_LIMITED: LogLimit = LogLimit::new(RATE_LIMITED_TEXT, 3);
static UNAVAILABLE: LogLimit = LogLimit::new(UNAVAILABLE_TEXT, 3);
static HALF_OPEN: LogLimit = LogLimit::new(HALF_OPEN_TEXT, 3);
static HALF_OPEN_FOR_NEXT: LogLimit = LogLimit::new(HALF_OPEN_FOR_NEXT_TEXT, 3);
static HALF_OPEN_AFTER_ANSWER: LogLimit = LogLimit::new(HALF_OPEN_AFTER_ANSWER_TEXT, 3);
static REOPENED: LogLimit = LogLimit::new(REOPENED_TEXT, 3);
static ONE_REQUEST_FAILS: LogLimit = LogLimit::new(ONE_REQUEST_FAILS_TEXT, 3);

/// Logs the state of the circuit breaker: each opening once, and its closing if the opening was logged.
pub(super) struct BreakerLog {
    outage: Outage,
    cause: Option<Cause>,
}

impl Default for BreakerLog {
    fn default() -> Self {
        Self { outage: Outage::new(&OPEN), cause: None }
    }
}

impl BreakerLog {
    /// Logs what a reported call changed. `error` is the call's error, if it failed.
    pub(super) fn report(&mut self, change: Option<Change>, error: Option<&CallError>) {
        let error = error.map(tracing::field::display);
        match change {
            Some(Change::Opened(cause)) => {
                // A platform that was down and now refuses the key is a new fault: log it, too.
                self.outage.report_up();
                self.cause = Some(cause);
                self.report_open(error);
            }
            Some(Change::HalfOpened) if HALF_OPEN.permit() => tracing::info!("{HALF_OPEN_TEXT}"),
            Some(Change::HalfOpenedForNext) if HALF_OPEN_FOR_NEXT.permit() => {
                tracing::info!("{HALF_OPEN_FOR_NEXT_TEXT}");
            }
            Some(Change::HalfOpenedAfterAnswer) if HALF_OPEN_AFTER_ANSWER.permit() => {
                tracing::info!("{HALF_OPEN_AFTER_ANSWER_TEXT}");
            }
            Some(Change::Reopened) if REOPENED.permit() => {
                tracing::info!(error, "{REOPENED_TEXT}");
            }
            Some(
                Change::HalfOpened
                | Change::HalfOpenedForNext
                | Change::HalfOpenedAfterAnswer
                | Change::Reopened,
            ) => {}
            Some(Change::Closed) => {
                self.cause = None;
                if self.outage.report_up() {
                    tracing::info!("platform answers again: circuit breaker closed");
                }
            }
            Some(Change::ClosedForOthers) => {
                self.cause = None;
                self.outage.report_up();
                if ONE_REQUEST_FAILS.permit() {
                    tracing::info!(error, "{ONE_REQUEST_FAILS_TEXT}");
                }
            }
            None => self.report_open(error),
        }
    }

    fn report_open(&mut self, error: Option<impl tracing::Value>) {
        // Without an error, the call succeeded but did not close the breaker.
        let (Some(cause), Some(error)) = (self.cause, error) else { return };
        if self.outage.report_down() {
            match cause {
                Cause::Down(_) => tracing::error!(error, "platform paused: circuit breaker open"),
                Cause::Refused(Call::Deeplink) => tracing::error!(
                    error,
                    "platform paused: deeplink call refused, check API key, URL and flow"
                ),
                Cause::Refused(_) => tracing::error!(
                    error,
                    "platform paused: token call refused, check API key and URL"
                ),
            }
        }
    }
}

/// Logs a pause that the platform asked for with `Retry-After`.
pub(super) fn retry_after(result: CallResult) {
    match result {
        CallResult::RateLimited(wait) if RATE_LIMITED.permit() => {
            tracing::info!(retry_after_s = wait.as_secs(), "{RATE_LIMITED_TEXT}");
        }
        CallResult::Unavailable(wait) if UNAVAILABLE.permit() => {
            tracing::info!(retry_after_s = wait.as_secs(), "{UNAVAILABLE_TEXT}");
        }
        _ => {}
    }
}
