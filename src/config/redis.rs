//! Where Redis is: one server, the nodes of a cluster, or sentinels that know the primary.

use std::{fmt, sync::Arc};

use deadpool_redis::redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo};
use futures_util::future::join;
use url::Url;

use super::{
    setting::{ParseResult, ensure},
    urls::{self, EMPTY_ELEMENT, elements, url_list},
    watched::{Watched, watch_file},
};

const FORM: &str = "must be a Redis URL such as rediss://user:password@redis.example.com:6379/0";
const ELEMENT_FORM: &str = "must begin with redis:// or rediss://, as must each element of a list; write a \
     comma in a password as %2C";
const SENTINEL_PORT: u16 = 26379;

/// How `HANDOFF_REDIS_URL` leads to Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedisMode {
    /// It is the address of one server.
    Single,
    /// It lists some nodes of a Redis Cluster.
    Cluster,
    /// It has the credentials of the primary, whose address the sentinels know.
    Sentinel,
}

/// How to reach Redis.
#[derive(Clone, Debug)]
pub struct RedisSettings {
    /// What `nodes` stands for.
    pub mode: RedisMode,
    /// `HANDOFF_REDIS_URL`.
    pub nodes: Watched<RedisNodes>,
    /// `HANDOFF_REDIS_SENTINELS`, in sentinel mode only.
    pub sentinels: Option<Sentinels>,
}

/// The sentinels, and what they call the primary.
#[derive(Clone, Debug)]
pub struct Sentinels {
    /// Their addresses, each with its own credentials.
    pub nodes: Watched<RedisNodes>,
    /// The name of the primary and its replicas.
    pub service: String,
}

/// The servers of a setting: at least one.
#[derive(Clone)]
pub struct RedisNodes(Arc<[RedisNode]>);

/// One server. Holds a password.
#[derive(Clone)]
pub struct RedisNode {
    pub(crate) info: ConnectionInfo,
}

impl RedisSettings {
    /// One server that never changes.
    ///
    /// # Errors
    /// Why the URL is invalid.
    pub fn single(url: &str) -> Result<Self, &'static str> {
        let nodes = Watched::fixed(one_server(url)?);
        Ok(Self { mode: RedisMode::Single, nodes, sentinels: None })
    }

    /// Looks at the files of the URLs every 10 s. Never returns.
    pub(crate) async fn watch_files(self) {
        let sentinels = async {
            if let Some(sentinels) = self.sentinels {
                watch_file(sentinels.nodes).await;
            }
        };
        join(watch_file(self.nodes), sentinels).await;
    }
}

impl RedisNodes {
    pub(crate) fn nodes(&self) -> &[RedisNode] {
        &self.0
    }

    /// The first server, whose credentials those of a cluster share.
    pub(crate) fn first(&self) -> &RedisNode {
        &self.0[0]
    }
}

impl RedisNode {
    pub(crate) fn host_and_port(&self) -> (&str, u16) {
        match self.info.addr() {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
                (host, *port)
            }
            // The parsers accept no path, and the type has further variants in the future.
            _ => ("", 0),
        }
    }

    pub(crate) fn is_tls(&self) -> bool {
        matches!(self.info.addr(), ConnectionAddr::TcpTls { .. })
    }

    /// The same server at another address.
    pub(crate) fn at(&self, host: &str, port: u16) -> Self {
        let host = host.to_owned();
        let addr = if self.is_tls() {
            ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
        } else {
            ConnectionAddr::Tcp(host, port)
        };
        Self { info: self.info.clone().set_addr(addr) }
    }

    /// The URL without credentials and database.
    pub(crate) fn address(&self) -> Option<Url> {
        let (host, port) = self.host_and_port();
        urls::address(if self.is_tls() { "rediss" } else { "redis" }, host, port)
    }
}

// The passwords must not reach a log.
impl fmt::Debug for RedisNodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisNodes({})", self.0.len())
    }
}

impl fmt::Debug for RedisNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RedisNode")
    }
}

pub(super) fn redis_mode(text: &str) -> ParseResult<RedisMode> {
    match text {
        "single" => Ok(RedisMode::Single),
        "cluster" => Ok(RedisMode::Cluster),
        "sentinel" => Ok(RedisMode::Sentinel),
        _ => Err("must be single, cluster or sentinel"),
    }
}

pub(super) fn sentinel_service(text: &str) -> ParseResult<String> {
    let forbidden = |c: char| c.is_whitespace() || c.is_control();
    let fits = text.len() <= 255 && !text.contains(forbidden);
    ensure(fits, "must be 1 to 255 bytes long, without spaces or control characters")?;
    Ok(text.to_owned())
}

/// Parses one URL, in which a comma needs no encoding: passwords may hold one.
pub(super) fn one_server(text: &str) -> ParseResult<RedisNodes> {
    let is_list = elements(text).skip(1).any(|element| split_scheme(element).is_ok());
    ensure(!is_list, "must be one URL: a list of nodes needs HANDOFF_REDIS_MODE=cluster")?;
    ensure(!text.starts_with(',') && !text.ends_with(','), EMPTY_ELEMENT)?;
    Ok(RedisNodes(Arc::new([node(text, 6379)?])))
}

/// Parses the nodes of a cluster, which differ in their addresses only.
pub(super) fn cluster_nodes(text: &str) -> ParseResult<RedisNodes> {
    let nodes = servers(text, 6379)?;
    let first = nodes.first();
    for node in nodes.nodes() {
        let (redis, other) = (first.info.redis_settings(), node.info.redis_settings());
        ensure(
            first.is_tls() == node.is_tls(),
            "has nodes that differ in their scheme: write redis:// or rediss:// for all of them",
        )?;
        ensure(
            redis.username() == other.username() && redis.password() == other.password(),
            "has nodes that differ in user or password: a cluster has the same for all of them",
        )?;
        ensure(
            redis.db() == other.db(),
            "has nodes that differ in their database: a Redis Cluster has only database 0",
        )?;
        ensure(
            other.db() == 0,
            "must name no database but 0: a Redis Cluster has no other, so end it with /0 or nothing",
        )?;
    }
    Ok(nodes)
}

