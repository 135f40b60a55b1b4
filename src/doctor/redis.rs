//! Redis: whether it can be reached, keeps what it stores, and executes the worker's commands.

use std::{collections::HashMap, time::Duration};

use super::{
    check::{Check, Tolerance, Verdict},
    clock,
    connect::connect,
    redis_modes::{NO_CACHE, Server, servers},
};
use crate::{
    cache::{self, Refusal, RefusedCommand},
    config::{CacheSettings, RedisMode, RedisNode},
};

/// A request waits for Redis twice, each time for at most 250 ms.
const SLOW: Tolerance =
    Tolerance { hint: Duration::from_millis(50), finding: Duration::from_millis(250) };
/// Links and requests expire at absolute times, which a larger skew shifts noticeably.
const TOLERANCE: Tolerance =
    Tolerance { hint: Duration::from_secs(2), finding: Duration::from_secs(30) };

pub(super) async fn examine(
    settings: &CacheSettings,
    checks: &mut Vec<Check>,
) -> Result<(), Check> {
    let servers = servers(settings, checks).await?;
    let is_one = servers.len() == 1;
    for (place, Server { node, key }) in servers.iter().enumerate() {
        let mut own = Vec::new();
        if let Err(finding) = examine_server(settings, node, key, &mut own).await {
            own.push(finding);
        }
        // Of the further nodes of a cluster, only what is wrong.
        own.retain(|check| place == 0 || check.verdict != Verdict::Ok);
        if !is_one && let Some(address) = node.address() {
            let address = address.authority().to_owned();
            own.iter_mut().for_each(|check| check.what = format!("{address}: {}", check.what));
        }
        checks.extend(own);
    }
    Ok(())
}

async fn examine_server(
    settings: &CacheSettings,
    node: &RedisNode,
    key: &str,
    checks: &mut Vec<Check>,
) -> Result<(), Check> {
    let Some(url) = node.address() else { return Ok(()) };
    connect("Redis", &url, 6379, None, None, checks).await.map_err(|finding| {
        finding.cost(NO_CACHE).or_remedy(
            "check that Redis is running, that host and port in HANDOFF_REDIS_URL are right, and that no \
             firewall blocks the connection",
        )
    })?;
    let survey = cache::survey(node, key).await.map_err(|error| {
        let check = Check::finding("login", format!("Redis does not answer: {}", error.cause()));
        let remedy = error.refusal().map(Refusal::remedy).filter(|remedy| !remedy.is_empty());
        check
            .cost(NO_CACHE)
            .remedy(remedy.unwrap_or("check user, password and database in HANDOFF_REDIS_URL"))
    })?;
    checks.extend([latency(survey.latency), commands(survey.commands)]);
    let ahead_ms = survey.clock_ahead_ms.map(i128::from);
    checks.extend(ahead_ms.map(|ahead_ms| clock::check("Redis'", ahead_ms, &TOLERANCE)));
    let info = survey.info.map_err(|error| {
        let what = format!("version, role and memory: Redis refuses INFO ({})", error.cause());
        Check::hint("not seen", what)
            .cost("the worker's user cannot see whether Redis evicts links")
            .remedy("as a user with permission, check redis_version, role, maxmemory and maxmemory_policy")
            .command("redis-cli INFO")
    })?;
    checks.extend([
        version(&info),
        role(&info, settings.redis.mode),
        eviction(&info),
        memory(&info),
    ]);
    checks.extend(saving(&info, &survey.config));
    checks.extend(replicas(&info, &survey.config));
    Ok(())
}

fn latency(round_trip: Duration) -> Check {
    let millis = format!("{:.1} ms", round_trip.as_secs_f64() * 1_000.0);
    let verdict = SLOW.verdict(round_trip);
    if verdict == Verdict::Ok {
        return Check::ok("latency", format!("a round trip takes {millis}"));
    }
    let what = format!("a round trip takes {millis}; the worker gives up after 250 ms");
    Check::new("latency", verdict, what)
        .cost("each new link waits for Redis twice; above 250 ms it is made without Redis")
        .remedy("use a Redis closer to the workers, or reduce its load")
        .command("redis-cli SLOWLOG GET")
}

fn commands(commands: Result<(), RefusedCommand>) -> Check {
    let Err(RefusedCommand { command, error }) = commands else {
        return Check::ok("commands", "Redis executes all commands that the worker needs");
    };
    let what = format!("Redis refuses {command}: {}", error.cause());
    let check = Check::finding("commands", what).cost(NO_CACHE);
    match error.refusal() {
        Some(Refusal::NoPerm) => check
            .remedy("grant these permissions to the user in HANDOFF_REDIS_URL")
            .command(
                "redis-cli ACL SETUSER USER ~PREFIX:* +ping +script|load +evalsha +get +getrange +strlen +set \
                 +setrange +del +exists +pttl +pexpire +time +select",
            ),
        Some(refusal @ Refusal::Oom) => check
            .remedy(refusal.remedy())
            .command("redis-cli CONFIG SET maxmemory BYTES"),
        None | Some(Refusal::Other) => {
            check.remedy("run the command in redis-cli, as the worker's user")
        }
        Some(refusal) => check.remedy(refusal.remedy()),
    }
}

