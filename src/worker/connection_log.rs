//! What the log tells of the connection to RabbitMQ.

use super::run::Pace;
use crate::{
    broker::BrokerError,
    telemetry::log_limit::{LogLimit, Outage},
};

static LOST: LogLimit = LogLimit::new("lost RabbitMQ; reconnecting", 12);
static NOT_CONSUMING: LogLimit = LogLimit::new("not consuming", 12);

/// What has been told, and what is to be.
pub(super) struct News {
    outage: Outage,
    pace: Option<Pace>,
}

/// The same of tries to connect.
pub(super) struct Tries {
    outage: Outage,
    last: Option<BrokerError>,
}

impl News {
    pub(super) fn none() -> Self {
        Self { outage: Outage::new(&LOST), pace: None }
    }

    pub(super) fn consuming(&mut self, queue: &str, pace: Pace) {
        let (told_lost, told_pace) = (self.outage.report_up(), self.pace.replace(pace));
        if told_lost || told_pace != Some(pace) {
            tracing::info!(queue, ?pace, "consuming");
        }
    }

    pub(super) fn lost(&mut self, fault: &BrokerError) {
        if self.outage.report_down() {
            tracing::warn!(%fault, "lost RabbitMQ; reconnecting");
        }
    }

    /// What ended was no fault.
    pub(super) fn done(&mut self) {
        self.pace = None;
    }
}

impl Tries {
    pub(super) fn none() -> Self {
        Self { outage: Outage::new(&NOT_CONSUMING), last: None }
    }

    /// Each fault is told once, not with every try.
    pub(super) fn failed(&mut self, error: BrokerError) {
        if self.last.as_ref() != Some(&error) {
            self.outage.report_up();
        }
        if self.outage.report_down() {
            tracing::error!(%error, "not consuming; trying again until it works");
        }
        self.last = Some(error);
    }
}
