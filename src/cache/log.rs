//! What the log says about Redis, and how often.

use super::{dial::Address, error::CacheError, refusal::Refusal};
use crate::telemetry::log_limit::{LogLimit, Outage};

const UNAVAILABLE: &str = "Redis unavailable: serving requests without the cache";
const REFUSING: &str = "Redis refuses commands: serving requests without the cache";

/// Each change is logged once; flapping is rate-limited.
static UNAVAILABLE_LIMIT: LogLimit = LogLimit::new(UNAVAILABLE, 3);
static REFUSING_LIMIT: LogLimit = LogLimit::new(REFUSING, 3);

/// Logs that a node of a cluster, which was down, has no keys any more.
pub(super) fn node_replaced(node: &Address) {
    tracing::info!(%node, "Redis Cluster node replaced: using its successor");
}

/// Logs that a server, though not used in cluster mode, is a node of a Redis Cluster or a proxy of one.
pub(super) fn one_slot() {
    tracing::debug!(
        "Redis executes no script over two slots: writing link and index entry with one each"
    );
}

/// Logs whether there is a Redis to use.
pub(super) struct AvailabilityLog {
    outage: Outage,
    /// Redis' own reason in the latest line.
    refusal: Option<Refusal>,
    /// The latest line says only that there was no answer in time.
    timed_out: bool,
    /// The node of a cluster that it is about.
    node: Option<String>,
    /// The files that user and password come from.
    files: Option<String>,
}

impl AvailabilityLog {
    pub(super) const fn new(node: Option<String>, files: Option<String>) -> Self {
        let outage = Outage::new(&UNAVAILABLE_LIMIT);
        Self { outage, refusal: None, timed_out: false, node, files }
    }

    pub(super) fn unavailable(&mut self, error: &CacheError) {
        let refusal = error.refusal();
        let timed_out = *error == CacheError::Timeout;
        if refusal.is_some() && refusal != self.refusal {
            // Redis' own reason is logged even if an earlier line said that the connection failed.
            self.refusal = refusal;
            self.outage.report_up();
        } else if self.timed_out && !timed_out {
            // So is the first error that says more than a time-out: a refused certificate, for example.
            self.outage.report_up();
        }
        if self.outage.report_down() {
            self.timed_out = timed_out;
            let (node, remedy) = (self.node.as_deref(), remedy(refusal));
            let file = self.files.as_deref().filter(|_| error.is_refused_login());
            tracing::warn!(error = error.cause(), remedy, node, file, "{UNAVAILABLE}");
        }
    }

    pub(super) fn available(&mut self) {
        self.refusal = None;
        self.timed_out = false;
        if self.outage.report_up() {
            tracing::info!(node = self.node.as_deref(), "Redis available again: using the cache");
        }
    }
}

/// Logs whether Redis, though available, refuses the worker's commands.
pub(super) struct RefusalLog {
    outage: Outage,
    /// The cause in the latest line.
    cause: Option<Refusal>,
}

impl RefusalLog {
    pub(super) const fn new() -> Self {
        Self { outage: Outage::new(&REFUSING_LIMIT), cause: None }
    }

    pub(super) fn refused(&mut self, refusal: Refusal) {
        if self.cause.replace(refusal) != Some(refusal) {
            // Another cause counts as a new outage, so that it is logged.
            self.outage.report_up();
        }
        if self.outage.report_down() {
            let error = refusal.to_string();
            tracing::warn!(error, remedy = remedy(Some(refusal)), "{REFUSING}");
        }
    }

    pub(super) fn accepted(&mut self) {
        self.cause = None;
        if self.outage.report_up() {
            tracing::info!("Redis accepts commands again: using the cache");
        }
    }
}

/// The field is absent where no remedy is known.
fn remedy(refusal: Option<Refusal>) -> Option<&'static str> {
    refusal.map(Refusal::remedy).filter(|remedy| !remedy.is_empty())
}