fn version(info: &HashMap<String, String>) -> Check {
    let version = field(info, "redis_version");
    match version.split('.').next().and_then(|major| major.parse::<u32>().ok()) {
        Some(..6) => Check::finding("version", format!("Redis {version} is older than 6.0"))
            .cost(NO_CACHE)
            .remedy("upgrade Redis to 6.0 or later"),
        Some(_) => match field(info, "valkey_version") {
            "" => Check::ok("version", format!("Redis {version}")),
            valkey => Check::ok("version", format!("Valkey {valkey} (as Redis {version})")),
        },
        None => Check::hint("version", "Redis does not report its version"),
    }
}

fn role(info: &HashMap<String, String>, mode: RedisMode) -> Check {
    // Valkey has another name for it.
    if ["redis_mode", "server_mode"].iter().any(|mode| field(info, mode) == "sentinel") {
        return Check::finding("role", "this is a sentinel, which stores nothing").cost(NO_CACHE).remedy(
            "set HANDOFF_REDIS_MODE=sentinel, and HANDOFF_REDIS_SENTINELS to the addresses of the sentinels",
        );
    }
    if field(info, "cluster_enabled") == "1" && mode != RedisMode::Cluster {
        return Check::finding("role", Refusal::Moved.to_string())
            .cost("most links are not cached: each request for them creates a session")
            .remedy(Refusal::Moved.remedy());
    }
    match field(info, "role") {
        "master" => Check::ok("role", "this is a primary"),
        "slave" => {
            let refusal = match field(info, "master_link_status") {
                "down" => Refusal::MasterDown,
                _ => Refusal::ReadOnly,
            };
            Check::finding("role", refusal.to_string()).cost(NO_CACHE).remedy(refusal.remedy())
        }
        _ => Check::hint("role", "Redis does not report whether it is a primary"),
    }
}

fn eviction(info: &HashMap<String, String>) -> Check {
    let policy = match field(info, "maxmemory_policy") {
        "noeviction" => return Check::ok("eviction", "Redis evicts no keys (noeviction)"),
        "" => return Check::hint("eviction", "Redis does not report its eviction policy"),
        policy => policy,
    };
    let unlimited =
        if number(info, "maxmemory") == 0 { "; no maxmemory is set at present" } else { "" };
    // Every key of the worker expires, so `volatile-*` policies evict them before those of others.
    let verdict = if policy.starts_with("volatile-") { Verdict::Hint } else { Verdict::Finding };
    Check::new("eviction", verdict, format!("maxmemory-policy is {policy}{unlimited}"))
        .cost("when memory runs short, Redis evicts links and leases: people get a second session")
        .remedy("set the policy to noeviction, here and in redis.conf, or use a dedicated Redis")
        .command("redis-cli CONFIG SET maxmemory-policy noeviction")
}

fn memory(info: &HashMap<String, String>) -> Check {
    // Zero means no limit.
    let max = number(info, "maxmemory");
    let used = number(info, "used_memory");
    let mib = |bytes: u64| bytes / (1 << 20);
    let Some(percent) = used.saturating_mul(100).checked_div(max) else {
        return Check::ok("memory", format!("{} MiB used, without a limit", mib(used)));
    };
    let what = format!("{percent} % of {} MiB used", mib(max));
    if percent < 90 {
        return Check::ok("memory", what);
    }
    Check::finding("memory", what)
        .cost("when memory is full, Redis stores no more links, or evicts them")
        .remedy("give Redis more memory, or use a dedicated Redis")
        .command("redis-cli CONFIG SET maxmemory BYTES")
}

/// Whether Redis takes writes although it cannot save: with MISCONF it refuses them all.
fn saving(info: &HashMap<String, String>, config: &HashMap<String, String>) -> Option<Check> {
    let failed = ["rdb_last_bgsave_status", "aof_last_write_status"]
        .into_iter()
        .filter(|status| field(info, status) == "err")
        .collect::<Vec<_>>();
    if failed.is_empty() {
        return None;
    }
    let what = format!("Redis could not save to disk ({}: err)", failed.join(", "));
    // Failed appends refuse writes whatever this setting says.
    let is_tolerated = field(config, "stop-writes-on-bgsave-error") == "no"
        && failed == ["rdb_last_bgsave_status"];
    let (verdict, cost) = if is_tolerated {
        (Verdict::Hint, "a restart of Redis loses links and leases: people get a second session")
    } else {
        (Verdict::Finding, "Redis refuses all writes (MISCONF) until it can save again")
    };
    Some(Check::new("saving", verdict, what).cost(cost).remedy(Refusal::MisConf.remedy()))
}

