//! The identity of one claim, which fences every write that the claim leads to.

use std::{fmt, sync::Arc, time::SystemTime};

use super::{
    error::CacheError,
    keys::{Keys, Stamp},
    scripts,
    store::Store,
    ttl::LEASE_TTL,
};
use crate::session::Session;

/// Which stored link a new one may replace once no request holds the lease. The holder of the lease may
/// replace any.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Overwrite<'a> {
    /// Any link.
    Any,
    /// No link: the new one is stored only where there is none.
    Never,
    /// The link whose newest stamp is this one.
    Only(&'a Stamp),
}

/// What became of a link that was sent to Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoreOutcome {
    /// Redis stored the link.
    Stored,
    /// The lease had ended and another request has taken over: its link counts.
    Fenced,
}

/// The holder of a lease, or the sender of a claim that Redis did not answer.
pub(super) struct Holder {
    pub(super) store: Arc<Store>,
    pub(super) keys: Keys,
    /// Unique to the claim. Each script compares it in the step that writes.
    pub(super) id: String,
    /// The request behind the claim.
    pub(super) stamp: Stamp,
}

impl Holder {
    /// Stores the link and ends the lease. If Redis fails, defers both until it is available again.
    pub(super) async fn store_link(
        &self,
        session: &Session,
        overwrite: Overwrite<'_>,
    ) -> Result<StoreOutcome, CacheError> {
        let value = self.store.seal_session(&self.keys, session)?;
        let until = self.store.reusable_until(&session.token);
        let overwrite = match overwrite {
            Overwrite::Any => "any",
            Overwrite::Never => "",
            Overwrite::Only(newest) => newest.as_str(),
        };
        let script =
            scripts::store_link(&self.keys, &self.id, overwrite, &self.stamp, until, &value);
        match self.store.run(&script).await {
            Ok(true) => Ok(StoreOutcome::Stored),
            Ok(false) => Ok(StoreOutcome::Fenced),
            Err(error) => {
                let keys = self.keys.clone();
                let id = self.id.clone();
                let stamp = self.stamp.clone();
                let overwrite = overwrite.to_owned();
                self.store.pool.defer(until, move || {
                    scripts::store_link(&keys, &id, &overwrite, &stamp, until, &value)
                });
                Err(error)
            }
        }
    }

    /// Ends the lease once Redis is available again, should Redis have granted it.
    pub(super) fn defer_release(&self) {
        let keys = self.keys.clone();
        let id = self.id.clone();
        let release = move || scripts::release(&keys, &id, false);
        self.store.pool.defer(SystemTime::now() + LEASE_TTL, release);
    }
}

impl fmt::Debug for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Holder").field("id", &self.id).finish_non_exhaustive()
    }
}
