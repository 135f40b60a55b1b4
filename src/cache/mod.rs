//! What Redis remembers: links to hand out again, tokens without a session, and who is at work.
//!
//! Everything here may fail at any time, and nothing depends on it but thrift: without Redis a
//! request is served all the same.

mod claim;
mod deferred;
mod keys;
mod lease;
mod pool;
mod rate_bucket;
mod scripts;
mod seal;
mod survey;
mod value;

#[cfg(test)]
mod tests;

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use claim::Claimant;
use pool::Pool;
use scripts::Claimed;
use seal::Seal;

pub use self::{
    claim::{Overwrite, UnansweredClaim},
    keys::{Keys, Stamp},
    lease::{Lease, StoreOutcome},
    pool::CacheError,
    rate_bucket::RateBucket,
    survey::{RefusedCommand, Survey, survey},
};

use crate::{
    config::{CacheSettings, RateLimit},
    session::{Session, Token},
    telemetry::metrics::{Lookup, Metrics},
    units::millis,
};

/// Seals sessions as Redis holds them, with one key, and opens them: `benches/micro.rs` measures what
/// that costs.
#[doc(hidden)]
pub struct Sealing(Seal);

impl Sealing {
    #[doc(hidden)]
    pub fn new(key: [u8; 32]) -> Self {
        Self(Seal::new(&[secrecy::SecretBox::new(Box::new(key))]))
    }

    #[doc(hidden)]
    pub fn seal(&self, name: &str, session: &Session) -> Vec<u8> {
        self.0.seal(name, value::write_session(session)).unwrap_or_default()
    }

    #[doc(hidden)]
    pub fn open(&self, name: &str, stored: &[u8]) -> Option<Session> {
        value::read_session(&self.0.open(name, stored)?)
    }
}

/// How long a lease outlives a holder that was killed. A live one extends it in time.
const LEASE: Duration = Duration::from_secs(6);

/// Which stored links a request accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Any live link.
    Any,
    /// A link made for this very request, or one stored after that.
    SinceRequest,
    /// A link stored after the one whose newest stamp is this.
    NewerThan(Stamp),
}

/// The answer to a claim.
#[derive(Debug)]
pub enum Claim {
    /// A live link that will do.
    Link(Session),
    /// Go ahead: nobody else will until the lease ends.
    Lease(Lease),
    /// Somebody else is at it.
    Held {
        /// The link there is meanwhile, which will not do.
        newest: Stamp,
    },
}

/// Redis, as the worker uses it.
#[derive(Clone)]
pub struct Cache(Arc<Inner>);

struct Inner {
    pool: Pool,
    seal: Seal,
    prefix: String,
    link_min_life: Duration,
    metrics: Arc<Metrics>,
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("seal", &self.0.seal).finish_non_exhaustive()
    }
}

impl Cache {
    /// Starts to connect; needs no Redis yet.
    ///
    /// # Errors
    /// When the URL is none for Redis, which the settings have checked.
    pub fn new(settings: &CacheSettings, metrics: Arc<Metrics>) -> Result<Self, CacheError> {
        let pool = Pool::new(&settings.url, Arc::clone(&metrics))
            .map_err(|error| CacheError::Failed(format!("{:?}", error.kind())))?;
        Ok(Self(Arc::new(Inner {
            pool,
            seal: Seal::new(&settings.seal_keys),
            prefix: settings.key_prefix.clone(),
            link_min_life: settings.link_min_life,
            metrics,
        })))
    }

    /// Whether there is a connection, and what was last asked by it was answered: a Redis that is
    /// full, say, refuses to write.
    pub fn is_available(&self) -> bool {
        self.0.pool.is_available()
    }

    /// The bucket of calls that all replicas share.
    pub fn rate_bucket(&self, limit: RateLimit) -> RateBucket {
        RateBucket::new(self.clone(), limit)
    }

    /// Waits until there is a connection, for so long at most.
    pub async fn wait_connected(&self, limit: Duration) {
        self.0.pool.wait_connected(limit).await;
    }

    /// The keys of a user and workflow.
    pub fn keys(&self, user_id: &str, workflow_id: &str) -> Keys {
        Keys::new(&self.0.prefix, user_id, workflow_id)
    }

