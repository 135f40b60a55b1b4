//! Who claims: a name of its own for every claim, which every later step is compared with.

use std::{fmt, time::SystemTime};

use super::{Cache, CacheError, Keys, LEASE, Stamp, StoreOutcome, scripts, value};
use crate::session::Session;

/// Which stored link a new one may replace once no request holds the lease.
#[derive(Clone, Copy, Debug)]
pub enum Overwrite<'a> {
    /// Any link.
    Any,
    /// No link: stores only where there is none.
    Never,
    /// The link whose newest stamp is this one, as seen at the claim.
    Only(&'a Stamp),
}

/// A claim, whatever came of it.
pub(super) struct Claimant {
    pub(super) cache: Cache,
    pub(super) keys: Keys,
    /// A name that is used once: for the lease, should it be granted.
    pub(super) holder: String,
    /// The request it is for.
    pub(super) stamp: Stamp,
}

impl Claimant {
    /// Stores the link for whoever asks next, and ends the lease. If Redis is away, that is made up
    /// for when it is back.
    pub(super) async fn store(
        &self,
        session: &Session,
        overwrite: Overwrite<'_>,
    ) -> Result<StoreOutcome, CacheError> {
        let cache = &self.cache;
        let value = cache.seal(&self.keys.link, value::write_session(session))?;
        let until = cache.until(session.token.expires_at);
        let over = match overwrite {
            Overwrite::Any => "any",
            Overwrite::Never => "",
            Overwrite::Only(newest) => newest.as_str(),
        };
        let script = scripts::store(&self.keys, &self.holder, over, &self.stamp, until, &value);
        match cache.run(&script).await {
            Ok(true) => Ok(StoreOutcome::Stored),
            Ok(false) => Ok(StoreOutcome::Fenced),
            Err(error) => {
                let (keys, holder, stamp) =
                    (self.keys.clone(), self.holder.clone(), self.stamp.clone());
                let over = over.to_owned();
                cache.0.pool.defer(until, move || {
                    scripts::store(&keys, &holder, &over, &stamp, until, &value)
                });
                Err(error)
            }
        }
    }
}

/// A claim that Redis did not answer. It may have been granted all the same.
pub struct UnansweredClaim {
    claimant: Claimant,
    error: CacheError,
}

impl UnansweredClaim {
    pub(super) fn new(claimant: Claimant, error: CacheError) -> Self {
        if error != CacheError::Unavailable {
            // It was asked for, so it may yet be granted: to somebody who will not use it.
            let (keys, holder) = (claimant.keys.clone(), claimant.holder.clone());
            let release = move || scripts::release(&keys, &holder, false);
            claimant.cache.0.pool.defer(SystemTime::now() + LEASE, release);
        }
        Self { claimant, error }
    }

    /// Why Redis gave no answer.
    pub fn error(&self) -> &CacheError {
        &self.error
    }

    /// Stores a link made without a lease, unless another request holds the lease or `overwrite` forbids it.
    ///
    /// # Errors
    /// When Redis is still away.
    pub async fn store(
        self,
        session: &Session,
        overwrite: Overwrite<'_>,
    ) -> Result<StoreOutcome, CacheError> {
        self.claimant.store(session, overwrite).await
    }
}

impl fmt::Debug for UnansweredClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnansweredClaim").field("error", &self.error).finish_non_exhaustive()
    }
}
