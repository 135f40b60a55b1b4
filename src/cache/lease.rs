//! The exclusive right to make a session for one user and workflow.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, SystemTime},
};

use tokio::time::sleep;

use super::{
    error::CacheError,
    handle::Cache,
    keys::{Keys, LinkId, Stamp},
    refusal::Recovery,
    scripts,
    writes::{IndexCall, StoreCall, Timing, Write},
};
use crate::{
    config::Flow,
    session::{Session, Token},
    units::millis,
};

/// How long a lease outlives a killed holder, at least.
const SHORTEST_LEASE: Duration = Duration::from_secs(6);
/// How long a lease lasts beyond the time that requests wait for Redis.
const BEYOND_PATIENCE: Duration = Duration::from_secs(3);
/// How often a live holder extends its lease. When Redis comes back after the longest wait, the lease has
/// then at least two seconds left.
const EXTEND_INTERVAL: Duration = Duration::from_secs(1);

/// Which stored link a new one may replace once no request holds the lease. The holder of the lease may
/// replace any.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Overwrite<'a> {
    Any,
    /// No link: the new one is stored only if no link exists.
    IfAbsent,
    /// The link whose newest stamp is this one.
    Only(&'a Stamp),
}

/// What became of a link that was sent to Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoreOutcome {
    Stored {
        /// The session's index entry is written with the link, and the link says so.
        is_indexed: bool,
    },
    /// The lease had ended, and another request has taken over or the verification has ended.
    Fenced,
    /// The session has ended, so its link is forgotten.
    Ended,
}

/// The holder of a lease, or the sender of a claim that Redis did not answer.
#[derive(Debug)]
pub(super) struct Holder {
    pub(super) cache: Cache,
    pub(super) keys: Keys,
    /// Unique to the claim. Each script compares it in the step that writes.
    pub(super) id: String,
    /// The request behind the claim.
    pub(super) stamp: Stamp,
    /// The mark of the last ending before the claim: see `forget.lua`. Empty without one, or if the claim was
    /// not answered.
    pub(super) mark: Vec<u8>,
    /// How many links the request had before the claim, all of them ended or forgotten. Counted in the one-call flow
    /// only, and 0 if the claim was not answered.
    pub(super) earlier_links: u32,
}

impl Holder {
    /// Stores the link and ends the lease. If Redis fails, defers both until it is available again.
    ///
    /// `entry`: the session's index entry, to be written by the same script, if the server executes scripts over two
    /// slots. If it turns out that it does not, the link is stored without the entry.
    pub(super) async fn store_link(
        &self,
        session: &Session,
        overwrite: Overwrite<'_>,
        timing: Timing,
        entry: Option<IndexCall>,
    ) -> Result<StoreOutcome, CacheError> {
        let cache = &self.cache;
        let deferred = &cache.0.pool.deferred;
        let value = cache.0.seal.seal_session(&self.keys.link, session)?;
        let overwrite = match overwrite {
            Overwrite::Any => "any",
            Overwrite::IfAbsent => "",
            Overwrite::Only(newest) => newest.as_str(),
        };
        let call = StoreCall {
            keys: self.keys.clone(),
            holder: self.id.clone(),
            overwrite: overwrite.to_owned(),
            stamp: self.stamp.clone(),
            made_at: session.made_at,
            links: match cache.flow() {
                Flow::Token => 0,
                Flow::Deeplink => self.earlier_links.saturating_add(1),
            },
            until: cache.lifetimes().reusable_until(session),
            value,
            mark: match timing {
                Timing::AtOnce => self.mark.clone(),
                // The session is older than the claim.
                Timing::Late => Vec::new(),
            },
        };
        let mut stored = Ok(None);
        if let Some(entry) = &entry {
            stored = cache.run_over_two_slots::<u8>(&call.script(timing, Some(entry))).await;
        }
        if stored == Ok(None) {
            stored = cache.run(&self.keys.link, &call.script(timing, None)).await.map(Some);
        }
        match stored.map(Option::unwrap_or_default) {
            Ok(0) => Ok(StoreOutcome::Fenced),
            Ok(stored) => {
                deferred.written(Write::Link(call));
                let entry = entry.filter(|_| stored == 2);
                let is_indexed = entry.is_some();
                if let Some(entry) = entry {
                    deferred.written(Write::Index(entry));
                }
                Ok(StoreOutcome::Stored { is_indexed })
            }
            Err(error) => {
                deferred.store_later(call, session);
                Err(error)
            }
        }
    }

    /// Ends the lease once Redis is available again, should Redis have granted it.
    pub(super) fn release_later(&self) {
        let until = SystemTime::now() + self.cache.lease_ttl();
        let deferred = &self.cache.0.pool.deferred;
        deferred.release_later(self.keys.clone(), self.id.clone(), until);
    }
}

/// A lease that Redis granted.
///
/// Redis compares the holder id in the step that writes, so a worker that stalls past its lease cannot
/// overwrite its successor's link.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(super) holder: Holder,
    /// The newest stamp of the link that was there at the claim; empty if there was none.
    pub(crate) newest: Stamp,
    /// A token that an earlier attempt obtained and made no session with.
    pub(crate) stored_token: Option<Token>,
    pub(super) lost: AtomicBool,
}

