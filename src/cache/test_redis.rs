//! The Redis of the unit tests, under a key prefix of each test's own.

use std::time::Duration;

use deadpool_redis::redis::{self, AsyncCommands, aio::MultiplexedConnection};

use super::{Cache, dial::Address};
use crate::{
    config::{CacheSettings, Flow, RedisSettings},
    telemetry::metrics::Metrics,
};

pub(crate) const HOUR: Duration = Duration::from_secs(3_600);
pub(crate) const LINK_MIN_LIFE: Duration = Duration::from_secs(600);

pub(crate) struct TestRedis {
    url: String,
    pub(crate) prefix: String,
    pub(crate) connection: MultiplexedConnection,
}

impl TestRedis {
    pub(crate) async fn connect() -> Self {
        let url = std::env::var("HANDOFF_REDIS_URL");
        let url = url.expect("HANDOFF_REDIS_URL is set by `make test`, which provides a Redis");
        let client = redis::Client::open(url.as_str()).unwrap();
        let connection = client.get_multiplexed_async_connection().await.unwrap();
        Self { url, prefix: format!("test-{}", uuid::Uuid::new_v4().simple()), connection }
    }

    /// Its URL with these credentials.
    pub(crate) fn url_of(&self, user: &str, password: &str) -> String {
        let server = self.url.strip_prefix("redis://").unwrap();
        format!("redis://{user}:{password}@{server}")
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> Address {
        let settings = RedisSettings::single(&self.url).unwrap();
        Address::of(settings.nodes.current().first())
    }

    /// Settings with which links live for an hour, unsealed.
    pub(crate) fn settings(&self, flow: Flow) -> CacheSettings {
        CacheSettings {
            redis: RedisSettings::single(&self.url).unwrap(),
            key_prefix: self.prefix.clone(),
            seal_keys: Vec::new().into(),
            flow,
            token_ttl: HOUR,
            session_ttl: HOUR,
            link_min_life: LINK_MIN_LIFE,
            patience: Duration::ZERO,
        }
    }

    pub(crate) async fn delete(&self, keys: &[&str]) {
        self.connection.clone().del::<_, ()>(keys).await.unwrap();
    }

    /// Deletes everything under the prefix.
    pub(crate) async fn delete_all(&self) {
        let mut connection = self.connection.clone();
        let keys: Vec<String> = connection.keys(format!("{}:*", self.prefix)).await.unwrap();
        if !keys.is_empty() {
            connection.del::<_, ()>(keys).await.unwrap();
        }
    }
}

/// A cache that is connected.
pub(crate) async fn connected(settings: &CacheSettings) -> Cache {
    let cache = Cache::new(settings, Metrics::new());
    cache.wait_connected(Duration::from_secs(10)).await;
    cache
}
