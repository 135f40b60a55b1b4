//! The worker's log messages, repeated ones at a limited rate.

use std::time::Duration;

use super::{metadata::Metadata, prefetch::PrefetchWindow};
use crate::{
    broker::{BrokerError, PostponeReason, PublishError},
    message::RequestId,
    telemetry::log_limit::{LogLimit, Outage},
    tls,
};

const LOST: &str = "connection lost: reconnecting to RabbitMQ";
const NOT_CONSUMING: &str = "cannot consume from RabbitMQ: retrying";
const NOT_REPLACED: &str =
    "cannot connect with changed RabbitMQ settings: retrying, still consuming with the former ones";
const FORMER_SETTINGS: &str = "connected with the former RabbitMQ settings: still trying the changed ones, which have not worked yet";
const SERVING_ALONE: &str = "message redelivered often: serving it alone, then on a new connection";
const MADE_ROOM: &str =
    "request failed in an outage: moved to the end of the queue for others to probe";
const DEFERRED: &str = "request deferred by the platform: moved to a queue for others to be served";
const HOLD_LIMIT_LOWERED: &str =
    "RabbitMQ's consumer_timeout is shorter than requests are held: holding them for less";
const FAILED_UNROUTABLE: &str = "handoff.failed unroutable: no queue is bound for it";
const FAILED_REFUSED: &str = "handoff.failed not confirmed: dead-lettering without it";
const ENDINGS_NOT_CONSUMED: &str = "cannot consume endings: links are not forgotten; retrying";
const INVALID_ENDING: &str = "invalid ending: dead-lettered";
const AUTHORITIES_UNREADABLE: &str =
    "certificate authorities cannot be read: TLS connections that need them will fail";
/// More kinds of errors than an outage has.
const MAX_CONNECT_ERRORS: usize = 32;
static LOST_LIMIT: LogLimit = LogLimit::new(LOST, 12);
static NOT_CONSUMING_LIMIT: LogLimit = LogLimit::new(NOT_CONSUMING, 12);
static NOT_REPLACED_LIMIT: LogLimit = LogLimit::new(NOT_REPLACED, 3);
static FORMER_SETTINGS_LIMIT: LogLimit = LogLimit::new(FORMER_SETTINGS, 3);
static SERVING_ALONE_LIMIT: LogLimit = LogLimit::new(SERVING_ALONE, 3);
static MADE_ROOM_LIMIT: LogLimit = LogLimit::new(MADE_ROOM, 3);
static DEFERRED_LIMIT: LogLimit = LogLimit::new(DEFERRED, 3);
static UNROUTABLE_LIMIT: LogLimit = LogLimit::new(FAILED_UNROUTABLE, 1);
static ENDINGS_LIMIT: LogLimit = LogLimit::new(ENDINGS_NOT_CONSUMED, 6);
static INVALID_ENDING_LIMIT: LogLimit = LogLimit::new(INVALID_ENDING, 12);
static REFUSED_LIMIT: LogLimit = LogLimit::new(FAILED_REFUSED, 1);

/// Logs certificate authorities that the environment names and that cannot be read.
pub(super) fn authorities() {
    for error in tls::authority_problems() {
        tracing::warn!(error, "{AUTHORITIES_UNREADABLE}");
    }
}

/// A limit of RabbitMQ on channels has ended a connection.
pub(super) fn fewer_channels() {
    tracing::warn!(
        "RabbitMQ's limit on channels is reached: publishing copies one at a time from now on"
    );
}

/// Logs the life of connections: lost, reconnected, consuming.
pub(super) struct ConnectionLog {
    lost: Outage,
    not_consuming: Outage,
    /// The errors of failed attempts since the worker last consumed, each logged once.
    connect_errors: Vec<BrokerError>,
    /// Whether the last line about consuming said "one at a time"; `None`: the next line is due.
    one_at_a_time: Option<bool>,
}

impl ConnectionLog {
    pub(super) fn new() -> Self {
        Self {
            lost: Outage::new(&LOST_LIMIT),
            not_consuming: Outage::new(&NOT_CONSUMING_LIMIT),
            connect_errors: Vec::new(),
            one_at_a_time: None,
        }
    }

    /// Logs a failed attempt to connect, unless an earlier one failed in the same way: with several nodes,
    /// errors alternate.
    pub(super) fn not_connected(&mut self, error: BrokerError) {
        if !self.connect_errors.contains(&error) {
            // Another error counts as a new outage, so that it is logged.
            self.not_consuming.report_up();
        }
        if self.not_consuming.report_down() {
            tracing::error!(%error, "{NOT_CONSUMING}");
        }
        if self.connect_errors.len() < MAX_CONNECT_ERRORS && !self.connect_errors.contains(&error) {
            self.connect_errors.push(error);
        }
    }

