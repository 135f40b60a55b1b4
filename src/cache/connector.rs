//! Makes connections to Redis with the credentials that are valid now.

use std::{io, sync::Arc, time::Duration};

use deadpool_redis::{
    Manager, Pool as Deadpool, Runtime,
    redis::{AsyncConnectionConfig, RedisError},
};

use super::scripts::SCRIPT_TIMEOUT;
use crate::config::{RedisNodes, Watched};

/// The source of connections. Follows the file that the URL came from.
///
/// Redis authenticates a connection once, so a new password matters to the next connection only.
pub(super) struct Connector {
    url: Watched<RedisNodes>,
    /// The URL that `pool` connects to.
    known: Arc<RedisNodes>,
    pool: Deadpool,
    connect_limit: Duration,
}

impl Connector {
    pub(super) fn new(
        url: Watched<RedisNodes>,
        connect_limit: Duration,
    ) -> Result<Self, RedisError> {
        let known = url.current();
        let pool = pool(&known, connect_limit)?;
        Ok(Self { url, known, pool, connect_limit })
    }

    /// The pool to take a new connection from. Reads the URL's file first.
    pub(super) async fn pool(&mut self) -> &Deadpool {
        self.url.look().await;
        let current = self.url.current();
        if !Arc::ptr_eq(&current, &self.known) {
            // Never an error: the setting's parser checks that the client accepts the URL.
            if let Ok(pool) = pool(&current, self.connect_limit) {
                self.pool = pool;
            }
            self.known = current;
        }
        &self.pool
    }
}

fn pool(nodes: &RedisNodes, connect_limit: Duration) -> Result<Deadpool, RedisError> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(connect_limit))
        // redis 1.x limits each answer to 500 ms by default (redis-rs/redis-rs#1686). Operations set a
        // shorter limit, and a second timer per operation would be wasted.
        .set_response_timeout(None);
    let manager = Manager::new_with_config(nodes.first().info.clone(), config)?;
    Deadpool::builder(manager)
        .max_size(1)
        .wait_timeout(Some(connect_limit))
        .create_timeout(Some(connect_limit))
        .recycle_timeout(Some(SCRIPT_TIMEOUT))
        .runtime(Runtime::Tokio1)
        .build()
        // Fails only where time-outs are set without a runtime.
        .map_err(|error| RedisError::from(io::Error::other(error.to_string())))
}
