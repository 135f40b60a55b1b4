//! Asks Redis, in one atomic step, for a reusable link or for the lease to make one.

use std::sync::atomic::AtomicBool;

use futures_util::future::join;

use super::{
    error::CacheError,
    handle::Cache,
    keys::{Keys, LinkId, Stamp},
    lease::{Holder, Lease, Overwrite, StoreOutcome},
    scripts::{self, ClaimReply},
    writes::Timing,
};
use crate::{config::Flow, session::Session, telemetry::metrics::Lookup, units::millis};

/// Which stored link a request accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Freshness {
    /// Any live link.
    Any,
    /// The link made for this very request, or a later one. A renewal asks for this.
    SinceRequest,
    /// Any link but the one whose newest stamp is this.
    OtherThan(Stamp),
}

/// Redis' reply to a claim.
#[derive(Debug)]
pub(crate) enum Claim {
    /// A live link that is fresh enough.
    Link(StoredLink),
    /// The lease: no other request makes a session until it ends.
    Lease(Lease),
    /// Another request holds the lease.
    LeaseTaken {
        /// The newest stamp of the current link, which is not fresh enough; empty without a link.
        newest: Stamp,
    },
}

/// A link that was in Redis.
#[derive(Debug)]
pub(crate) struct StoredLink {
    pub(crate) session: Session,
    /// Its newest stamp.
    pub(crate) newest: Stamp,
    pub(crate) id: LinkId,
    /// Its session's index entry is written: had the session ended, the link would be gone.
    pub(crate) is_indexed: bool,
}

/// A claim that Redis did not answer. Redis may have granted it anyway.
#[derive(Debug)]
pub(crate) struct UnansweredClaim {
    pub(super) holder: Holder,
    may_be_granted: bool,
    pub(crate) error: CacheError,
}

impl UnansweredClaim {
    /// Stores a link that was made without a lease, unless another request holds the lease or
    /// `overwrite` forbids it.
    ///
    /// If Redis still fails, the link is stored once it is available again.
    pub(crate) async fn store(
        self,
        session: &Session,
        overwrite: Overwrite<'_>,
    ) -> Result<StoreOutcome, CacheError> {
        self.holder.store_link(session, overwrite, Timing::AtOnce, None).await
    }

    /// Ends the lease once Redis is available again, should Redis have granted it.
    pub(crate) fn release(self) {
        // With no connection the claim was never sent.
        if self.may_be_granted {
            self.holder.release_later();
        }
    }
}

impl Cache {
    /// Asks for a link that is fresh enough, or for the lease to make one.
    ///
    /// `unanswered`: the claim that is repeated. If Redis granted it the lease, the lease is granted again.
    pub(crate) async fn claim(
        &self,
        keys: &Keys,
        stamp: &Stamp,
        freshness: &Freshness,
        unanswered: Option<UnansweredClaim>,
    ) -> Result<Claim, UnansweredClaim> {
        let mut freshness = freshness.clone();
        let (id, mut may_be_granted) = match unanswered {
            Some(UnansweredClaim { holder, may_be_granted, .. }) => (holder.id, may_be_granted),
            None => (uuid::Uuid::new_v4().simple().to_string(), false),
        };
        loop {
            let mut script =
                scripts::CLAIM.call([&keys.link, &keys.saved, &keys.lease, &keys.mark]);
            script.arg(&id).arg(millis(self.lease_ttl()));
            match &freshness {
                Freshness::Any => {}
                Freshness::SinceRequest => drop(script.arg("own").arg(stamp.as_str())),
                Freshness::OtherThan(known) => drop(script.arg("other").arg(known.as_str())),
            }
            let reply = match self.0.pool.run_deferred(&keys.link) {
                None => self.run::<Vec<u8>>(&keys.link, &script).await,
                // What a fail-over may have lost, for example. Boxed to keep the caller's future small; this is rare.
                Some(deferred) => {
                    Box::pin(join(deferred, self.run::<Vec<u8>>(&keys.link, &script))).await.1
                }
            };
            if reply.is_ok() {
                self.0.pool.served(&keys.link);
            }
            let holder = |id, mark: &[u8], earlier_links| Holder {
                cache: self.clone(),
                keys: keys.clone(),
                id,
                stamp: stamp.clone(),
                mark: mark.to_vec(),
                earlier_links,
            };
            let error = match reply.as_deref().map(ClaimReply::parse) {
                Ok(Some(ClaimReply::Link { stamps, value })) => {
                    let mut session = self.open_session(keys, value);
                    if session.is_none() && self.learn_key_of(&keys.link, value).await {
                        session = self.open_session(keys, value);
                    }
                    let Some(session) = session else {
                        // Unreadable, or about to expire: claim again as if this link were not there.
                        freshness = Freshness::OtherThan(Stamp::from_redis(stamps));
                        continue;
                    };
                    self.0.metrics.cache.looked_up(Lookup::Hit);
                    let newest = Stamp::from_redis(stamps);
                    let id = LinkId::of_stored(stamps);
                    let is_indexed = ClaimReply::is_indexed(stamps);
                    return Ok(Claim::Link(StoredLink { session, newest, id, is_indexed }));
                }
                Ok(Some(ClaimReply::Lease { newest, mark, saved })) => {
                    self.0.metrics.cache.looked_up(Lookup::Miss);
                    let (stored_token, earlier_links) = match self.flow() {
                        Flow::Token => {
                            self.learn_key_of(&keys.saved, saved).await;
                            (self.open_token(keys, saved), 0)
                        }
                        Flow::Deeplink => (None, stamp.links(saved)),
                    };
                    let lost = AtomicBool::new(false);
                    let holder = holder(id, mark, earlier_links);
                    return Ok(Claim::Lease(Lease { holder, newest, stored_token, lost }));
                }
                Ok(Some(ClaimReply::LeaseTaken { newest })) => {
                    return Ok(Claim::LeaseTaken { newest });
                }
                Ok(None) => {
                    self.0.metrics.cache.failed();
                    CacheError::Failed("unexpected reply from the claim script".to_owned())
                }
                Err(error) => error.clone(),
            };
            may_be_granted |= error != CacheError::Unavailable;
            return Err(UnansweredClaim { holder: holder(id, b"", 0), may_be_granted, error });
        }
    }
}
