//! A request on its way, and why it may end without a link.

use std::time::{Duration, SystemTime};

use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    cache::Stamp,
    message::{Request, RequestId},
    telemetry::traces::Span,
};

/// A request on its way through the worker.
pub struct Job<'a> {
    /// What is asked for.
    pub request: &'a Request,
    /// Under which id.
    pub request_id: &'a RequestId,
    /// What its event carries as `correlation_id`.
    pub correlation_id: &'a str,
    /// The span of its delivery.
    pub span: &'a Span<'a>,
    /// When it goes back to RabbitMQ, should it still be waiting for the platform.
    pub hold_until: Instant,
    /// RabbitMQ has taken it back, for it lost us: it is delivered again.
    pub lost: &'a CancellationToken,
}

/// Cause a request was not served this time.
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
    /// It has waited for the platform for as long as RabbitMQ lets it: it goes to the end of the queue,
    /// and nothing is spent.
    Postponed,
}

impl Job<'_> {
    /// What a link remembers of this request.
    pub(super) fn stamp(&self) -> Stamp {
        Stamp::of(self.request_id.as_str())
    }

    /// Whether somebody waits for it yet, and we may keep it.
    pub(super) fn still_ours(&self) -> Result<(), Failure> {
        match self.left() {
            (Duration::ZERO, why) => Err(why),
            _ => Ok(()),
        }
    }

    /// Waits for something, for as long as it is ours.
    pub(super) async fn while_ours<T>(
        &self,
        waiting: impl Future<Output = T>,
    ) -> Result<T, Failure> {
        let (left, why) = self.left();
        timeout(left, waiting).await.map_err(|_| why)
    }

    /// How long it is ours yet, and what it is then.
    fn left(&self) -> (Duration, Failure) {
        let hold = (self.hold_until.saturating_duration_since(Instant::now()), Failure::Postponed);
        match self.request.expires_at {
            Some(end) => {
                let wanted = end.duration_since(SystemTime::now()).unwrap_or_default();
                if wanted <= hold.0 { (wanted, Failure::Expired) } else { hold }
            }
            None => hold,
        }
    }
}
