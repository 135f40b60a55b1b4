//! The connection, the encryption and the key prefix that all cache operations share.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use deadpool_redis::redis::{FromRedisValue, ScriptInvocation};

use super::{error::CacheError, keys::Keys, pool::Pool, seal::Seal, ttl::remaining_ms, value};
use crate::{
    config::CacheSettings,
    session::{Session, Token},
    telemetry::metrics::Metrics,
};

pub(super) struct Store {
    pub(super) pool: Pool,
    pub(super) seal: Seal,
    pub(super) prefix: String,
    pub(super) metrics: Arc<Metrics>,
    link_min_life: Duration,
}

impl Store {
    pub(super) fn new(settings: &CacheSettings, metrics: Arc<Metrics>) -> Result<Self, CacheError> {
        let pool = Pool::new(&settings.url, Arc::clone(&metrics))
            .map_err(|error| CacheError::Url(format!("{:?}", error.kind())))?;
        Ok(Self {
            pool,
            seal: Seal::new(&settings.seal_keys),
            prefix: settings.key_prefix.clone(),
            metrics,
            link_min_life: settings.link_min_life,
        })
    }

    /// Runs a script, and counts a failure.
    pub(super) async fn run<T: FromRedisValue>(
        &self,
        script: &ScriptInvocation<'_>,
    ) -> Result<T, CacheError> {
        // Boxed to keep the caller's future small; it lives for one round trip.
        let answer = Box::pin(self.pool.run(script)).await;
        if answer.is_err() {
            self.metrics.cache.failed();
        }
        answer
    }

    /// Whether a link with this token has enough life left to be handed out again.
    pub(super) fn is_reusable(&self, token: &Token) -> bool {
        self.reusable_ms(token) > 0
    }

    /// For how many milliseconds a link with this token may still be handed out.
    pub(super) fn reusable_ms(&self, token: &Token) -> u64 {
        remaining_ms(self.reusable_until(token))
    }

    /// Until when a link with this token may be handed out.
    pub(super) fn reusable_until(&self, token: &Token) -> SystemTime {
        token.expires_at.checked_sub(self.link_min_life).unwrap_or(SystemTime::UNIX_EPOCH)
    }

    pub(super) fn seal_session(
        &self,
        keys: &Keys,
        session: &Session,
    ) -> Result<Vec<u8>, CacheError> {
        self.seal(&keys.link, value::write_session(session))
    }

    pub(super) fn seal_token(&self, keys: &Keys, token: &Token) -> Result<Vec<u8>, CacheError> {
        self.seal(&keys.token, value::write_token(token))
    }

    /// `None` if the link is sealed with another key, damaged, or too close to its end.
    pub(super) fn open_session(&self, keys: &Keys, stored: &[u8]) -> Option<Session> {
        let session = value::read_session(&self.seal.open(&keys.link, stored)?)?;
        self.is_reusable(&session.token).then_some(session)
    }

    /// `None` if the token is sealed with another key, damaged, or too close to its end.
    pub(super) fn open_token(&self, keys: &Keys, stored: &[u8]) -> Option<Token> {
        let token = value::read_token(&self.seal.open(&keys.token, stored)?)?;
        self.is_reusable(&token).then_some(token)
    }

    fn seal(&self, key: &str, value: Vec<u8>) -> Result<Vec<u8>, CacheError> {
        self.seal.seal(key, value).map_err(|_| CacheError::Failed("sealing failed".to_owned()))
    }
}
