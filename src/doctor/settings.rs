//! The settings against each other, and what they expose.

use std::{fs, net::IpAddr, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use secrecy::ExposeSecret;
use url::{Host, Url};

use super::{
    check::{Check, Verdict},
    format::{quoted, span},
};
use crate::{
    config::{
        AmqpNode, Flow, PlatformSettings, RedisNode, RedisNodes, RedisSettings, Settings,
        UnknownVariable, ignored_variables, is_loopback, unknown_variables,
    },
    tls,
};

/// Time to publish and settle, after a request's two calls.
const SETTLING: Duration = Duration::from_secs(2);

pub(super) fn examine(settings: &Settings, checks: &mut Vec<Check>) {
    checks.push(Check::ok("values", "all settings are valid"));
    checks.extend(encryption(settings));
    checks.push(key_file(settings.platform.api_key.path()));
    checks.extend(key_scheme(&settings.platform));
    checks.extend(public_url(&settings.platform));
    checks.extend([seal(settings), workflow(settings), grace(settings)]);
    checks.extend(rate(settings));
    checks.extend(delays(settings));
    checks.extend(proxy_variables(settings));
    checks.extend(authorities(settings));
    checks.extend(unknown_variables().into_iter().map(|variable| unknown(&variable)));
}

fn encryption(settings: &Settings) -> Vec<Check> {
    let platform = settings.platform.url.as_str();
    let nodes = settings.broker.nodes.current();
    let nodes = nodes.nodes().iter().filter_map(AmqpNode::address);
    // One hint, however many nodes there are.
    let broker = nodes.clone().find(|url| url.scheme() == "amqp" && !is_local(url));
    let broker = broker.or_else(|| nodes.clone().next());
    let cache = redis_address(&settings.cache.redis);
    let servers = [
        ("HANDOFF_IDV_URL", platform, "the API key and every link"),
        (
            "HANDOFF_AMQP_URL",
            broker.as_ref().map_or("", Url::as_str),
            "the RabbitMQ password and every link",
        ),
        (
            "HANDOFF_REDIS_URL",
            cache.as_ref().map_or("", Url::as_str),
            "the Redis password and all values in it",
        ),
    ];
    let mut checks = Vec::new();
    for (name, url, exposed) in servers {
        let Ok(url) = Url::parse(url) else { continue };
        let scheme = url.scheme();
        if matches!(scheme, "http" | "amqp" | "redis") && !is_local(&url) {
            let what = format!("{name} leads to another machine without TLS");
            let check = Check::hint("encryption", what)
                .cost(format!("anyone on the network path can read {exposed}"))
                .remedy(format!("set {name}={scheme}s://…, unless the network path is trusted"));
            checks.push(check);
        }
    }
    if checks.is_empty() {
        checks.push(Check::ok("encryption", "every connection to another machine uses TLS"));
    }
    checks
}

/// The address of a Redis on another machine, if there is one, and of any other otherwise.
///
/// In sentinel mode the URL's host is not used: the primary is about as far away as the sentinels are.
fn redis_address(redis: &RedisSettings) -> Option<Url> {
    let nodes = redis.nodes.current();
    let addresses: Vec<_> = match &redis.sentinels {
        Some(sentinels) => {
            let sentinels = sentinels.nodes.current();
            let hosts = sentinels.nodes().iter().map(RedisNode::host_and_port);
            hosts.filter_map(|(host, port)| nodes.first().at(host, port).address()).collect()
        }
        None => nodes.nodes().iter().filter_map(RedisNode::address).collect(),
    };
    let remote = addresses.iter().find(|url| !is_local(url));
    remote.or(addresses.first()).cloned()
}

fn unknown(variable: &UnknownVariable) -> Check {
    let UnknownVariable { name, nearest } = variable;
    Check::hint("unknown", format!("{name} is not a setting"))
        .cost("it has no effect")
        .remedy(format!("check its name, or unset it; the nearest setting is {nearest}"))
}

fn is_local(url: &Url) -> bool {
    // `Url` parses an IP address as one only in the URLs of web schemes.
    let is_loopback_ip = |host: &str| host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    is_loopback(url) || url.host_str().is_some_and(is_loopback_ip)
}

fn key_file(file: Option<&Path>) -> Check {
    let Some(file) = file else {
        return Check::hint("key file", "the API key is not read from a file")
            .cost("the process environment shows it, and a new key needs a restart")
            .remedy("set HANDOFF_IDV_API_KEY_FILE instead, for example to /run/secrets/idv-key");
    };
    let mode = fs::metadata(file).map(|metadata| metadata.permissions().mode());
    if mode.is_ok_and(|mode| mode & 0o004 != 0) {
        return Check::hint("key file", "every user of this machine can read the API key file")
            .cost("anyone who has the key can create sessions in your name")
            .remedy("remove the read permission of other users")
            .command(format!("chmod o-r {}", quoted(&file.to_string_lossy())));
    }
    Check::ok("key file", "only its owner and group can read the API key file")
}

/// The vendor's examples send the key as `ApiKey <key>`, and the setting is sent as it is.
fn key_scheme(settings: &PlatformSettings) -> Option<Check> {
    let key = settings.api_key.current();
    (!key.expose_secret().contains(' ')).then(|| {
        Check::hint("key scheme", "the API key has no scheme word in front")
            .cost("platforms that expect one refuse every call")
            .remedy("set HANDOFF_IDV_API_KEY to `ApiKey <key>`, unless your platform takes the bare key")
    })
}

/// Whether people can open links, as far as the base URL shows it.
fn public_url(settings: &PlatformSettings) -> Option<Check> {
    const NAME: &str = "public URL";
    let (url, setting) = match (&settings.public_url, settings.flow) {
        (Some(url), _) => (url, "HANDOFF_IDV_PUBLIC_URL"),
        (None, Flow::Token) => (&settings.url, "HANDOFF_IDV_URL"),
        (None, Flow::Deeplink) => {
            let what = "links have the platform's own base URL: HANDOFF_IDV_PUBLIC_URL is not set";
            return Some(Check::ok(NAME, what));
        }
    };
    let why = if !is_public(url) {
        "is not a public address"
    } else if url.scheme() != "https" {
        "is plain http"
    } else {
        return Some(Check::ok(NAME, "links lead to a public address over https"));
    };
    let what = format!("links lead to {setting}, which {why}");
    let check = if is_public(url) {
        Check::hint(NAME, what).cost("browsers do not give such a page the camera")
    } else {
        Check::hint(NAME, what).cost("people's own devices cannot open their links")
    };
    Some(check.remedy(
        "set HANDOFF_IDV_PUBLIC_URL to the https address of the platform that people reach, the one that the \
         platform has as its own base URL",
    ))
}

/// Whether devices on the internet may reach the host of a URL, as far as its name shows.
fn is_public(url: &Url) -> bool {
    const PRIVATE_ENDS: [&str; 6] = ["localhost", "local", "internal", "lan", "home.arpa", "test"];
    match url.host() {
        Some(Host::Ipv4(ip)) => {
            let is_shared = ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64;
            !(ip.is_private()
                || ip.is_loopback()
                || ip.is_link_local()
                || ip.is_unspecified()
                || is_shared)
        }
        Some(Host::Ipv6(ip)) => {
            !(ip.is_loopback()
                || ip.is_unspecified()
                || ip.is_unique_local()
                || ip.is_unicast_link_local())
        }
        Some(Host::Domain(name)) => {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            let is_private = |end: &&str| name == **end || name.ends_with(&format!(".{end}"));
            name.contains('.') && !PRIVATE_ENDS.iter().any(is_private) && !name.ends_with(".svc")
        }
        None => false,
    }
}

fn seal(settings: &Settings) -> Check {
    match settings.cache.seal_keys.current().len() {
        0 => Check::hint("seal", "HANDOFF_CACHE_KEY is not set: Redis holds tokens in the clear")
            .cost("anyone who can read Redis can use a person's live link")
            .remedy("set it to the same key for all replicas")
            .command("export HANDOFF_CACHE_KEY=$(openssl rand -base64 32)"),
        1 => Check::ok("seal", "values in Redis are sealed"),
        n => Check::ok("seal", format!("values in Redis are sealed; keys that open them: {n}")),
    }
}

fn workflow(settings: &Settings) -> Check {
    if settings.worker.workflow_id.is_some() {
        return Check::ok("workflow", "requests that name no workflow have a default");
    }
    Check::hint("workflow", "HANDOFF_IDV_WORKFLOW_ID is not set")
        .cost("a request that names no workflow is invalid")
        .remedy("set it, or let every producer name a workflow")
}

fn grace(settings: &Settings) -> Check {
    let grace = settings.worker.shutdown_grace;
    let timeout = settings.platform.timeout;
    let needed = 2 * timeout + SETTLING;
    if grace >= needed {
        let what = format!("{} is enough for two calls of {}", span(grace), span(timeout));
        return Check::ok("grace", what);
    }
    let what = format!(
        "HANDOFF_SHUTDOWN_GRACE ({}) is shorter than two platform calls can take ({})",
        span(grace),
        span(2 * timeout)
    );
    Check::hint("grace", what)
        .cost("a shutdown can interrupt a session call; its request then creates a second session")
        .remedy(format!(
            "set HANDOFF_SHUTDOWN_GRACE={}s, or shorten HANDOFF_IDV_TIMEOUT",
            needed.as_secs()
        ))
}

/// Checks that the two calls of a session are permitted while the token is still useful.
fn rate(settings: &Settings) -> Option<Check> {
    let limit = settings.platform.rate_limit?;
    let calls = match settings.platform.flow {
        Flow::Token => 2.0,
        Flow::Deeplink => 1.0,
    };
    let useful_life = settings.platform.token_ttl.saturating_sub(settings.cache.link_min_life);
    let two_calls = limit.per * 2 / limit.count;
    if calls > 1.0 && two_calls > useful_life {
        let what = format!(
            "HANDOFF_IDV_RATE_LIMIT permits two calls in {}, but a token is useful for {} only",
            span(two_calls),
            span(useful_life)
        );
        let check = Check::finding("rate", what)
            .cost("each token is too old before its session call is permitted: no request succeeds")
            .remedy("raise the limit or HANDOFF_IDV_TOKEN_TTL, or lower HANDOFF_LINK_MIN_LIFE");
        return Some(check);
    }
    let links = f64::from(limit.count) / calls / limit.per.as_secs_f64();
    let what = format!("permits {links:.2} new links a second, for all replicas together");
    Some(Check::ok("rate", what))
}

fn delays(settings: &Settings) -> Option<Check> {
    let delays = settings.broker.retry_delays.iter().map(|delay| delay.duration);
    (!delays.is_sorted()).then(|| {
        Check::hint("delays", "HANDOFF_RETRY_DELAYS are not in ascending order")
            .cost("the longer the platform is down, the more often it is called")
            .remedy("sort the delays from short to long")
    })
}

/// Checks the files that name other certificate authorities than the system's.
fn authorities(settings: &Settings) -> impl Iterator<Item = Check> {
    let is_tls = |nodes: &RedisNodes| nodes.nodes().iter().any(RedisNode::is_tls);
    let redis = &settings.cache.redis;
    let sentinels = redis.sentinels.as_ref().map(|sentinels| sentinels.nodes.current());
    let is_tls = settings.platform.url.scheme() == "https"
        || is_tls(&redis.nodes.current())
        || sentinels.is_some_and(|nodes| is_tls(&nodes))
        || settings.broker.nodes.current().nodes().iter().any(AmqpNode::is_tls);
    let verdict = if is_tls { Verdict::Finding } else { Verdict::Hint };
    tls::authority_problems().into_iter().map(move |problem| {
        Check::new("authorities", verdict, problem)
            .cost("certificates of the authorities in it are refused")
            .remedy(
                "correct the variable or what it names; its certificates must be PEM, and readable",
            )
    })
}

fn proxy_variables(settings: &Settings) -> impl Iterator<Item = Check> {
    ignored_variables(&settings.platform.route).into_iter().map(|(name, why)| {
        Check::hint("proxy", format!("{name} {why}"))
            .cost("the platform is reached through another proxy than you expect, or without one")
            .remedy(format!("correct or unset {name}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{
        RawSettings, RunFlags, Spec,
        table::{
            AMQP_URL, CACHE_KEY, IDV_ALLOW_HTTP, IDV_API_KEY, IDV_RATE_LIMIT, IDV_URL,
            IDV_WORKFLOW_ID, REDIS_URL, RETRY_DELAYS, SHUTDOWN_GRACE,
        },
    };

    /// A setting and its value.
    type Given = (&'static Spec, &'static str);

    /// The verdicts of a check under these settings.
    fn verdict(name: &str, given: &[Given]) -> Vec<Verdict> {
        let valid: &[Given] = &[
            (&IDV_URL.spec, "https://idv.example.com"),
            (&IDV_API_KEY.spec, "k"),
            (&AMQP_URL.spec, "amqp://127.0.0.1"),
            (&REDIS_URL.spec, "redis://localhost"),
        ];
        let given = valid.iter().chain(given);
        let raw = given.fold(RawSettings::default(), |raw, (spec, value)| raw.with(spec, *value));
        let mut checks = Vec::new();
        examine(&Settings::parse(&RunFlags(raw)).unwrap(), &mut checks);
        checks.iter().filter(|check| check.name == name).map(|check| check.verdict).collect()
    }

    #[test]
    fn plain_connection_to_another_machine_is_a_hint() {
        use Verdict::{Hint, Ok};
        assert_eq!(verdict("encryption", &[]), [Ok]);
        assert_eq!(
            verdict(
                "encryption",
                &[(&AMQP_URL.spec, "amqp://[::1]"), (&REDIS_URL.spec, "redis://127.0.0.9")]
            ),
            [Ok]
        );
        let open = [
            (&AMQP_URL.spec, "amqp://rabbitmq.example.com"),
            (&REDIS_URL.spec, "redis://10.0.0.1"),
            (&IDV_URL.spec, "http://idv.example.com"),
            (&IDV_ALLOW_HTTP.spec, "true"),
        ];
        assert_eq!(verdict("encryption", &open), [Hint; 3]);
        let tls = [
            (&AMQP_URL.spec, "amqps://rabbitmq.example.com"),
            (&REDIS_URL.spec, "rediss://10.0.0.1"),
        ];
        assert_eq!(verdict("encryption", &tls), [Ok]);
    }

    #[test]
    fn settings_are_checked_against_each_other() {
        use Verdict::{Finding, Hint, Ok};
        let key = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        for (name, given, expected) in [
            ("seal", &[][..], &[Hint][..]),
            ("seal", &[(&CACHE_KEY.spec, key)], &[Ok]),
            ("workflow", &[(&IDV_WORKFLOW_ID.spec, "w")], &[Ok]),
            ("grace", &[], &[Ok]),
            ("grace", &[(&SHUTDOWN_GRACE.spec, "21s")], &[Hint]),
            ("rate", &[], &[]),
            ("rate", &[(&IDV_RATE_LIMIT.spec, "3/1h")], &[Ok]),
            ("rate", &[(&IDV_RATE_LIMIT.spec, "2/1h")], &[Finding]),
            ("delays", &[], &[]),
            ("delays", &[(&RETRY_DELAYS.spec, "1m,10s")], &[Hint]),
        ] {
            assert_eq!(verdict(name, given), expected, "{name} {given:?}");
        }
    }
}
