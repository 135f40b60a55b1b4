//! The exclusive right to make a session for one user and workflow.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use tokio::time::sleep;

use super::{
    error::CacheError,
    holder::{Holder, Overwrite, StoreOutcome},
    keys::Stamp,
    scripts,
    ttl::LEASE_TTL,
};
use crate::{
    session::{Session, Token},
    units::millis,
};

/// A third of the lease's TTL, so that one failed extension leaves time for another.
const EXTEND_INTERVAL: Duration = Duration::from_secs(2);

/// A lease that Redis granted.
///
/// Redis compares the holder id in the step that writes, so a worker that stalls past its lease cannot
/// overwrite its successor's link.
#[derive(Debug)]
pub(crate) struct Lease {
    holder: Holder,
    newest: Stamp,
    stored_token: Option<Token>,
    lost: AtomicBool,
}

impl Lease {
    pub(super) fn new(holder: Holder, newest: Stamp, stored_token: Option<Token>) -> Self {
        Self { holder, newest, stored_token, lost: AtomicBool::new(false) }
    }

    /// The newest stamp of the link that was there at the claim; empty if there was none.
    pub(crate) fn newest(&self) -> &Stamp {
        &self.newest
    }

    /// A token that an earlier attempt obtained and made no session with.
    pub(crate) fn stored_token(&self) -> Option<Token> {
        self.stored_token.clone()
    }

    /// Whether Redis has answered that the lease has ended: another request may hold it by now.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// Extends the lease every 2 s. Never returns: run it alongside the work, and drop it with it.
    pub(crate) async fn keep_alive(&self) {
        loop {
            sleep(EXTEND_INTERVAL).await;
            self.extend().await;
        }
    }

    pub(super) async fn extend(&self) {
        let mut script = scripts::EXTEND.key(&self.holder.keys.lease);
        script.arg(&self.holder.id).arg(millis(LEASE_TTL));
        // An error says nothing about the lease; `store` finds out.
        if let Ok(false) = self.holder.store.run::<bool>(&script).await {
            self.lost.store(true, Ordering::Relaxed);
        }
    }

    /// Stores the token, so that a successor can use it if this worker dies before it has a session.
    pub(crate) async fn save_token(&self, token: &Token) {
        let Holder { store, keys, id, .. } = &self.holder;
        let ttl_ms = store.reusable_ms(token);
        let Ok(sealed) = store.seal_token(keys, token) else { return };
        if ttl_ms > 0 {
            let mut script = scripts::SAVE_TOKEN.key(&keys.token);
            script.key(&keys.lease).arg(id).arg(ttl_ms).arg(sealed);
            // A failure is counted, and costs at most one token call after a crash.
            let _ = store.run::<bool>(&script).await;
        }
    }

    /// Stores the link for later requests, and ends the lease.
    ///
    /// # Errors
    /// Redis failed; the link is stored once it is available again.
    pub(crate) async fn store(&self, session: &Session) -> Result<StoreOutcome, CacheError> {
        self.holder.store_link(session, Overwrite::Only(&self.newest)).await
    }

    /// Ends the lease without a link, and deletes the stored token if `drop_token`.
    pub(crate) async fn release(&self, drop_token: bool) {
        let script = scripts::release(&self.holder.keys, &self.holder.id, drop_token);
        // If this fails, the lease expires within its TTL.
        let _ = self.holder.store.run::<bool>(&script).await;
    }

    /// A second handle on the lease, for a test to use after the first one is gone.
    #[cfg(test)]
    pub(super) fn duplicate(&self) -> Self {
        let Holder { store, keys, id, stamp } = &self.holder;
        let holder = Holder {
            store: std::sync::Arc::clone(store),
            keys: keys.clone(),
            id: id.clone(),
            stamp: stamp.clone(),
        };
        Self::new(holder, self.newest.clone(), self.stored_token.clone())
    }
}