/// Whether enough replicas are connected: with fewer, Redis refuses all writes (NOREPLICAS).
fn replicas(info: &HashMap<String, String>, config: &HashMap<String, String>) -> Option<Check> {
    // Redis reports this field only if it requires replicas.
    info.get("min_slaves_good_slaves")?;
    let good = number(info, "min_slaves_good_slaves");
    // At least one, where CONFIG GET is refused.
    let required = number(config, "min-replicas-to-write").max(1);
    let what = format!(
        "writes need {required} connected replicas (min-replicas-to-write), and there are {good}"
    );
    let verdict = match good.checked_sub(required) {
        Some(1..) => return Some(Check::ok("replicas", what)),
        Some(0) => Verdict::Hint,
        None => Verdict::Finding,
    };
    let cost = if verdict == Verdict::Hint {
        "the loss of one replica makes Redis refuse all writes (NOREPLICAS)"
    } else {
        "Redis refuses all writes (NOREPLICAS): requests are served without it"
    };
    Some(Check::new("replicas", verdict, what).cost(cost).remedy(Refusal::NoReplicas.remedy()))
}

fn field<'a>(info: &'a HashMap<String, String>, key: &str) -> &'a str {
    info.get(key).map_or("", String::as_str)
}

fn number(info: &HashMap<String, String>, key: &str) -> u64 {
    field(info, key).parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(fields: &[(&str, &str)]) -> HashMap<String, String> {
        fields.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn old_version_replica_and_cluster_are_findings() {
        let version = |text| super::version(&info(&[("redis_version", text)])).verdict;
        assert_eq!(version("5.0.14"), Verdict::Finding);
        assert_eq!(version("6.0.0"), Verdict::Ok);
        assert_eq!(version("10.1"), Verdict::Ok);
        assert_eq!(version(""), Verdict::Hint);
        let role = |text| super::role(&info(&[("role", text)]), RedisMode::Single).verdict;
        assert_eq!((role("master"), role("slave")), (Verdict::Ok, Verdict::Finding));
        let cluster = info(&[("role", "master"), ("cluster_enabled", "1")]);
        assert_eq!(super::role(&cluster, RedisMode::Single).verdict, Verdict::Finding);
        assert_eq!(super::role(&cluster, RedisMode::Cluster).verdict, Verdict::Ok);
        let sentinel = info(&[("server_mode", "sentinel")]);
        assert_eq!(super::role(&sentinel, RedisMode::Single).verdict, Verdict::Finding);
    }

    #[test]
    fn eviction_policy_and_full_memory_are_findings() {
        let memory = |policy, used, most| {
            let info =
                info(&[("maxmemory_policy", policy), ("used_memory", used), ("maxmemory", most)]);
            (eviction(&info).verdict, super::memory(&info).verdict)
        };
        assert_eq!(memory("noeviction", "950", "0"), (Verdict::Ok, Verdict::Ok));
        assert_eq!(memory("allkeys-lru", "100", "1000"), (Verdict::Finding, Verdict::Ok));
        assert_eq!(memory("volatile-ttl", "900", "1000"), (Verdict::Hint, Verdict::Finding));
    }

    #[test]
    fn failed_saves_and_missing_replicas_are_findings() {
        let saving = |status, stops| {
            let config = info(&[("stop-writes-on-bgsave-error", stops)]);
            super::saving(&info(&[("rdb_last_bgsave_status", status)]), &config)
        };
        let verdict = |check: Option<Check>| check.map(|check| check.verdict);
        assert_eq!(verdict(saving("ok", "yes")), None);
        assert_eq!(verdict(saving("err", "yes")), Some(Verdict::Finding));
        assert_eq!(verdict(saving("err", "no")), Some(Verdict::Hint));
        let unseen = super::saving(&info(&[("aof_last_write_status", "err")]), &info(&[]));
        assert_eq!(verdict(unseen), Some(Verdict::Finding));
        let replicas = |good, required| {
            let config = info(&[("min-replicas-to-write", required)]);
            verdict(super::replicas(&info(&[("min_slaves_good_slaves", good)]), &config))
        };
        assert_eq!(verdict(super::replicas(&info(&[]), &info(&[]))), None);
        assert_eq!(replicas("0", "1"), Some(Verdict::Finding));
        assert_eq!(replicas("2", "2"), Some(Verdict::Hint));
        assert_eq!(replicas("3", "2"), Some(Verdict::Ok));
    }

    #[test]
    fn slow_round_trip_is_a_finding() {
        let verdict = |millis| latency(Duration::from_millis(millis)).verdict;
        assert_eq!(
            (verdict(1), verdict(60), verdict(300)),
            (Verdict::Ok, Verdict::Hint, Verdict::Finding)
        );
    }
}
