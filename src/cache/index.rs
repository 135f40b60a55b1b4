//! The index of sessions: where the link of each is stored, so that it can be forgotten by its session alone.
//!
//! The script that stores a new link writes the entry, too. In a Redis Cluster it cannot: the entry lies in another
//! slot. There, and where the session has an entry already, the entry is written after the link, and then noted in the
//! link. Until then, each request that takes the link out of Redis writes the entry first, and so finds out whether the
//! session has ended.

use super::{
    error::CacheError,
    handle::Cache,
    keys::{Keys, LinkId, session_key},
    scripts,
    writes::{IndexCall, Write},
};
use crate::session::Session;

impl Cache {
    /// Writes the index entry of a session. Returns whether the session has ended: then its link is forgotten.
    ///
    /// If Redis fails, the entry is written once it is available again.
    pub(crate) async fn index(
        &self,
        keys: &Keys,
        link: LinkId,
        session: &Session,
    ) -> Result<bool, CacheError> {
        let has_ended = self.write_index(keys, link, session).await?;
        if has_ended {
            self.forget_ended(keys, link, session).await;
        }
        Ok(has_ended)
    }

    /// Writes the index entry of a session, but leaves it to the caller to forget the link if the session has ended.
    pub(super) async fn write_index(
        &self,
        keys: &Keys,
        link: LinkId,
        session: &Session,
    ) -> Result<bool, CacheError> {
        let call = self.index_call(keys, link, session);
        let deferred = &self.0.pool.deferred;
        let written = self.run::<bool>(&call.key, &call.script()).await;
        match written {
            Ok(false) => deferred.written(Write::Index(call)),
            Ok(true) => {}
            Err(_) => deferred.write_later(Write::Index(call)),
        }
        written
    }

    /// Forgets the link of a session that has ended.
    pub(super) async fn forget_ended(&self, keys: &Keys, link: LinkId, session: &Session) {
        let deferred = &self.0.pool.deferred;
        deferred.forget_session(&session.id);
        let call = self.index_call(keys, link, session).forget();
        if self.run::<bool>(&keys.link, &call.script()).await.is_err() {
            deferred.write_later(Write::Ending(call));
        }
    }

    pub(super) fn index_call(&self, keys: &Keys, link: LinkId, session: &Session) -> IndexCall {
        IndexCall {
            key: session_key(&self.0.prefix, &session.id),
            keys: keys.clone(),
            link,
            until: self.lifetimes().reusable_until(session),
        }
    }

    /// Notes in a stored link that the index entry of its session is written.
    pub(crate) async fn note_indexed(&self, keys: &Keys, link: LinkId) {
        let mut script = scripts::INDEXED.call([&keys.link]);
        script.arg(link.to_hex());
        // A failure is counted, and costs the next request that takes the link a round trip.
        let _ = self.run::<bool>(&keys.link, &script).await;
    }
}