    pub(super) fn connected(&mut self) {
        self.connect_errors.clear();
        self.not_consuming.report_up();
        if self.lost.report_up() {
            tracing::info!("reconnected to RabbitMQ");
            self.one_at_a_time = None;
        }
    }

    /// Logs whether messages are fetched one at a time, if that has changed.
    pub(super) fn consuming(&mut self, queue: &str, window: &PrefetchWindow) {
        let one_at_a_time = window.is_one_at_a_time();
        if self.one_at_a_time.replace(one_at_a_time) != Some(one_at_a_time) {
            let prefetch_mode = if one_at_a_time { "one at a time" } else { "normal" };
            tracing::info!(queue, prefetch_mode, "consuming");
        }
    }

    pub(super) fn settings_changed(&mut self) {
        self.one_at_a_time = None;
        tracing::info!("RabbitMQ settings changed: replacing the connection");
    }

    pub(super) fn lost(&mut self, error: &BrokerError) {
        if self.lost.report_down() {
            tracing::warn!(%error, "{LOST}");
        }
    }

    /// Logs that a suspected poison message is served alone, on a connection that then ends.
    pub(super) fn serving_alone(&mut self, redeliveries: u32) {
        self.one_at_a_time = None;
        if SERVING_ALONE_LIMIT.permit() {
            tracing::info!(redeliveries, "{SERVING_ALONE}");
        }
    }
}

/// Logs that a connection with changed settings was not made. A refused login is passed only once, so the limit
/// must not suppress it.
pub(super) fn not_replaced(error: BrokerError) {
    if error.is_login_refused() || NOT_REPLACED_LIMIT.permit() {
        tracing::error!(%error, "{NOT_REPLACED}");
    }
}

/// The connection was lost before one with the changed settings was made.
pub(super) fn former_settings() {
    if FORMER_SETTINGS_LIMIT.permit() {
        tracing::warn!("{FORMER_SETTINGS}");
    }
}

pub(super) fn requeued(metadata: &Metadata) {
    let request_id = metadata.request_id.short();
    tracing::debug!(request_id, "request requeued: it will be redelivered");
}

pub(super) fn postponed(metadata: &Metadata, reason: PostponeReason) {
    let request_id = metadata.request_id.short();
    match reason {
        PostponeReason::HeldTooLong => {
            tracing::info!(request_id, "request held too long: moved to the end of the queue");
        }
        PostponeReason::MadeRoom if MADE_ROOM_LIMIT.permit() => {
            tracing::info!(request_id, "{MADE_ROOM}");
        }
        PostponeReason::Deferred if DEFERRED_LIMIT.permit() => {
            tracing::info!(request_id, "{DEFERRED}");
        }
        PostponeReason::MadeRoom | PostponeReason::Deferred => {}
    }
}

/// Logs whether endings are consumed.
pub(super) struct EndingsLog {
    outage: Outage,
    error: Option<BrokerError>,
}

impl EndingsLog {
    pub(super) fn new() -> Self {
        Self { outage: Outage::new(&ENDINGS_LIMIT), error: None }
    }

    /// Logs why endings are not consumed, unless the log says so.
    pub(super) fn not_consumed(&mut self, error: BrokerError) {
        if self.error.as_ref() != Some(&error) {
            // Another error counts as a new outage, so that it is logged.
            self.outage.report_up();
        }
        if self.outage.report_down() {
            tracing::error!(%error, "{ENDINGS_NOT_CONSUMED}");
        }
        self.error = Some(error);
    }

    pub(super) fn consumed(&mut self) {
        if self.outage.report_up() {
            tracing::info!("consuming endings again");
        }
    }
}

pub(super) fn invalid_ending(metadata: &Metadata, error: &str) {
    if INVALID_ENDING_LIMIT.permit() {
        let request_id = metadata.request_id.short();
        tracing::warn!(request_id, error, "{INVALID_ENDING}");
    }
}

/// RabbitMQ closed the channel because a request was held longer than its `consumer_timeout`.
pub(super) fn hold_limit_lowered(consumer_timeout: Duration, hold_limit: Duration) {
    let consumer_timeout_s = consumer_timeout.as_secs();
    let hold_limit_s = hold_limit.as_secs();
    tracing::warn!(consumer_timeout_s, hold_limit_s, "{HOLD_LIMIT_LOWERED}");
}

pub(super) fn failed_event_unroutable(request_id: &RequestId) {
    if UNROUTABLE_LIMIT.permit() {
        tracing::warn!(request_id = request_id.short(), "{FAILED_UNROUTABLE}");
    }
}

pub(super) fn failed_event_refused(request_id: &RequestId, error: &PublishError) {
    if REFUSED_LIMIT.permit() {
        tracing::warn!(request_id = request_id.short(), %error, "{FAILED_REFUSED}");
    }
}