impl Lease {
    /// Whether Redis has answered that the lease has ended: another request may hold it by now.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// How many links this request has had, all of them ended or forgotten. Counted in the one-call flow only.
    pub(crate) fn earlier_links(&self) -> u32 {
        self.holder.earlier_links
    }

    /// Extends the lease every second, and as soon as Redis is back. Never returns: run it alongside the
    /// work, and drop it with it.
    pub(crate) async fn keep_alive(&self) {
        let Holder { cache, keys, .. } = &self.holder;
        let pool = &cache.0.pool;
        loop {
            sleep(EXTEND_INTERVAL).await;
            while self.extend().await.is_err_and(|error| error.recovery() == Recovery::ByItself)
                && !pool.node(&keys.lease).state.has_working_connection()
            {
                pool.until_connected(&keys.lease).await;
            }
        }
    }

    pub(super) async fn extend(&self) -> Result<(), CacheError> {
        let Holder { cache, keys, id, .. } = &self.holder;
        let mut script = scripts::EXTEND.call([&keys.lease]);
        script.arg(id).arg(millis(cache.lease_ttl()));
        // An error says nothing about the lease; `store` finds out.
        if !cache.run::<bool>(&keys.lease, &script).await? {
            self.lost.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Stores the token, so that a successor can use it if this worker dies before it has a session.
    pub(crate) async fn save_token(&self, token: &Token) {
        let Holder { cache, keys, id, .. } = &self.holder;
        let ttl_ms = scripts::remaining_ms(cache.token_usable_until(token));
        let Ok(sealed) = cache.0.seal.seal_token(&keys.saved, token) else { return };
        if ttl_ms > 0 {
            let mut script = scripts::SAVE_TOKEN.call([&keys.saved, &keys.lease]);
            script.arg(id).arg(ttl_ms).arg(sealed);
            // A failure is counted, and costs at most one token call after a crash.
            let _ = cache.run::<bool>(&keys.lease, &script).await;
        }
    }

    /// Stores the link for later requests, and ends the lease. Outside a cluster, the same script writes the
    /// session's index entry: two scripts fewer, for Redis and for the worker.
    ///
    /// If Redis fails, the link is stored once it is available again.
    pub(crate) async fn store(&self, session: &Session) -> Result<StoreOutcome, CacheError> {
        let Self { holder, newest, .. } = self;
        let entry = holder.cache.0.pool.takes_two_slots().then(|| {
            let link = LinkId::new(&holder.stamp, session.made_at);
            holder.cache.index_call(&holder.keys, link, session)
        });
        holder.store_link(session, Overwrite::Only(newest), Timing::AtOnce, entry).await
    }

    /// The same for a session that an earlier try may have made, and that may have ended since.
    pub(crate) async fn store_unless_ended(
        &self,
        session: &Session,
    ) -> Result<StoreOutcome, CacheError> {
        self.store_and_index(session, Timing::AtOnce).await
    }

    /// Stores a link and writes its session's index entry at the same time, which shows whether the session has
    /// ended.
    ///
    /// The entry may be written first. An ending in between would miss the link, so the entry is written again
    /// before it is noted in the link.
    async fn store_and_index(
        &self,
        session: &Session,
        timing: Timing,
    ) -> Result<StoreOutcome, CacheError> {
        let Self { holder, newest, .. } = self;
        let Holder { cache, keys, stamp, .. } = holder;
        let link = LinkId::new(stamp, session.made_at);
        let (stored, has_ended) = tokio::join!(
            holder.store_link(session, Overwrite::Only(newest), timing, None),
            cache.write_index(keys, link, session),
        );
        if has_ended == Ok(true) {
            // Not before the link is stored.
            cache.forget_ended(keys, link, session).await;
            if stored.is_err() {
                // The lease and the token of the ended session are still there: the next claim would wait for the
                // one, and get the same session for the other.
                self.release(true).await;
            }
            return Ok(StoreOutcome::Ended);
        }
        stored
    }

    /// Stores a link that this replica made without Redis and has handed out since.
    ///
    /// If Redis fails, the link is stored once it is available again.
    pub(crate) async fn store_pending(
        &self,
        session: &Session,
    ) -> Result<StoreOutcome, CacheError> {
        let Self { holder, .. } = self;
        let outcome = self.store_and_index(session, Timing::Late).await?;
        if outcome == StoreOutcome::Fenced {
            holder.cache.0.pool.deferred.forget(&holder.keys, |_| true);
        }
        Ok(outcome)
    }

    /// Ends the lease without a link, and deletes the stored token if `drop_token`.
    pub(crate) async fn release(&self, drop_token: bool) {
        let Holder { cache, keys, id, .. } = &self.holder;
        // If this fails, the lease expires within its TTL.
        let _ = cache.run::<bool>(&keys.lease, &scripts::release(keys, id, drop_token)).await;
    }
}

impl Cache {
    pub(super) fn lease_ttl(&self) -> Duration {
        SHORTEST_LEASE.max(self.0.patience + BEYOND_PATIENCE)
    }
}