    /// Asks, in one step, for a link that will do or for the right to make one.
    ///
    /// # Errors
    /// When Redis is away; the caller then goes on without it.
    pub async fn claim(
        &self,
        keys: &Keys,
        stamp: &Stamp,
        freshness: &Freshness,
    ) -> Result<Claim, UnansweredClaim> {
        let mut freshness = freshness.clone();
        loop {
            let (which, with) = match &freshness {
                Freshness::Any => ("any", stamp),
                Freshness::SinceRequest => ("own", stamp),
                Freshness::NewerThan(stamp) => ("other", stamp),
            };
            let holder = uuid::Uuid::new_v4().simple().to_string();
            let mut script = scripts::CLAIM.key(&keys.link);
            script.key(&keys.token).key(&keys.lease);
            script.arg(&holder).arg(millis(LEASE)).arg(which).arg(with.as_str());
            let said = self.run::<Vec<u8>>(&script).await;
            let claimant = |holder| Claimant {
                cache: self.clone(),
                keys: keys.clone(),
                holder,
                stamp: stamp.clone(),
            };
            let why = match said.as_deref().map(Claimed::read) {
                Ok(Some(Claimed::Link { stamps, value })) => match self.read_link(keys, value) {
                    Some(session) => {
                        self.0.metrics.looked_up(Lookup::Hit);
                        return Ok(Claim::Link(session));
                    }
                    // Sealed with a key we do not have, or as good as ended: as if it were not there.
                    None => {
                        freshness = Freshness::NewerThan(Stamp::from_redis(stamps));
                        continue;
                    }
                },
                Ok(Some(Claimed::Lease { newest, token })) => {
                    self.0.metrics.looked_up(Lookup::Miss);
                    let token = self.read_token(keys, token);
                    return Ok(Claim::Lease(Lease::new(claimant(holder), newest, token)));
                }
                Ok(Some(Claimed::Held { newest })) => return Ok(Claim::Held { newest }),
                Ok(None) => {
                    self.0.metrics.cache_failed();
                    CacheError::Failed("it does not answer as its script does".to_owned())
                }
                Err(why) => why.clone(),
            };
            return Err(UnansweredClaim::new(claimant(holder), why));
        }
    }

    /// Notes on the link there is that it was made for this request, too.
    pub async fn add_stamp(&self, keys: &Keys, stamp: &Stamp) {
        let mut script = scripts::ADD_STAMP.key(&keys.link);
        script.arg(stamp.as_str());
        // Counted as an error; what it could have saved is one session after a crash.
        let _ = self.run::<bool>(&script).await;
    }

    /// Whether a link with this token would be handed out again.
    pub fn is_reusable(&self, token: &Token) -> bool {
        self.life(token.expires_at) > 0
    }

    /// How long something may be handed out that ends then, in milliseconds.
    fn life(&self, end: SystemTime) -> u64 {
        left(self.until(end))
    }

    /// Until when something may be handed out that ends then.
    fn until(&self, end: SystemTime) -> SystemTime {
        end.checked_sub(self.0.link_min_life).unwrap_or(SystemTime::UNIX_EPOCH)
    }

    fn read_link(&self, keys: &Keys, stored: &[u8]) -> Option<Session> {
        let session = value::read_session(&self.0.seal.open(&keys.link, stored)?)?;
        self.is_reusable(&session.token).then_some(session)
    }

    fn read_token(&self, keys: &Keys, stored: &[u8]) -> Option<Token> {
        let token = value::read_token(&self.0.seal.open(&keys.token, stored)?)?;
        self.is_reusable(&token).then_some(token)
    }

    fn seal(&self, key: &str, value: Vec<u8>) -> Result<Vec<u8>, CacheError> {
        self.0.seal.seal(key, value).map_err(|_| CacheError::Failed("sealing failed".to_owned()))
    }

    async fn run<T: deadpool_redis::redis::FromRedisValue>(
        &self,
        script: &deadpool_redis::redis::ScriptInvocation<'_>,
    ) -> Result<T, CacheError> {
        // Short: what takes long beside it need not have room for it.
        let answer = Box::pin(self.0.pool.run(script)).await;
        if answer.is_err() {
            self.0.metrics.cache_failed();
        }
        answer
    }
}

/// Milliseconds from now until then.
fn left(until: SystemTime) -> u64 {
    millis(until.duration_since(SystemTime::now()).unwrap_or_default())
}
