//! What the log says about the connection to RabbitMQ, at a limited rate.

use super::prefetch::PrefetchWindow;
use crate::{
    broker::BrokerError,
    telemetry::log_limit::{LogLimit, Outage},
};

const LOST: &str = "connection lost: reconnecting to RabbitMQ";
const NOT_CONSUMING: &str = "cannot consume from RabbitMQ: retrying";
static LOST_LIMIT: LogLimit = LogLimit::new(LOST, 12);
static NOT_CONSUMING_LIMIT: LogLimit = LogLimit::new(NOT_CONSUMING, 12);

/// Logs each connection's life: consuming, lost, reconnected.
pub(super) struct ConnectionLog {
    outage: Outage,
    /// Whether the last line about consuming said "one at a time"; `None`: the next one is due.
    one_at_a_time: Option<bool>,
}

/// Logs failed attempts to connect: each error once, not each attempt.
pub(super) struct ConnectLog {
    outage: Outage,
    last: Option<BrokerError>,
}

impl ConnectionLog {
    pub(super) fn new() -> Self {
        Self { outage: Outage::new(&LOST_LIMIT), one_at_a_time: None }
    }

    pub(super) fn connected(&mut self) {
        if self.outage.report_up() {
            tracing::info!("reconnected to RabbitMQ");
            self.one_at_a_time = None;
        }
    }

    /// Logs the prefetch window, if it has changed.
    pub(super) fn consuming(&mut self, queue: &str, window: &PrefetchWindow) {
        let one_at_a_time = window.is_one_at_a_time();
        if self.one_at_a_time.replace(one_at_a_time) != Some(one_at_a_time) {
            let prefetch = if one_at_a_time { "one at a time" } else { "normal" };
            tracing::info!(queue, prefetch, "consuming");
        }
    }

    pub(super) fn lost(&mut self, error: &BrokerError) {
        if self.outage.report_down() {
            tracing::warn!(%error, "{LOST}");
        }
    }

    /// The worker replaces the connection by its own choice.
    pub(super) fn replacing(&mut self) {
        self.one_at_a_time = None;
    }
}

impl ConnectLog {
    pub(super) fn new() -> Self {
        Self { outage: Outage::new(&NOT_CONSUMING_LIMIT), last: None }
    }

    pub(super) fn failed(&mut self, error: BrokerError) {
        if self.last.as_ref() != Some(&error) {
            // Another error: report it as a new outage.
            self.outage.report_up();
        }
        if self.outage.report_down() {
            tracing::error!(%error, "{NOT_CONSUMING}");
        }
        self.last = Some(error);
    }
}
