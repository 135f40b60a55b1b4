//! The handle on Redis: the connection, the encryption and the key prefix of all cache operations.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use deadpool_redis::redis::FromRedisValue;
use tokio::time::{sleep, timeout};

use super::{
    error::CacheError,
    keys::{Keys, Stamp},
    pool::Pool,
    scripts::{self, ScriptCall, remaining_ms},
    seal::Seal,
};
use crate::{
    config::{CacheSettings, Flow},
    session::{Lifetimes, Session, Token},
    telemetry::metrics::Metrics,
};

const RECOVERY_LOOK: Duration = Duration::from_millis(250);
const RECOVERY_LIMIT: Duration = Duration::from_secs(5);

/// Redis, as the worker uses it. Cheap to clone.
#[derive(Clone)]
pub struct Cache(pub(super) Arc<CacheInner>);

pub(super) struct CacheInner {
    pub(super) pool: Pool,
    pub(super) seal: Seal,
    pub(super) prefix: String,
    pub(super) metrics: Arc<Metrics>,
    flow: Flow,
    pub(super) lifetimes: Lifetimes,
    /// How long requests wait for Redis.
    pub(super) patience: Duration,
}

impl Cache {
    /// Starts to connect, and returns before there is a connection.
    pub fn new(settings: &CacheSettings, metrics: Arc<Metrics>) -> Self {
        // A connection that Redis closed is replaced within the limit of one operation.
        let patience = settings.patience.max(scripts::SCRIPT_TIMEOUT);
        Self(Arc::new(CacheInner {
            pool: Pool::new(&settings.redis, patience, Arc::clone(&metrics)),
            seal: Seal::new(settings.seal_keys.clone()),
            prefix: settings.key_prefix.clone(),
            metrics,
            flow: settings.flow,
            lifetimes: Lifetimes {
                token: settings.token_ttl,
                session: settings.session_ttl,
                link_min: settings.link_min_life,
            },
            patience,
        }))
    }

    /// Waits until there is a connection to every server, at most for `limit`.
    pub(crate) async fn wait_connected(&self, limit: Duration) {
        // A time-out is no error: the caller goes on without Redis.
        let _ = timeout(limit, self.0.pool.until_all_connected()).await;
    }

    /// Whether there is a connection to every server, and the last operation of each succeeded.
    pub(crate) fn is_available(&self) -> bool {
        self.0.pool.is_available()
    }

    /// Waits until Redis is available, at most for five seconds: where it refuses operations, only a try shows
    /// whether it still does.
    pub(crate) async fn until_available(&self) {
        let recovered = async {
            self.0.pool.until_all_connected().await;
            while !self.0.pool.is_available() {
                sleep(RECOVERY_LOOK).await;
            }
        };
        // Of a cluster, a part may be unavailable.
        let _ = timeout(RECOVERY_LIMIT, recovered).await;
    }

    /// The Redis keys of a user and workflow.
    pub fn keys(&self, user_id: &str, workflow_id: &str) -> Keys {
        Keys::new(&self.0.prefix, self.0.flow, user_id, workflow_id)
    }

    /// Records on the stored link that it was handed out to this request, too.
    pub(crate) async fn add_stamp(&self, keys: &Keys, stamp: &Stamp) {
        let mut script = scripts::ADD_STAMP.call([&keys.link]);
        script.arg(stamp.as_str());
        // A failure is counted, and costs at most one session after a crash.
        let _ = self.run::<bool>(&keys.link, &script).await;
    }

    /// The link of these keys that this replica has made and not stored yet, and the stamp of the request that it
    /// was made for: this one, or any if `of_any`.
    pub(crate) fn pending_link(
        &self,
        keys: &Keys,
        stamp: &Stamp,
        of_any: bool,
    ) -> Option<(Stamp, Session)> {
        let pending = self.0.pool.deferred.pending(keys);
        pending.filter(|(made_for, session)| {
            (of_any || made_for == stamp) && self.is_reusable(session)
        })
    }

    /// Runs a script on the server that has this key, and counts a failure.
    pub(super) async fn run<T: FromRedisValue>(
        &self,
        key: &str,
        script: &ScriptCall,
    ) -> Result<T, CacheError> {
        // Boxed to keep the caller's future small; it lives for one round trip.
        self.counted(Box::pin(self.0.pool.run(key, script)).await)
    }

    /// Runs a script with keys in two slots, and counts a failure. `None`: the server executes no such script, nor has
    /// it this one, which is no failure.
    pub(super) async fn run_over_two_slots<T: FromRedisValue>(
        &self,
        script: &ScriptCall,
    ) -> Result<Option<T>, CacheError> {
        self.counted(Box::pin(self.0.pool.run_over_two_slots(script)).await)
    }

    /// Counts a failure.
    fn counted<T>(&self, answer: Result<T, CacheError>) -> Result<T, CacheError> {
        if answer.is_err() {
            self.0.metrics.cache.failed();
        }
        answer
    }

    pub(super) fn flow(&self) -> Flow {
        self.0.flow
    }

    /// How long links live, and for how long they are handed out again.
    pub(crate) fn lifetimes(&self) -> &Lifetimes {
        &self.0.lifetimes
    }

    /// Whether a link has enough life left to be handed out again.
    fn is_reusable(&self, session: &Session) -> bool {
        remaining_ms(self.0.lifetimes.reusable_until(session)) > 0
    }

    /// Until when a saved token is used. It may have a session already, which began no earlier than the token.
    pub(super) fn token_usable_until(&self, token: &Token) -> SystemTime {
        let lifetimes = &self.0.lifetimes;
        lifetimes.token_usable_until(token, lifetimes.token_start(token.expires_at))
    }

    /// Reads the key file again if a value is sealed with an unknown key. Returns whether it opens now.
    ///
    /// Boxed to keep the caller's future small; this is rare.
    pub(super) async fn learn_key_of(&self, name: &str, stored: &[u8]) -> bool {
        !stored.is_empty() && Box::pin(self.0.seal.learn_key_of(name, stored)).await
    }

    /// `None` if the link is sealed with another key, damaged, or too close to its end.
    pub(super) fn open_session(&self, keys: &Keys, stored: &[u8]) -> Option<Session> {
        let session = self.0.seal.open_session(&keys.link, stored, &self.0.lifetimes);
        session.filter(|session| self.is_reusable(session))
    }

    /// `None` if the token is sealed with another key, damaged, or too close to its end.
    pub(super) fn open_token(&self, keys: &Keys, stored: &[u8]) -> Option<Token> {
        let token = self.0.seal.open_token(&keys.saved, stored);
        token.filter(|token| remaining_ms(self.token_usable_until(token)) > 0)
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").finish_non_exhaustive()
    }
}
