//! A link that a request has obtained, and the index entry of its session.

use std::sync::Arc;

use tokio::time::Instant;

use super::job::Job;
use crate::{
    cache::{Cache, Keys, Lease, LinkId, Stamp, StoreOutcome, StoredLink},
    session::Session,
};

/// A session for the request's user and workflow.
#[derive(Clone)]
pub(crate) struct Obtained {
    /// Of the request's user and workflow.
    pub(super) keys: Keys,
    pub(crate) session: Arc<Session>,
    /// The session was made for another request, or by an earlier try of this one.
    pub(crate) reused: bool,
    /// The link appeared no earlier than this, so a renewal that joined before may use it. `None`: unknown,
    /// as for a link that was in the cache already.
    pub(super) not_before: Option<Instant>,
    /// When the link was there, or about to be stored. A request that was delivered later must look for
    /// itself: the verification may have ended in between.
    pub(super) seen_at: Instant,
    pub(super) link: LinkId,
    pub(super) index_entry: IndexEntry,
}

/// The index entry of a session, as far as this request knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IndexEntry {
    Missing,
    Written,
    /// Written, and noted in the stored link, by an earlier request; or another request sees to that.
    Noted,
    /// Written with the link, which says so.
    Stored,
}

impl Obtained {
    /// A link that this replica made before. `stamp`: of the request that it is stored for.
    pub(super) fn pending(keys: &Keys, session: Session, stamp: &Stamp) -> Self {
        Self { reused: true, not_before: None, ..Self::new(keys, session, stamp) }
    }

    /// A link that is about to be stored.
    pub(super) fn new(keys: &Keys, session: Session, stamp: &Stamp) -> Self {
        let now = Instant::now();
        Self {
            keys: keys.clone(),
            link: LinkId::new(stamp, session.made_at),
            session: Arc::new(session),
            reused: false,
            not_before: Some(now),
            seen_at: now,
            index_entry: IndexEntry::Missing,
        }
    }

    /// Records that the script that stored the link has written its session's index entry, too.
    pub(super) fn stored(self, is_indexed: bool) -> Self {
        let index_entry = if is_indexed { IndexEntry::Stored } else { self.index_entry };
        Self { index_entry, ..self }
    }

    /// The same link, for a request that waited for it. The one that obtained it completes its index entry.
    pub(super) fn shared(self) -> Self {
        Self { reused: true, index_entry: IndexEntry::Noted, ..self }
    }

    /// A link that a claim returned, or its newest stamp if its session has ended. `claimed_at`: before the claim.
    pub(super) async fn unless_ended(
        cache: &Cache,
        keys: &Keys,
        link: StoredLink,
        claimed_at: Instant,
    ) -> Result<Self, Stamp> {
        let StoredLink { session, newest, id: link, is_indexed } = link;
        let index_entry = if is_indexed { IndexEntry::Noted } else { IndexEntry::Missing };
        let stored = Self {
            keys: keys.clone(),
            session: Arc::new(session),
            reused: true,
            not_before: None,
            seen_at: claimed_at,
            link,
            index_entry,
        };
        if is_indexed {
            return Ok(stored);
        }
        // Boxed to keep the caller's future small; a link is in this state for a moment.
        Box::pin(stored.indexed(cache)).await.ok_or(newest)
    }

    /// Stores a link that this replica made without Redis. `None`: its session has ended, or there is a newer link.
    /// If Redis fails, the link is stored later.
    pub(super) async fn store_pending(
        keys: &Keys,
        lease: &Lease,
        session: Session,
        stamp: &Stamp,
    ) -> Option<Self> {
        // Before the store: a request that is delivered after it looks for itself.
        let pending = Self::pending(keys, session, stamp);
        match lease.store_pending(&pending.session).await {
            Ok(StoreOutcome::Stored { .. }) | Err(_) => Some(pending),
            Ok(StoreOutcome::Fenced | StoreOutcome::Ended) => None,
        }
    }

    /// Writes the index entry of its session. `None`: the session has ended.
    async fn indexed(self, cache: &Cache) -> Option<Self> {
        match cache.index(&self.keys, self.link, &self.session).await {
            Ok(true) => None,
            Ok(false) => Some(Self { index_entry: IndexEntry::Written, ..self }),
            // Cut off from Redis: the entry is written later.
            Err(_) => Some(self),
        }
    }

    /// Records in Redis that the link is handed out. If Redis fails, the index entry is written once it is
    /// available again.
    pub(super) async fn record(&self, cache: &Cache, job: &Job<'_>) {
        let Self { keys, session, reused, link, index_entry, .. } = self;
        let to_be_noted = match index_entry {
            IndexEntry::Written => true,
            // Redis may have lost the entry that the link notes.
            IndexEntry::Missing | IndexEntry::Noted => {
                let is_written = cache.index(keys, *link, session).await == Ok(false);
                is_written && *index_entry == IndexEntry::Missing
            }
            IndexEntry::Stored => false,
        };
        if to_be_noted {
            cache.note_indexed(keys, *link).await;
        }
        // Stamps the link that a renewal reuses, so that a redelivery of the renewal accepts it, too. Best
        // effort: without the stamp, a redelivery makes another link.
        if job.request.renew && *reused {
            cache.add_stamp(keys, &job.stamp()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::{
        cache::{
            Claim, Ended, Forgotten, Freshness,
            test_redis::{HOUR, TestRedis, connected},
        },
        config::Flow,
        session::Access,
    };

    #[tokio::test]
    async fn link_in_memory_whose_session_ended_at_another_replica_is_dropped() {
        let redis = TestRedis::connect().await;
        let settings = redis.settings(Flow::Token);
        let [own, other] = [connected(&settings).await, connected(&settings).await];
        let keys = own.keys("ann", "w");
        let stamp = Stamp::of("r2");
        let made_at = SystemTime::now();
        let access = Access::Token("t".to_owned().into());
        let session = Session { access, id: "s".to_owned(), made_at, expires_at: made_at + HOUR };
        assert_eq!(other.end(&Ended::Session("s", None)).await, Ok(Forgotten::Unknown));

        for _ in 0..2 {
            let claimed = own.claim(&keys, &stamp, &Freshness::Any, None).await;
            // Once the link is dropped, there is none to claim.
            let Ok(Claim::Lease(lease)) = claimed else { panic!("no lease: {claimed:?}") };
            let stored = Obtained::store_pending(&keys, &lease, session.clone(), &stamp).await;
            assert!(stored.is_none(), "handed out, though its session has ended");
        }
        redis.delete_all().await;
    }
}
