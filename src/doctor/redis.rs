//! Redis: whether what is kept there stays there, and whether the worker may do what it has to.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use secrecy::ExposeSecret;
use url::Url;

use super::{Check, certificate, reach::reach, span};
use crate::{
    cache::{self, RefusedCommand, Survey},
    config::CacheSettings,
};

const AWAY: &str = "requests are served without it: each makes a session of its own";
/// The worker gives up waiting after 250 ms, and a request waits twice.
const SLOW: Duration = Duration::from_millis(50);
const TOO_SLOW: Duration = Duration::from_millis(250);
/// A clock this far off is noticed by whoever reads dates.
const SKEW: Duration = Duration::from_secs(2);
const GREAT_SKEW: Duration = Duration::from_secs(30);

pub(super) async fn examine(settings: &CacheSettings, checks: &mut Vec<Check>) {
    let Ok(url) = Url::parse(settings.url.expose_secret()) else { return };
    match reach(&url, 6379).await {
        Ok(reached) => {
            checks.push(Check::ok("connection", format!("reached in {}", span(reached.took))));
            checks.extend(certificate::check(reached.certified_until, SystemTime::now()));
        }
        Err(why) => {
            checks.push(
                Check::finding("connection", format!("Redis cannot be reached: {why}"))
                    .costs(AWAY)
                    .mend("is it running, do host and port of HANDOFF_REDIS_URL lead there, is a firewall between?"),
            );
            return;
        }
    }
    match cache::survey(&settings.url, &settings.key_prefix).await {
        Ok(survey) => checks.extend(judge(&survey)),
        Err(why) => checks.push(
            Check::finding("login", format!("Redis does not answer: {why}"))
                .costs(AWAY)
                .mend("check user, password and database of HANDOFF_REDIS_URL"),
        ),
    }
}

fn judge(survey: &Survey) -> Vec<Check> {
    let mut checks = vec![latency(survey.latency), commands(&survey.commands)];
    checks.extend(
        survey.clock_ahead_ms.map(|ahead| super::skew("clock", "Redis'", ahead, SKEW, GREAT_SKEW)),
    );
    match &survey.info {
        Ok(info) => {
            checks.push(version(info));
            checks.push(role(info));
            checks.extend(memory(info));
        }
        Err(why) => checks.push(
            Check::hint("not seen", format!("version, role and memory: INFO is refused ({why})"))
                .costs("a Redis that evicts links would go unnoticed")
                .mend("look as another user: redis_version, role, maxmemory, maxmemory_policy")
                .run("redis-cli INFO"),
        ),
    }
    checks
}

fn latency(trip: Duration) -> Check {
    let millis = format!("{:.1} ms", trip.as_secs_f64() * 1_000.0);
    if trip < SLOW {
        return Check::ok("latency", format!("there and back in {millis}"));
    }
    let check = if trip < TOO_SLOW { Check::hint } else { Check::finding };
    check("latency", format!("there and back takes {millis}; the worker waits for 250 at most"))
        .costs("each new link waits for it twice, and beyond 250 ms it is made without Redis")
        .mend("a Redis nearer to the workers, or one with less to do")
        .run("redis-cli SLOWLOG GET")
}

fn commands(trial: &Result<(), RefusedCommand>) -> Check {
    let RefusedCommand { command, error } = match trial {
        Ok(()) => {
            return Check::ok(
                "commands",
                "all that the worker needs are allowed, and do their work",
            );
        }
        Err(refused) => refused,
    };
    let check = Check::finding("commands", format!("Redis refuses {command}: {error}")).costs(AWAY);
    match error.as_str() {
        "NOPERM" => check.mend("give the worker's user what the reference lists under Redis").run(
            "redis-cli ACL SETUSER USER ~PREFIX:* +ping +script|load +evalsha +get +strlen +set +del +pttl +pexpire \
             +time +select",
        ),
        "READONLY" => check.mend("give the worker the address of the primary"),
        "OOM" => check.mend("give Redis more memory").run("redis-cli CONFIG SET maxmemory BYTES"),
        "CROSSSLOT" | "MOVED" | "ASK" | "CLUSTERDOWN" => {
            check.mend("give the worker a Redis that is no cluster, or a proxy in front of it")
        }
        _ => check.mend("try it by hand with redis-cli, as the worker's user"),
    }
}

fn version(info: &HashMap<String, String>) -> Check {
    let version = field(info, "redis_version");
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    match major {
        Some(..6) => {
            Check::finding("version", format!("it is Redis {version}; 6.0 or later is needed"))
                .costs(AWAY)
                .mend("upgrade Redis")
        }
        Some(_) => match info.get("valkey_version") {
            Some(valkey) => Check::ok("version", format!("Valkey {valkey} (as Redis {version})")),
            None => Check::ok("version", format!("Redis {version}")),
        },
        None => Check::hint("version", "it does not say which version it is"),
    }
}

