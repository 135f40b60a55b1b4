//! Who claims: a name of its own for every claim, which every later step is compared with.

use std::{fmt, time::SystemTime};

use super::{Cache, CacheError, Keys, LEASE, Stamp, Stored, scripts, value};
use crate::session::Session;

/// Which link may be stored over, where the lease is nobody's.
pub(super) enum Over<'a> {
    Anything,
    Nothing,
    /// The one with this stamp, which was there at the claim.
    Link(&'a Stamp),
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
        over: Over<'_>,
    ) -> Result<Stored, CacheError> {
        let cache = &self.cache;
        let value = cache.seal(&self.keys.link, value::write_session(session))?;
        let until = cache.until(session.token.expires_at);
        let over = match over {
            Over::Anything => "any",
            Over::Nothing => "",
            Over::Link(newest) => newest.as_str(),
        };
        let script = scripts::store(&self.keys, &self.holder, over, &self.stamp, until, &value);
        match cache.run(&script).await {
            Ok(true) => Ok(Stored::Yes),
            Ok(false) => Ok(Stored::Fenced),
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
pub struct Unclaimed {
    claimant: Claimant,
    why: CacheError,
}

impl Unclaimed {
    pub(super) fn new(claimant: Claimant, why: CacheError) -> Self {
        if why != CacheError::Away {
            // It was asked for, so it may yet be granted: to somebody who will not use it.
            let (keys, holder) = (claimant.keys.clone(), claimant.holder.clone());
            let release = move || scripts::release(&keys, &holder, false);
            claimant.cache.0.pool.defer(SystemTime::now() + LEASE, release);
        }
        Self { claimant, why }
    }

    /// Cause there was no answer.
    pub fn why(&self) -> &CacheError {
        &self.why
    }

    /// Stores a link that was made without a lease, unless somebody has one, or, where it is not to
    /// `replace` that, there is a link already.
    ///
    /// # Errors
    /// When Redis is still away.
    pub async fn store(self, session: &Session, replace: bool) -> Result<Stored, CacheError> {
        let over = if replace { Over::Anything } else { Over::Nothing };
        self.claimant.store(session, over).await
    }
}

impl fmt::Debug for Unclaimed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unclaimed").field("why", &self.why).finish_non_exhaustive()
    }
}
