//! Redis: links to hand out again, tokens not yet used, leases and the shared rate bucket.
//!
//! **Redis is optional at run time.** Every operation may fail at any time, and without Redis every
//! request is still served, at the cost of extra sessions.
//!
//! Imports run one way: `mod` → `claim` → `lease` → `holder` → `store` → `pool` → `keeper`. The other
//! files (keys, scripts, values, errors) import none of these.

mod claim;
mod connection_health;
mod deferred;
mod error;
mod holder;
mod keeper;
mod keys;
mod lease;
mod log;
mod pool;
mod rate_bucket;
mod scripts;
mod seal;
mod store;
mod survey;
mod ttl;
mod value;

#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc, time::Duration};

pub(crate) use self::{
    claim::{Claim, Freshness, UnansweredClaim},
    holder::{Overwrite, StoreOutcome},
    keys::Stamp,
    lease::Lease,
    rate_bucket::RateBucket,
    survey::{RefusedCommand, Survey, survey},
};
pub use self::{error::CacheError, keys::Keys};
use self::{seal::Seal, store::Store};
use crate::{
    config::{CacheSettings, RateLimit},
    session::{Session, Token},
    telemetry::metrics::Metrics,
};

/// Redis, as the worker uses it. Cheap to clone.
#[derive(Clone)]
pub struct Cache(Arc<Store>);

impl Cache {
    /// Starts to connect, and returns before there is a connection.
    ///
    /// # Errors
    /// The Redis client rejects the URL.
    pub fn new(settings: &CacheSettings, metrics: Arc<Metrics>) -> Result<Self, CacheError> {
        Ok(Self(Arc::new(Store::new(settings, metrics)?)))
    }

    /// Waits until there is a connection, at most for `limit`.
    pub(crate) async fn wait_connected(&self, limit: Duration) {
        self.0.pool.wait_connected(limit).await;
    }

    /// Whether there is a connection, and the last operation succeeded.
    ///
    /// A Redis that is full keeps its connection but refuses writes, and so is not available.
    pub(crate) fn is_available(&self) -> bool {
        self.0.pool.is_available()
    }

    /// The Redis keys of a user and workflow.
    pub fn keys(&self, user_id: &str, workflow_id: &str) -> Keys {
        Keys::new(&self.0.prefix, user_id, workflow_id)
    }

    /// Asks for a link that is fresh enough, or for the lease to make one.
    ///
    /// # Errors
    /// Redis did not answer; the caller goes on without it.
    pub(crate) fn claim(
        &self,
        keys: &Keys,
        stamp: &Stamp,
        freshness: &Freshness,
    ) -> impl Future<Output = Result<Claim, UnansweredClaim>> {
        claim::claim(&self.0, keys, stamp, freshness)
    }

    /// Records on the stored link that it was handed out to this request, too.
    pub(crate) async fn add_stamp(&self, keys: &Keys, stamp: &Stamp) {
        let mut script = scripts::ADD_STAMP.key(&keys.link);
        script.arg(stamp.as_str());
        // A failure is counted, and costs at most one session after a crash.
        let _ = self.0.run::<bool>(&script).await;
    }

    /// Whether a link with this token has enough life left to be handed out again.
    pub(crate) fn is_reusable(&self, token: &Token) -> bool {
        self.0.is_reusable(token)
    }

    /// The token bucket that all replicas share.
    pub(crate) fn rate_bucket(&self, limit: RateLimit) -> RateBucket {
        RateBucket::new(Arc::clone(&self.0), limit)
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("seal", &self.0.seal).finish_non_exhaustive()
    }
}

/// Seals and opens sessions as they are stored in Redis, for `benches/micro.rs`.
#[doc(hidden)]
pub struct Sealing(Seal);

impl Sealing {
    #[doc(hidden)]
    pub fn new(key: [u8; 32]) -> Self {
        Self(Seal::new(&[secrecy::SecretBox::new(Box::new(key))]))
    }

    #[doc(hidden)]
    pub fn seal(&self, name: &str, session: &Session) -> Vec<u8> {
        self.0.seal(name, value::write_session(session)).unwrap_or_default()
    }

    #[doc(hidden)]
    pub fn open(&self, name: &str, stored: &[u8]) -> Option<Session> {
        value::read_session(&self.0.open(name, stored)?)
    }
}
