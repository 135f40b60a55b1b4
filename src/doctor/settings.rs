//! The settings by themselves and against each other: each is valid, but do they go together?

use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::{Check, quoted, span};
use crate::config::{Settings, is_loopback};

/// Beside a request's calls: its event, and what comes of it.
const SETTLING: Duration = Duration::from_secs(2);

pub(super) fn examine(settings: &Settings, checks: &mut Vec<Check>) {
    checks.push(Check::ok("values", "all are valid"));
    checks.extend(plain(settings));
    checks.push(key_file(settings.platform.api_key.file.as_deref()));
    checks.extend([seal(settings), workflow(settings), grace(settings)]);
    checks.extend(rate(settings));
    checks.extend(delays(settings));
}

/// What goes over the network for everybody to read.
fn plain(settings: &Settings) -> Vec<Check> {
    let secret = |url: &SecretString| Url::parse(url.expose_secret()).ok();
    let servers = [
        ("HANDOFF_IDV_URL", Some(settings.platform.url.clone()), "the API key and every link"),
        ("HANDOFF_AMQP_URL", secret(&settings.broker.url), "RabbitMQ's password and every link"),
        ("HANDOFF_REDIS_URL", secret(&settings.cache.url), "Redis' password and what it holds"),
    ];
    let open = servers.into_iter().filter_map(|(name, url, what)| {
        let url = url?;
        let is_plain = matches!(url.scheme(), "http" | "amqp" | "redis");
        let here = is_loopback(&url) || url.host_str().is_some_and(is_loopback_address);
        (is_plain && !here).then(|| {
            Check::hint("encryption", format!("{name} leads to another machine without TLS"))
                .costs(format!("whoever is on the way can read {what}"))
                .mend(format!("{name}={}s://…, unless that network is yours alone", url.scheme()))
        })
    });
    let open: Vec<_> = open.collect();
    match open.is_empty() {
        true => vec![Check::ok("encryption", "nothing leaves this machine without TLS")],
        false => open,
    }
}

/// Hosts of URLs that are not http's are not read as addresses.
fn is_loopback_address(host: &str) -> bool {
    host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn key_file(file: Option<&Path>) -> Check {
    let Some(file) = file else {
        return Check::hint("key file", "the API key is not read from a file")
            .costs("it shows in the environment of the process, and a new key needs a restart")
            .mend("HANDOFF_IDV_API_KEY_FILE=/run/secrets/idv-key");
    };
    let mode = fs::metadata(file).map(|metadata| metadata.permissions().mode());
    match mode {
        Ok(mode) if mode & 0o004 != 0 => {
            Check::hint("key file", "everybody on this machine can read the file of the API key")
                .costs("whoever has the key can make sessions in your name")
                .mend("take that right away from others")
                .run(format!("chmod o-r {}", quoted(&file.to_string_lossy())))
        }
        _ => Check::ok("key file", "can be read, and not by everybody"),
    }
}

fn seal(settings: &Settings) -> Check {
    match settings.cache.seal_keys.len() {
        0 => {
            Check::hint("seal", "HANDOFF_CACHE_KEY is not set: tokens stand in Redis in the clear")
                .costs("whoever can read Redis can take the place of a person with a live link")
                .mend("set it, to the same for all replicas")
                .run("export HANDOFF_CACHE_KEY=$(openssl rand -base64 32)")
        }
        1 => Check::ok("seal", "what Redis holds is sealed"),
        n => Check::ok("seal", format!("what Redis holds is sealed; {n} keys open it")),
    }
}

fn workflow(settings: &Settings) -> Check {
    match settings.worker.workflow_id {
        Some(_) => Check::ok("workflow", "there is one for requests that name none"),
        None => Check::hint("workflow", "HANDOFF_IDV_WORKFLOW_ID is not set")
            .costs("a request that names no workflow is invalid")
            .mend("set it, or have every producer name one"),
    }
}

fn grace(settings: &Settings) -> Check {
    let (grace, timeout) = (settings.worker.shutdown_grace, settings.platform.timeout);
    let needed = 2 * timeout + SETTLING;
    if grace >= needed {
        let what = format!("{} are enough for two calls of {}", span(grace), span(timeout));
        return Check::ok("grace", what);
    }
    Check::hint(
        "grace",
        format!(
            "HANDOFF_SHUTDOWN_GRACE ({}) is less than two platform calls may take ({})",
            span(grace),
            span(2 * timeout)
        ),
    )
    .costs("a shutdown can cut a session call short, and its request then makes a second session")
    .mend(format!("HANDOFF_SHUTDOWN_GRACE={}s, or a shorter HANDOFF_IDV_TIMEOUT", needed.as_secs()))
}

/// A session takes two calls, and its token lives meanwhile.
fn rate(settings: &Settings) -> Option<Check> {
    let limit = settings.platform.rate_limit?;
    let life = settings.platform.token_ttl.saturating_sub(settings.cache.link_min_life);
    let two = limit.per * 2 / limit.count;
    let sessions = f64::from(limit.count) / 2.0 / limit.per.as_secs_f64();
    Some(match two > life {
        true => Check::finding(
            "rate",
            format!(
                "HANDOFF_IDV_RATE_LIMIT lets two calls through in {}, and a token is of use for {}",
                span(two),
                span(life)
            ),
        )
        .costs("a token is too old before its session may be asked for: nobody is ever served")
        .mend("raise the limit, or HANDOFF_IDV_TOKEN_TTL, or lower HANDOFF_LINK_MIN_LIFE"),
        false => Check::ok(
            "rate",
            format!("room for {sessions:.2} new links a second, all replicas together"),
        ),
    })
}

fn delays(settings: &Settings) -> Option<Check> {
    let delays = settings.broker.retry_delays.iter().map(|delay| delay.duration());
    (!delays.is_sorted()).then(|| {
        Check::hint("delays", "HANDOFF_RETRY_DELAYS gets shorter somewhere along the list")
            .costs("a platform that is down for long is asked more often the longer it lasts")
            .mend("order the delays from short to long")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{
            RawSettings, RunFlags, Spec,
            table::{
                AMQP_URL, CACHE_KEY, IDV_ALLOW_HTTP, IDV_API_KEY, IDV_RATE_LIMIT, IDV_URL,
                IDV_WORKFLOW_ID, REDIS_URL, RETRY_DELAYS, SHUTDOWN_GRACE,
            },
        },
        doctor::Verdict,
    };

    /// A setting and its value.
    type Given = (&'static Spec, &'static str);

    /// How a check turns out under these settings.
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
    fn what_leaves_the_machine_without_tls_is_told() {
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
    fn settings_are_held_against_each_other() {
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
