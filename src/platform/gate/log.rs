//! What the log tells of the gate.

use std::time::Duration;

use super::{breaker::Cause, state::Change};
use crate::{
    platform::CallError,
    telemetry::log_limit::{LogLimit, Outage},
};

static SHUT: LogLimit =
    LogLimit::new("the platform fails, or gives no tokens; requests are held", 3);
static LEFT_ALONE: LogLimit =
    LogLimit::new("the platform asks to be left alone; requests are held", 3);
static DOUBTED: LogLimit =
    LogLimit::new("the platform fails for one request alone; requests go on", 3);

/// What has been told, and what is to be.
pub(super) struct News {
    outage: Outage,
    why: Option<Cause>,
}

impl Default for News {
    fn default() -> Self {
        Self { outage: Outage::new(&SHUT), why: None }
    }
}

impl News {
    /// A call was reported.
    pub(super) fn tell(&mut self, change: Option<Change>, error: Option<&CallError>) {
        // There is one, but for the change that a good answer brings.
        let error = error.map(tracing::field::display);
        match change {
            Some(Change::OpenBreaker(why)) => {
                // Down, and now refusing: that is other news.
                self.outage.report_up();
                self.why = Some(why);
                self.shut(error);
            }
            Some(Change::Opened) => {
                self.why = None;
                if self.outage.report_up() {
                    tracing::info!("the platform answers again; requests go on");
                }
            }
            Some(Change::Doubted) => {
                self.why = None;
                self.outage.report_up();
                if DOUBTED.permit() {
                    tracing::info!(
                        error,
                        "the platform fails for one request alone; requests go on"
                    );
                }
            }
            None => self.shut(error),
        }
    }

    fn shut(&mut self, error: Option<impl tracing::Value>) {
        // Without an error it was a good answer, though not one that opens the gate.
        let (Some(why), Some(error)) = (self.why, error) else { return };
        if self.outage.report_down() {
            match why {
                Cause::Down(_) => {
                    tracing::error!(error, "the platform fails for everyone; requests are held");
                }
                Cause::Refused => {
                    tracing::error!(error, "the platform gives no tokens; requests are held");
                }
            }
        }
    }
}

/// The platform wants no calls for so long.
pub(super) fn asked_to_wait(wait: Duration) {
    if LEFT_ALONE.permit() {
        let seconds = wait.as_secs();
        tracing::info!(seconds, "the platform asks to be left alone; requests are held");
    }
}
