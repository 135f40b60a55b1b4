//! Connects to one Redis server, through deadpool-redis.

use std::{fmt, io, time::Duration};

use deadpool_redis::{
    Connection, Manager, Pool as Deadpool, PoolError, Runtime,
    redis::{AsyncConnectionConfig, RedisError},
};

use super::{error::CacheError, scripts::SCRIPT_TIMEOUT};
use crate::config::RedisNode;

/// Limit of connecting, with name resolution and TLS; also of a PING that checks a connection.
///
/// With TLS, connecting takes four round trips: at 249 ms each, a second.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_millis(1_500);

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Address {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Address {
    pub(super) fn of(node: &RedisNode) -> Self {
        let (host, port) = node.host_and_port();
        Self { host: host.to_owned(), port }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (open, close) = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        write!(f, "{open}{}{close}:{}", self.host, self.port)
    }
}

/// A connection to this server, without a pool.
pub(super) async fn connect_to(node: &RedisNode) -> Result<Connection, CacheError> {
    connection(&pool(node).map_err(|error| CacheError::of(&error))?).await
}

/// The connection of a pool, which holds one.
pub(super) async fn connection(pool: &Deadpool) -> Result<Connection, CacheError> {
    pool.get().await.map_err(|error| match error {
        PoolError::Backend(error) => CacheError::of(&error),
        PoolError::Timeout(_) => CacheError::Timeout,
        other => CacheError::Failed(other.to_string()),
    })
}

/// A pool for one connection to this server.
pub(super) fn pool(node: &RedisNode) -> Result<Deadpool, RedisError> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        // redis 1.x limits each answer to 500 ms by default (redis-rs/redis-rs#1686). Operations set a
        // shorter limit, and a second timer per operation would be wasted.
        .set_response_timeout(None);
    let manager = Manager::new_with_config(node.info.clone(), config)?;
    Deadpool::builder(manager)
        .max_size(1)
        .wait_timeout(Some(CONNECT_TIMEOUT))
        .create_timeout(Some(CONNECT_TIMEOUT))
        .recycle_timeout(Some(SCRIPT_TIMEOUT))
        .runtime(Runtime::Tokio1)
        .build()
        // Fails only where time-outs are set without a runtime.
        .map_err(|error| RedisError::from(io::Error::other(error.to_string())))
}
