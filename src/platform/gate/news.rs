//! What the log tells of the gate.

use std::time::Duration;

use super::{shut::Why, state::Change};
use crate::{
    platform::CallError,
    telemetry::quota::{Outage, Quota},
};

static SHUT: Quota = Quota::new("the platform fails, or gives no tokens; requests are held", 3);
static LEFT_ALONE: Quota = Quota::new("the platform asks to be left alone; requests are held", 3);
static DOUBTED: Quota = Quota::new("the platform fails for one request alone; requests go on", 3);

/// What has been told, and what is to be.
pub(super) struct News {
    outage: Outage,
    why: Option<Why>,
}

impl Default for News {
    fn default() -> Self {
        Self { outage: Outage::none(&SHUT), why: None }
    }
}

impl News {
    /// A call was reported.
    pub(super) fn tell(&mut self, change: Option<Change>, error: Option<&CallError>) {
        // There is one, but for the change that a good answer brings.
        let error = error.map(tracing::field::display);
        match change {
            Some(Change::Shut(why)) => {
                // Down, and now refusing: that is other news.
                self.outage.is_over();
                self.why = Some(why);
                self.shut(error);
            }
            Some(Change::Opened) => {
                self.why = None;
                if self.outage.is_over() {
                    tracing::info!("the platform answers again; requests go on");
                }
            }
            Some(Change::Doubted) => {
                self.why = None;
                self.outage.is_over();
                if DOUBTED.allows() {
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
        if self.outage.goes_on() {
            match why {
                Why::Down(_) => {
                    tracing::error!(error, "the platform fails for everyone; requests are held");
                }
                Why::Refused => {
                    tracing::error!(error, "the platform gives no tokens; requests are held");
                }
            }
        }
    }
}

/// The platform wants no calls for so long.
pub(super) fn asked_to_wait(wait: Duration) {
    if LEFT_ALONE.allows() {
        let seconds = wait.as_secs();
        tracing::info!(seconds, "the platform asks to be left alone; requests are held");
    }
}
