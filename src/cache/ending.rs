//! The end of a verification: its link is forgotten, and a mark is left for a link that is stored later.

use std::time::SystemTime;

use super::{
    error::CacheError,
    handle::Cache,
    keys::{IndexEntry, Keys, LinkId, session_key},
    scripts::{self, ClaimReply},
    writes::{ForgetCall, Write},
};
use crate::{
    session::Lifetimes,
    units::{millis, unix_millis},
};

/// What has ended.
#[derive(Clone, Debug)]
pub(crate) enum Ended<'a> {
    /// All sessions of a user and workflow that were asked for until the end of this second.
    Until(&'a Keys, SystemTime),
    /// A session; with keys, only if it is that of this user and workflow.
    Session(&'a str, Option<&'a Keys>),
}

/// What an ending came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Forgotten {
    /// A link is forgotten.
    Yes,
    /// The link belongs to a later session.
    Kept,
    /// There is no link, as far as is known.
    Unknown,
}

impl Cache {
    /// Forgets the link of what has ended, and leaves a mark for one token's life. Safe to repeat.
    ///
    /// # Errors
    /// Redis does not answer, or refuses: repeat the call later.
    pub(crate) async fn end(&self, ended: &Ended<'_>) -> Result<Forgotten, CacheError> {
        let until = SystemTime::now() + self.lifetimes().token;
        match ended {
            Ended::Until(keys, at) => self.end_until(keys, *at, until).await,
            Ended::Session(id, keys) => self.end_session(id, *keys, until).await,
        }
    }

    async fn end_until(
        &self,
        keys: &Keys,
        at: SystemTime,
        until: SystemTime,
    ) -> Result<Forgotten, CacheError> {
        let ended = unix_millis(at) / 1_000;
        let deferred = &self.0.pool.deferred;
        deferred.forget(keys, |session| unix_millis(session.made_at) / 1_000 <= ended);
        let Lifetimes { token, link_min, .. } = *self.lifetimes();
        let link_life_ms = millis(token.saturating_sub(link_min));
        let call = ForgetCall::User { keys: keys.clone(), ended, link_life_ms, until };
        let forgotten = self.run::<String>(&keys.link, &call.script()).await?;
        deferred.written(Write::Ending(call));
        Ok(match forgotten.as_str() {
            "forgotten" => Forgotten::Yes,
            "kept" => Forgotten::Kept,
            _ => Forgotten::Unknown,
        })
    }

    async fn end_session(
        &self,
        id: &str,
        of: Option<&Keys>,
        until: SystemTime,
    ) -> Result<Forgotten, CacheError> {
        let deferred = &self.0.pool.deferred;
        match of {
            Some(keys) => deferred.forget(keys, |session| session.id == id),
            None => deferred.forget_session(id),
        }
        let key = session_key(&self.0.prefix, id);
        let hash = of.map(|keys| keys.hash);
        let call = ForgetCall::Session { key, hash, until };
        // The mark comes first: a link that is stored from here on is checked against it.
        let entry = self.run::<Vec<u8>>(call.key(), &call.script()).await?;
        deferred.written(Write::Ending(call));
        let (keys, indexed) = match (IndexEntry::parse(&entry), of) {
            (Some(IndexEntry { hash, link }), _) => {
                (Keys::of_hash(&self.0.prefix, self.flow(), hash), Some(link))
            }
            (None, Some(keys)) => (keys.clone(), None),
            (None, None) => return Ok(Forgotten::Unknown),
        };
        if let Some(link) = indexed
            && self.forget_link(&keys, link, until).await?
        {
            return Ok(Forgotten::Yes);
        }
        // The entry may be lost, or name an earlier store of the session: a link that waits for Redis is also
        // stored by the next request that takes it. The link may also be one of release 0.1, which writes none.
        if let Some(link) = self.stored_link_of(&keys, id).await?
            && self.forget_link(&keys, link, until).await?
        {
            return Ok(Forgotten::Yes);
        }
        Ok(Forgotten::Unknown)
    }

    async fn forget_link(
        &self,
        keys: &Keys,
        link: LinkId,
        until: SystemTime,
    ) -> Result<bool, CacheError> {
        let call = ForgetCall::Link { keys: keys.clone(), link, until };
        let is_forgotten = self.run::<bool>(call.key(), &call.script()).await?;
        self.0.pool.deferred.written(Write::Ending(call));
        Ok(is_forgotten)
    }

    /// The stored link, if it is that of the session.
    async fn stored_link_of(&self, keys: &Keys, id: &str) -> Result<Option<LinkId>, CacheError> {
        let stored = self.run::<Vec<u8>>(&keys.link, &scripts::STORED.call([&keys.link])).await?;
        let Some(ClaimReply::Link { stamps, value }) = ClaimReply::parse(&stored) else {
            return Ok(None);
        };
        let session = self.0.seal.open_session(&keys.link, value, self.lifetimes());
        let is_stored = session.is_some_and(|session| session.id == id);
        Ok(is_stored.then(|| LinkId::of_stored(stamps)))
    }
}
