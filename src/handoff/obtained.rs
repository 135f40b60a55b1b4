//! A link that a request has obtained, and the index entry of its session.

use std::sync::Arc;

use tokio::time::Instant;

use super::job::Job;
use crate::{
    cache::{Cache, Keys, LinkId, Stamp, StoredLink},
    session::Session,
};

/// A session for the request's user and workflow.
#[derive(Clone)]
pub(crate) struct Obtained {
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
    /// Written, and noted in the stored link; or another request sees to that.
    Noted,
}

impl Obtained {
    /// A link that this replica made before. `stamp`: of the request that it is stored for.
    pub(super) fn pending(session: Session, stamp: &Stamp) -> Self {
        Self { reused: true, not_before: None, ..Self::new(session, stamp) }
    }

    /// A link that is about to be stored.
    pub(super) fn new(session: Session, stamp: &Stamp) -> Self {
        let now = Instant::now();
        Self {
            link: LinkId::new(stamp, session.made_at),
            session: Arc::new(session),
            reused: false,
            not_before: Some(now),
            seen_at: now,
            index_entry: IndexEntry::Missing,
        }
    }

    /// The same link, for a request that waited for it. The one that obtained it completes its index entry.
    pub(super) fn shared(self) -> Self {
        Self { reused: true, index_entry: IndexEntry::Noted, ..self }
    }

    /// A link that a claim returned, unless its session has ended. `claimed_at`: before the claim.
    pub(super) async fn unless_ended(
        cache: &Cache,
        keys: &Keys,
        link: StoredLink,
        claimed_at: Instant,
    ) -> Option<Self> {
        let StoredLink { session, id: link, is_indexed, .. } = link;
        let index_entry = if is_indexed {
            IndexEntry::Noted
        } else {
            // Boxed to keep the caller's future small; a link is in this state for a moment.
            match Box::pin(cache.index(keys, link, &session)).await {
                Ok(true) => return None,
                Ok(false) => IndexEntry::Written,
                // Cut off from Redis: the entry is written later.
                Err(_) => IndexEntry::Missing,
            }
        };
        let session = Arc::new(session);
        let not_before = None;
        Some(Self { session, reused: true, not_before, seen_at: claimed_at, link, index_entry })
    }

    /// Records in Redis that the link is handed out. If Redis fails, the index entry is written once it is
    /// available again.
    pub(super) async fn record(&self, cache: &Cache, keys: &Keys, job: &Job<'_>) {
        let Self { session, reused, link, index_entry, .. } = self;
        let is_written = match index_entry {
            IndexEntry::Written => true,
            IndexEntry::Missing | IndexEntry::Noted => {
                cache.index(keys, *link, session).await == Ok(false)
            }
        };
        if is_written && *index_entry != IndexEntry::Noted {
            cache.note_indexed(keys, *link).await;
        }
        // Stamps the link that a renewal reuses, so that a redelivery of the renewal accepts it, too. Best
        // effort: without the stamp, a redelivery makes another link.
        if job.request.renew && *reused {
            cache.add_stamp(keys, &job.stamp()).await;
        }
    }
}
