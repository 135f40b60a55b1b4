//! The right to make a session: ours while we live, and gone soon after we do not.

use std::{
    fmt,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use tokio::time::sleep;

use super::{
    CacheError, LEASE, Stamp,
    claim::{Claimant, Overwrite},
    scripts, value,
};
use crate::{
    session::{Session, Token},
    units::millis,
};

/// Often enough that a failed try leaves time for another.
const EXTEND_EVERY: Duration = Duration::from_secs(2);

/// What became of a link that was to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreOutcome {
    /// It is stored.
    Stored,
    /// The lease had ended and somebody else went ahead: theirs counts.
    Fenced,
}

/// A lease on one user and workflow.
///
/// The holder's name is fresh for every claim and compared in the same step that writes, so a worker
/// that was stalled past its lease changes nothing its successor did.
pub struct Lease {
    claimant: Claimant,
    /// The newest link at the time of the claim.
    newest: Stamp,
    token: Option<Token>,
    lost: AtomicBool,
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("holder", &self.claimant.holder).finish_non_exhaustive()
    }
}

impl Lease {
    pub(super) fn new(claimant: Claimant, newest: Stamp, token: Option<Token>) -> Self {
        Self { claimant, newest, token, lost: AtomicBool::new(false) }
    }

    /// The newest link at the time of the claim, which would not do.
    pub fn newest(&self) -> &Stamp {
        &self.newest
    }

    /// A token that an earlier try got and made no session with, if there is one.
    pub fn stored_token(&self) -> Option<Token> {
        self.token.clone()
    }

    /// Whether Redis has said that the lease is ours no longer: somebody else may have gone ahead.
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// Extends the lease again and again. Never ends: run it beside the work, and drop it after.
    pub async fn keep_alive(&self) {
        loop {
            sleep(EXTEND_EVERY).await;
            self.extend().await;
        }
    }

    pub(super) async fn extend(&self) {
        let mut script = scripts::EXTEND.key(&self.claimant.keys.lease);
        script.arg(&self.claimant.holder).arg(millis(LEASE));
        // Where Redis cannot be reached, that is told when the link is to be stored.
        if let Ok(false) = self.claimant.cache.run::<bool>(&script).await {
            self.lost.store(true, Ordering::Relaxed);
        }
    }

    /// The same lease once more, to do late with what was to be done with it before.
    #[cfg(test)]
    pub(super) fn twin(&self) -> Self {
        let Claimant { cache, keys, holder, stamp } = &self.claimant;
        let (cache, keys) = (cache.clone(), keys.clone());
        let claimant = Claimant { cache, keys, holder: holder.clone(), stamp: stamp.clone() };
        let (newest, token) = (self.newest.clone(), self.token.clone());
        Self { claimant, newest, token, lost: AtomicBool::new(false) }
    }

    /// Keeps a token for whoever comes after a crash.
    pub async fn save_token(&self, token: &Token) {
        let life = self.claimant.cache.life(token.expires_at);
        let Ok(sealed) =
            self.claimant.cache.seal(&self.claimant.keys.token, value::write_token(token))
        else {
            return;
        };
        if life > 0 {
            let mut script = scripts::SAVE_TOKEN.key(&self.claimant.keys.token);
            script.key(&self.claimant.keys.lease).arg(&self.claimant.holder).arg(life).arg(sealed);
            // Counted as an error; what it could have saved is one token call after a crash.
            let _ = self.claimant.cache.run::<bool>(&script).await;
        }
    }

    /// Stores the link for whoever asks next, and ends the lease.
    ///
    /// # Errors
    /// When Redis is away.
    pub async fn store(&self, session: &Session) -> Result<StoreOutcome, CacheError> {
        self.claimant.store(session, Overwrite::Only(&self.newest)).await
    }

    /// Ends the lease without a link. A token that is no good goes too.
    pub async fn release(&self, drop_token: bool) {
        // If this fails, the lease ends by itself a little later.
        let script = scripts::release(&self.claimant.keys, &self.claimant.holder, drop_token);
        let _ = self.claimant.cache.run::<bool>(&script).await;
    }
}
