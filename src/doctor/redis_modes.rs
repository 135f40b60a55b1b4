//! Which servers HANDOFF_REDIS_URL leads to: itself, what the sentinels name, or a cluster's primaries.

use super::check::Check;
use crate::{
    cache::{self, Address, Refusal},
    config::{CacheSettings, RedisMode, RedisNode, Sentinels},
};

pub(super) const NO_CACHE: &str =
    "requests are served without Redis: each request creates a session";

/// A server that the worker writes to.
pub(super) struct Server {
    pub(super) node: RedisNode,
    /// A key that it has and that nothing else uses.
    pub(super) key: String,
}

pub(super) async fn servers(
    settings: &CacheSettings,
    checks: &mut Vec<Check>,
) -> Result<Vec<Server>, Check> {
    let nodes = settings.redis.nodes.current();
    let prefix = &settings.key_prefix;
    let key = || format!("{prefix}:{{doctor}}:{}", uuid::Uuid::new_v4().simple());
    match (&settings.redis.mode, &settings.redis.sentinels) {
        (RedisMode::Single, _) | (RedisMode::Sentinel, None) => {
            Ok(vec![Server { node: nodes.first().clone(), key: key() }])
        }
        (RedisMode::Sentinel, Some(sentinels)) => {
            let (host, port) = primary(sentinels, checks).await?;
            Ok(vec![Server { node: nodes.first().at(&host, port), key: key() }])
        }
        (RedisMode::Cluster, _) => {
            let view = cache::cluster_view(&nodes).await.map_err(|error| {
                let what = format!("no node shows the slots of the cluster: {}", error.cause());
                let remedy = error.refusal().map(Refusal::remedy).filter(|text| !text.is_empty());
                let check = Check::finding("cluster", what).cost(NO_CACHE).remedy(remedy.unwrap_or(
                    "check that HANDOFF_REDIS_URL lists nodes of a Redis Cluster; for a single server, set \
                     HANDOFF_REDIS_MODE=single",
                ));
                if error.refusal() == Some(Refusal::NoPerm) {
                    return check.command("redis-cli ACL SETUSER USER +cluster|slots +asking");
                }
                check
            })?;
            let primaries = view.primaries(prefix);
            checks.extend(cluster(&view, primaries.len()));
            let first = nodes.first();
            let servers = primaries
                .into_iter()
                .map(|(address, key)| Server { node: first.at(&address.host, address.port), key });
            Ok(servers.collect())
        }
    }
}

/// Asks each sentinel, and returns what most of them say.
async fn primary(sentinels: &Sentinels, checks: &mut Vec<Check>) -> Result<(String, u16), Check> {
    let opinions = cache::sentinel_opinions(sentinels).await;
    let count = opinions.len();
    let mut named = Vec::new();
    for (sentinel, opinion) in opinions {
        match opinion {
            Ok(primary) => named.push(primary),
            Err(error) => {
                let what = format!("sentinel {sentinel}: {}", error.cause());
                checks.push(
                    Check::finding("sentinel", what)
                        .cost("with too few sentinels, the worker may not find the new primary")
                        .remedy("check HANDOFF_REDIS_SENTINELS, and that this sentinel runs"),
                );
            }
        }
    }
    let votes = |primary: &Address| named.iter().filter(|other| **other == *primary).count();
    let Some(winner) = named.iter().max_by_key(|primary| votes(primary)) else {
        return Err(Check::finding("primary", "no sentinel names the primary").cost(NO_CACHE).remedy(
            "check HANDOFF_REDIS_SENTINELS and HANDOFF_REDIS_SENTINEL_SERVICE (SENTINEL MASTERS)",
        ));
    };
    let agreeing = votes(winner);
    let what = format!("{agreeing} of {count} sentinels name {winner} as the primary");
    checks.push(if agreeing == named.len() {
        Check::ok("primary", what)
    } else {
        Check::finding("primary", what)
            .cost("the others may lead a worker to another server")
            .remedy(
                "list only sentinels that watch this primary, and check that they see each other",
            )
    });
    Ok((winner.host.clone(), winner.port))
}

fn cluster(view: &cache::ClusterView, primaries: usize) -> Vec<Check> {
    let mut checks = Vec::new();
    for (node, answer) in &view.failed {
        if let Err(error) = answer {
            let what = format!("{node} does not show the slots of the cluster: {}", error.cause());
            checks.push(
                Check::hint("node", what)
                    .cost("a worker that starts asks the other nodes in the list")
                    .remedy("bring the node back, or take it out of HANDOFF_REDIS_URL"),
            );
        }
    }
    let what = format!("{primaries} primaries serve {} of 16384 slots", view.covered());
    let alone = view.without_replica();
    checks.push(if view.covered() < 16_384 {
        Check::finding("cluster", what)
            .cost(
                "links in the other slots are not cached: each request for them creates a session",
            )
            .remedy(Refusal::ClusterDown.remedy())
    } else if alone > 0 {
        Check::hint("cluster", format!("{what}; {alone} of them without a replica"))
            .cost("when such a primary fails, its links are lost and its keys stay unavailable")
            .remedy("add a replica to each primary")
    } else {
        Check::ok("cluster", what)
    });
    checks
}