pub(crate) fn sentinel_nodes(text: &str) -> ParseResult<RedisNodes> {
    let nodes = servers(text, SENTINEL_PORT)?;
    let has_database = nodes.nodes().iter().any(|node| node.info.redis_settings().db() != 0);
    ensure(
        !has_database,
        "must name no database: sentinels have none; HANDOFF_REDIS_URL names it",
    )?;
    Ok(nodes)
}

pub(super) fn any_servers(text: &str) -> ParseResult<RedisNodes> {
    one_server(text).or_else(|_| servers(text, 6379))
}

fn servers(text: &str, default_port: u16) -> ParseResult<RedisNodes> {
    let check_scheme = |element: &str| split_scheme(element).map(drop);
    url_list(text, check_scheme, |element| node(element, default_port)).map(RedisNodes)
}

fn split_scheme(text: &str) -> ParseResult<(&str, &str)> {
    let split = text.split_once("://");
    split.filter(|(scheme, _)| matches!(*scheme, "redis" | "rediss")).ok_or(ELEMENT_FORM)
}

fn node(text: &str, default_port: u16) -> ParseResult<RedisNode> {
    split_scheme(text).map_err(|_| FORM)?;
    let url = Url::parse(text).map_err(|_| FORM)?;
    // redis 1.8 accepts `/-1`, which Redis refuses at each connection.
    let database = url.path().trim_matches('/');
    let is_number = database.bytes().all(|byte| byte.is_ascii_digit())
        && (database.is_empty() || database.parse::<u32>().is_ok());
    ensure(is_number, "must end with the number of a database, such as /0")?;
    // The `url` crate takes this for a host, as the scheme is not one of a browser's.
    ensure(!url.host_str().is_some_and(|host| host.contains(',')), ELEMENT_FORM)?;
    ensure(!text.contains('#'), "must not contain `#`: certificate checks cannot be turned off")?;
    let info = text.into_connection_info().map_err(|_| FORM)?;
    let node = RedisNode { info };
    if url.port().is_some() {
        return Ok(node);
    }
    let host = node.host_and_port().0.to_owned();
    Ok(node.at(&host, default_port))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Parse = fn(&str) -> ParseResult<RedisNodes>;

    #[test]
    fn lists_keep_order_and_ports_have_defaults() {
        let nodes = cluster_nodes("redis://u:p@a:1, redis://u:p@[::1]/0,redis://u:p@c").unwrap();
        let places: Vec<_> = nodes.nodes().iter().map(RedisNode::host_and_port).collect();
        assert_eq!(places, [("a", 1), ("::1", 6379), ("c", 6379)]);
        let sentinels = sentinel_nodes("redis://a,rediss://:p@b:5").unwrap();
        let places: Vec<_> = sentinels.nodes().iter().map(RedisNode::host_and_port).collect();
        assert_eq!(places, [("a", 26379), ("b", 5)]);
        assert_eq!(sentinels.nodes()[1].address().unwrap().as_str(), "rediss://b:5");
    }

    #[test]
    fn another_address_keeps_credentials_database_and_tls() {
        let nodes = one_server("rediss://u:p%2C@a/3").unwrap();
        let moved = nodes.first().at("b", 7);
        let redis = moved.info.redis_settings();
        assert_eq!((redis.username(), redis.password(), redis.db()), (Some("u"), Some("p,"), 3));
        assert!(moved.is_tls());
        assert_eq!(moved.host_and_port(), ("b", 7));
    }

    #[test]
    fn comma_in_the_password_of_one_server_needs_no_encoding() {
        let nodes = one_server("redis://:a,b@h").unwrap();
        assert_eq!(nodes.first().info.redis_settings().password(), Some("a,b"));
    }

    #[test]
    fn mistakes_are_named() {
        for (parse, text, why) in [
            (one_server as Parse, "redis://a,redis://b", "HANDOFF_REDIS_MODE=cluster"),
            (one_server, "redis://a,", "empty element"),
            (one_server, "redis://a,b", "each element of a list"),
            (one_server, "redis://:p@a,b:6380/0", "each element of a list"),
            (one_server, "http://a", "must be a Redis URL"),
            (one_server, "redis://a/-1", "a database"),
            (one_server, "rediss://a/#insecure", "certificate checks"),
            (cluster_nodes, "redis://a,,redis://b", "empty element"),
            (cluster_nodes, ",redis://b", "empty element"),
            (cluster_nodes, "redis://:a,b@h", "as %2C"),
            (cluster_nodes, "redis://a,rediss://b", "scheme"),
            (cluster_nodes, "redis://u:p@a,redis://v:p@b", "user or password"),
            (cluster_nodes, "redis://u:p@a,redis://u:q@b", "user or password"),
            (cluster_nodes, "redis://a/0,redis://b/1", "differ in their database"),
            (cluster_nodes, "redis://a/1", "no database but 0"),
            (sentinel_nodes, "redis://a/1", "sentinels have none"),
            (sentinel_nodes, "redis://a,", "empty element"),
            (sentinel_nodes, "a:26379", "must begin with redis://"),
        ] {
            let error = parse(text).map(|_| ()).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn debug_shows_no_password() {
        let nodes = one_server("redis://u:s3cret@a").unwrap();
        assert!(!format!("{nodes:?} {:?}", nodes.first()).contains("s3cret"));
    }
}