fn role(info: &HashMap<String, String>) -> Check {
    if field(info, "cluster_enabled") == "1" {
        return Check::finding(
            "role",
            "it is a node of a Redis Cluster, whose redirections are not followed",
        )
        .costs("most people's links are not kept: each of their requests makes a session")
        .mend("give the worker a Redis that is no cluster, or a proxy in front of it");
    }
    match field(info, "role") {
        "master" => Check::ok("role", "it is a primary"),
        "slave" => Check::finding("role", "it is a read-only replica")
            .costs(AWAY)
            .mend("give the worker the address of the primary"),
        _ => Check::hint("role", "it does not say whether it is a primary"),
    }
}

fn memory(info: &HashMap<String, String>) -> Vec<Check> {
    let number = |key| field(info, key).parse::<u64>().ok();
    let policy = field(info, "maxmemory_policy");
    let most = number("maxmemory").unwrap_or(0);
    let eviction = match policy {
        "noeviction" => Check::ok("eviction", "it evicts nothing (noeviction)"),
        "" => Check::hint("eviction", "it does not say what it evicts"),
        _ => {
            let only_when_full = if most == 0 { "; there is no maxmemory at present" } else { "" };
            let what = format!("maxmemory-policy is {policy}{only_when_full}");
            // Every key of ours has an end, so policies for volatile keys evict ours before others'.
            let check = if policy.starts_with("volatile-") { Check::hint } else { Check::finding };
            check("eviction", what)
                .costs("when memory is short, links and leases vanish: second sessions for the same person")
                .mend("keep it from evicting, here and in redis.conf, or use a Redis of its own")
                .run("redis-cli CONFIG SET maxmemory-policy noeviction")
        }
    };
    let used = number("used_memory").unwrap_or(0);
    let mib = |bytes: u64| bytes / (1 << 20);
    let room = match used.saturating_mul(100).checked_div(most) {
        None => Check::ok("memory", format!("{} MiB used, no limit of its own", mib(used))),
        Some(percent @ 90..) => {
            Check::finding("memory", format!("{percent} % of {} MiB are used", mib(most)))
                .costs("when it is full, links are not kept any more, or evicted")
                .mend("give it more memory, or use a Redis of its own")
                .run("redis-cli CONFIG SET maxmemory BYTES")
        }
        Some(percent) => Check::ok("memory", format!("{percent} % of {} MiB are used", mib(most))),
    };
    vec![eviction, room]
}

fn field<'a>(info: &'a HashMap<String, String>, key: &str) -> &'a str {
    info.get(key).map_or("", String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    fn info(fields: &[(&str, &str)]) -> HashMap<String, String> {
        fields.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn what_redis_says_of_itself_is_judged() {
        let version = |text| super::version(&info(&[("redis_version", text)])).verdict;
        assert_eq!(version("5.0.14"), Verdict::Finding);
        assert_eq!(version("6.0.0"), Verdict::Ok);
        assert_eq!(version("10.1"), Verdict::Ok);
        assert_eq!(version(""), Verdict::Hint);
        let role = |text| super::role(&info(&[("role", text)])).verdict;
        assert_eq!((role("master"), role("slave")), (Verdict::Ok, Verdict::Finding));
        let cluster = info(&[("role", "master"), ("cluster_enabled", "1")]);
        assert_eq!(super::role(&cluster).verdict, Verdict::Finding);
    }

    #[test]
    fn memory_that_is_short_or_given_away_is_told() {
        let memory = |policy, used, most| {
            let info =
                info(&[("maxmemory_policy", policy), ("used_memory", used), ("maxmemory", most)]);
            let checks = super::memory(&info);
            (checks[0].verdict, checks[1].verdict)
        };
        assert_eq!(memory("noeviction", "950", "0"), (Verdict::Ok, Verdict::Ok));
        assert_eq!(memory("allkeys-lru", "100", "1000"), (Verdict::Finding, Verdict::Ok));
        assert_eq!(memory("volatile-ttl", "900", "1000"), (Verdict::Hint, Verdict::Finding));
    }

    #[test]
    fn a_slow_redis_is_told() {
        let verdict = |millis| latency(Duration::from_millis(millis)).verdict;
        assert_eq!(
            (verdict(1), verdict(60), verdict(300)),
            (Verdict::Ok, Verdict::Hint, Verdict::Finding)
        );
    }
}
