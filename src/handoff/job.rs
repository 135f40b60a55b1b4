//! A request on its way, and why it may end without a link.

use std::time::{Duration, SystemTime};

use tokio::time::timeout;

use crate::{
    cache::Stamp,
    message::{Request, RequestId, TraceContext},
};

/// A request on its way through the worker.
pub struct Job<'a> {
    /// What is asked for.
    pub request: &'a Request,
    /// Under which id.
    pub request_id: &'a RequestId,
    /// What its event carries as `correlation_id`.
    pub correlation_id: &'a str,
    /// The trace it belongs to.
    pub trace: &'a TraceContext,
}

/// Why a request was not served this time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It may be served later. Says what happened; holds no secret.
    Transient(String),
    /// It never will be. Says what happened; holds no secret.
    Rejected(String),
    /// Its `expiresAt` has passed: nobody waits any more.
    Expired,
    /// The worker is shutting down, or has lost RabbitMQ: somebody else shall have it.
    Interrupted,
}

impl Job<'_> {
    /// What a link remembers of this request.
    pub(super) fn stamp(&self) -> Stamp {
        Stamp::of(self.request_id.as_str())
    }

    /// Whether somebody waits for it yet.
    pub(super) fn still_wanted(&self) -> Result<(), Failure> {
        match self.request.expires_at {
            Some(end) if SystemTime::now() >= end => Err(Failure::Expired),
            _ => Ok(()),
        }
    }

    /// Waits for something, but not beyond the time that somebody waits for us.
    pub(super) async fn unless_expired<T>(
        &self,
        waiting: impl Future<Output = T>,
    ) -> Result<T, Failure> {
        let Some(end) = self.request.expires_at else { return Ok(waiting.await) };
        let left: Duration = end.duration_since(SystemTime::now()).unwrap_or_default();
        timeout(left, waiting).await.map_err(|_| Failure::Expired)
    }
}
