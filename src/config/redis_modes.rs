//! The settings of Redis against each other.

use super::{
    parser::Parser,
    redis::{RedisMode, RedisSettings, Sentinels, any_servers, cluster_nodes, one_server},
    table,
};

const DEFAULT_SERVICE: &str = "mymaster";

/// Parses the settings of Redis, each by what the mode needs.
pub(super) fn redis(parser: &mut Parser<'_>) -> Option<RedisSettings> {
    let mode = parser.value(&table::REDIS_MODE);
    let parse = match mode {
        Some(RedisMode::Cluster) => cluster_nodes,
        Some(RedisMode::Single | RedisMode::Sentinel) => one_server,
        // The invalid mode is error enough.
        None => any_servers,
    };
    let nodes = parser.watched_as(&table::REDIS_URL, parse);
    let sentinels = sentinels(parser, mode);
    Some(RedisSettings { mode: mode?, nodes: nodes?, sentinels: sentinels? })
}

fn sentinels(parser: &mut Parser<'_>, mode: Option<RedisMode>) -> Option<Option<Sentinels>> {
    let nodes = parser.watched_optional(&table::REDIS_SENTINELS);
    let service = parser.optional(&table::REDIS_SENTINEL_SERVICE);
    let mode = mode?;
    if mode == RedisMode::Sentinel {
        // An invalid setting is not missing: it has an error of its own.
        if matches!(nodes, Some(None)) {
            parser.reject(
                &table::REDIS_SENTINELS.spec,
                "is required with HANDOFF_REDIS_MODE=sentinel: list the sentinels, such as \
                 redis://sentinel-1.example.com:26379,redis://sentinel-2.example.com:26379",
            );
        }
        let service = service?.unwrap_or_else(|| DEFAULT_SERVICE.to_owned());
        return nodes?.map(|nodes| Some(Sentinels { nodes, service }));
    }
    let why = "has no meaning without HANDOFF_REDIS_MODE=sentinel: set the mode, or unset this";
    if matches!(nodes, Some(Some(_))) {
        parser.reject(&table::REDIS_SENTINELS.spec, why);
    }
    if matches!(service, Some(Some(_))) {
        parser.reject(&table::REDIS_SENTINEL_SERVICE.spec, why);
    }
    Some(None)
}
