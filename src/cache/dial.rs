//! Connects to one Redis server, through deadpool-redis.

use std::{fmt, io, time::Duration};

use deadpool_redis::{
    Connection, Manager, Pool as Deadpool, PoolError, Runtime,
    redis::{
        AsyncConnectionConfig, ConnectionInfo, RedisError, io::tcp::TcpSettings, parse_redis_value,
    },
};
use tokio::{io::AsyncReadExt, net::TcpStream, time::timeout};

use super::{error::CacheError, refusal::Refusal, scripts::SCRIPT_TIMEOUT};
use crate::config::RedisNode;

/// Limit of connecting, with name resolution and TLS; also of a PING that checks a connection.
///
/// With TLS, connecting takes four round trips: at 249 ms each, a second.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_millis(1_500);

/// In bytes. That of protected mode is the longest one, a page.
const LONGEST_REFUSAL: u64 = 4_096;

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
    Dialler::to(node).map_err(|error| CacheError::of(&error))?.connect().await
}

/// Makes connections to one server: a pool of one.
#[derive(Clone)]
pub(super) struct Dialler {
    pool: Deadpool,
    node: RedisNode,
}

impl Dialler {
    pub(super) fn to(node: &RedisNode) -> Result<Self, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            // redis 1.x limits each answer to 500 ms by default (redis-rs/redis-rs#1686). Operations set a
            // shorter limit, and a second timer per operation would be wasted.
            .set_response_timeout(None);
        let manager = Manager::new_with_config(without_nagle(node), config)?;
        let pool = Deadpool::builder(manager)
            .max_size(1)
            .wait_timeout(Some(CONNECT_TIMEOUT))
            .create_timeout(Some(CONNECT_TIMEOUT))
            .recycle_timeout(Some(SCRIPT_TIMEOUT))
            .runtime(Runtime::Tokio1)
            .build()
            // Fails only where time-outs are set without a runtime.
            .map_err(|error| RedisError::from(io::Error::other(error.to_string())))?;
        Ok(Self { pool, node: node.clone() })
    }

    pub(super) async fn connect(&self) -> Result<Connection, CacheError> {
        match self.pool.get().await {
            Ok(connection) => Ok(connection),
            Err(PoolError::Backend(error)) => Err(connect_error(&self.node, &error).await),
            Err(PoolError::Timeout(_)) => Err(CacheError::Timeout),
            Err(other) => Err(CacheError::Failed(other.to_string())),
        }
    }
}

/// Why there is no connection.
///
/// Redis that has reached `maxclients`, or is in protected mode, says so and closes the connection without reading.
/// redis 1.8 has then sent its login already, and reports only that the connection broke (not reported upstream).
pub(super) async fn connect_error(node: &RedisNode, error: &RedisError) -> CacheError {
    // With TLS, Redis closes without a word.
    if error.is_connection_dropped()
        && !node.is_tls()
        && let Ok(Some(refusal)) = timeout(SCRIPT_TIMEOUT, refusal_at_once(node)).await
    {
        return CacheError::Refused(refusal);
    }
    CacheError::of(error)
}

/// What Redis says to a connection that sends nothing, before it closes it.
async fn refusal_at_once(node: &RedisNode) -> Option<Refusal> {
    let socket = TcpStream::connect(node.host_and_port()).await.ok()?;
    let mut text = Vec::new();
    socket.take(LONGEST_REFUSAL).read_to_end(&mut text).await.ok()?;
    let error = parse_redis_value(&text).ok()?.extract_error().err()?;
    Refusal::find(&error)
}

/// redis 1.x leaves Nagle's algorithm on (redis-rs/redis-rs#2195; off from 2.0): a script waits until the one before is
/// acknowledged, up to a round trip, and then misses its limit where Redis is more than 125 ms away.
fn without_nagle(node: &RedisNode) -> ConnectionInfo {
    node.info.clone().set_tcp_settings(TcpSettings::default().set_nodelay(true))
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt, net::TcpListener};

    use super::*;
    use crate::config::sentinel_nodes;

    #[test]
    fn script_does_not_wait_until_the_one_before_is_acknowledged() {
        let nodes = sentinel_nodes("rediss://a").unwrap();
        assert!(without_nagle(nodes.first()).tcp_settings().nodelay());
    }

    #[tokio::test]
    async fn reason_why_redis_closes_a_new_connection_is_named() {
        for (said, refusal) in [
            ("-ERR max number of clients reached\r\n", Some(Refusal::MaxClients)),
            ("-DENIED Redis is running in protected mode because x\r\n", Some(Refusal::Denied)),
            ("", None),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("redis://:s3cret@{}", listener.local_addr().unwrap());
            let serving = tokio::spawn(async move {
                loop {
                    let (mut socket, _) = listener.accept().await.unwrap();
                    socket.write_all(said.as_bytes()).await.unwrap();
                }
            });
            let nodes = sentinel_nodes(&url).unwrap();
            let error = connect_to(nodes.first()).await.err().unwrap();
            assert_eq!(error.refusal(), refusal, "{error}");
            serving.abort();
        }
    }
}
