//! Configuration errors: reported together, by variable name, never with the value.

use std::collections::BTreeMap;

use serde_json::json;

use crate::{
    doctor::doctor,
    support::{TempFile, TestEnv, log_text, within_timeout, worker::command},
};

/// A value that no error may contain.
const SECRET: &str = "v4lue-must-not-leak";

async fn run(settings: &[(&str, &str)], arguments: &[&str]) -> (Option<i32>, String) {
    let settings: BTreeMap<String, String> = settings
        .iter()
        .map(|(name, value)| (format!("HANDOFF_{name}"), (*value).to_owned()))
        .collect();
    let arguments: Vec<&str> = std::iter::once("run").chain(arguments.iter().copied()).collect();
    let output = within_timeout("its exit", command(&arguments, &settings).output()).await.unwrap();
    assert!(output.stdout.is_empty());
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

const GOOD: &[(&str, &str)] = &[("IDV_URL", "https://idv.example.com"), ("IDV_API_KEY", "k")];

#[tokio::test]
async fn each_configuration_error_exits_with_status_2_and_names_its_variable() {
    let long = "x".repeat(300);
    let file = format!("/no/such/{SECRET}");
    let two_keys = format!("AAAA,{SECRET}");
    let wrong: Vec<(&str, &str)> = vec![
        ("IDV_URL", ""),
        ("IDV_URL", SECRET),
        ("IDV_URL", "ftp://v4lue-must-not-leak.example.com"),
        ("IDV_URL", "http://v4lue-must-not-leak.example.com"),
        ("IDV_URL", "https://v4lue-must-not-leak@idv.example.com"),
        ("IDV_URL", "https://idv.example.com/?v4lue-must-not-leak"),
        ("IDV_URL", "https://idv.example.com/#v4lue-must-not-leak"),
        ("IDV_URL", "https:v4lue-must-not-leak"),
        ("IDV_URL", " https://v4lue-must-not-leak"),
        ("IDV_URL", "https:\\\\v4lue-must-not-leak"),
        ("IDV_PUBLIC_URL", SECRET),
        ("IDV_PUBLIC_URL", "http://v4lue-must-not-leak.example.com"),
        ("IDV_API_KEY", ""),
        ("IDV_API_KEY", "v4lue-must-not-leak\n"),
        ("IDV_API_KEY", " v4lue-must-not-leak"),
        ("IDV_API_KEY_FILE", &file),
        ("IDV_API_KEY_FILE", "/dev/zero"),
        ("IDV_API_KEY_FILE", "/dev/null"),
        ("IDV_API_KEY_FILE", "/"),
        ("IDV_WORKFLOW_ID", ""),
        ("IDV_WORKFLOW_ID", &long),
        ("IDV_TOKEN_TTL", SECRET),
        ("IDV_TOKEN_TTL", "1500ms"),
        ("IDV_TOKEN_TTL", "0s"),
        ("IDV_TOKEN_TTL", "10m"),
        ("IDV_FLOW", SECRET),
        ("IDV_FLOW", "Deeplink"),
        ("IDV_SESSION_TTL", SECRET),
        ("IDV_SESSION_TTL", "0s"),
        ("IDV_SESSION_TTL", "10m"),
        ("IDV_TIMEOUT", "10"),
        ("IDV_TIMEOUT", "0s"),
        ("IDV_RATE_LIMIT", "0/1m"),
        ("IDV_RATE_LIMIT", SECRET),
        ("IDV_ALLOW_HTTP", "yes"),
        ("AMQP_URL", SECRET),
        ("AMQP_URL", "http://v4lue-must-not-leak"),
        ("AMQP_URL", "amqp://v4lue-must-not-leak/?frame_max=512"),
        ("AMQP_URL", "amqp://v4lue-must-not-leak,"),
        ("AMQP_URL", "amqp://u:v4lue-must-not-leak,w@host"),
        ("AMQP_URL_FILE", &file),
        ("REDIS_URL", SECRET),
        ("REDIS_URL", "redis://"),
        ("REDIS_URL", "redis://v4lue-must-not-leak/-1"),
        ("REDIS_URL", "redis://v4lue-must-not-leak/16x"),
        ("REDIS_URL", "redis://v4lue-must-not-leak/0/1"),
        ("REDIS_URL", "redis://v4lue-must-not-leak/+1"),
        ("REDIS_URL", "redis://v4lue-must-not-leak/99999999999"),
        ("REDIS_URL", "rediss://v4lue-must-not-leak.example.com#insecure"),
        ("REDIS_URL", "redis://v4lue-must-not-leak,redis://b"),
        ("REDIS_URL", "redis://v4lue-must-not-leak,"),
        ("REDIS_MODE", SECRET),
        ("REDIS_SENTINELS", "redis://v4lue-must-not-leak"),
        ("REDIS_SENTINEL_SERVICE", SECRET),
        ("QUEUE", &long),
        ("QUEUE", "amq.v4lue-must-not-leak"),
        ("REQUEST_EXCHANGE", ""),
        ("EVENT_EXCHANGE", "amq.topic"),
        ("DECLARE_TOPOLOGY", SECRET),
        ("CONCURRENCY", "0"),
        ("CONCURRENCY", "-1"),
        ("CONCURRENCY", "65536"),
        ("RETRY_BUDGET", "-1s"),
        ("RETRY_DELAYS", "10s,,1m"),
        ("RETRY_DELAYS", "0s"),
        ("RETRY_DELAYS", "2000h"),
        ("LINK_MIN_LIFE", "1h"),
        ("REDIS_PATIENCE", "61s"),
        ("LINK_MIN_LIFE", SECRET),
        ("CACHE_KEY", SECRET),
        ("CACHE_KEY", &two_keys),
        ("KEY_PREFIX", "v4lue-must-not-leak{"),
        ("KEY_PREFIX", "a b"),
        ("MAX_MESSAGE_BYTES", "0"),
        ("MAX_MESSAGE_BYTES", "64KiB"),
        ("HTTP_ADDR", SECRET),
        ("HTTP_ADDR", "9464"),
        ("SHUTDOWN_GRACE", "0s"),
        ("SHUTDOWN_GRACE", SECRET),
        ("LOG", "handoff=v4lue-must-not-leak=x"),
        ("LOG", SECRET),
        ("LOG", "warning"),
        ("LOG", "info,handoff::worker=debug,debgu"),
        ("LOG_FORMAT", "xml"),
    ];
    assert!(wrong.len() >= 40);
    for (name, value) in wrong {
        let mut settings: Vec<_> =
            GOOD.iter().copied().filter(|(good, _)| !name.starts_with(good)).collect();
        settings.push((name, value));
        let (status, stderr) = run(&settings, &[]).await;
        assert_eq!(status, Some(2), "{name}={value}: {stderr}");
        let reported = match name {
            // The conflict of two settings is reported under LINK_MIN_LIFE, with the TTL in its text.
            "IDV_TOKEN_TTL" | "IDV_SESSION_TTL" if value == "10m" => "LINK_MIN_LIFE",
            _ => name,
        };
        assert!(stderr.contains(&format!("HANDOFF_{reported}")), "{name}={value}: {stderr}");
        assert!(!stderr.contains(SECRET), "{name}: {stderr}");
        assert!(stderr.contains("configuration errors: 1\n"), "only one: {stderr}");
    }
}

#[tokio::test]
async fn configuration_errors_are_reported_together() {
    let (status, stderr) = run(
        &[
            ("CONCURRENCY", "many"),
            ("RETRY_DELAYS", "soon"),
            ("LOG_FORMAT", "xml"),
            ("REDIS_URL", SECRET),
            ("IDV_API_KEY", SECRET),
            ("IDV_API_KEY_FILE", SECRET),
            // Found although IDV_URL is missing.
            ("LINK_MIN_LIFE", "2h"),
        ],
        &["--idv-timeout", SECRET],
    )
    .await;
    assert_eq!(status, Some(2));
    let reported = [
        "CONCURRENCY",
        "RETRY_DELAYS",
        "LOG_FORMAT",
        "REDIS_URL",
        "IDV_API_KEY",
        "IDV_TIMEOUT",
        "IDV_URL",
        "LINK_MIN_LIFE",
    ];
    for name in reported {
        assert!(stderr.contains(&format!("HANDOFF_{name}: ")), "{name} is not in {stderr}");
    }
    assert!(stderr.contains(&format!("configuration errors: {}\n", reported.len())), "{stderr}");
    assert!(!stderr.contains(SECRET), "{stderr}");
}

#[tokio::test]
async fn bare_boolean_flag_means_true_and_takes_no_value() {
    let wrong = ["--idv-allow-http", "--idv-url", "http://idv.example.com", "--log-format=xml"];
    for flags in [
        &wrong[..],
        &["--idv-allow-http", "true", "--log-format=xml"],
        &["--idv-allow-http=false", "--log-format", "xml"],
    ] {
        let (status, stderr) = run(GOOD, flags).await;
        assert_eq!(status, Some(2));
        assert!(
            stderr.contains("configuration errors: 1\n") && stderr.contains("HANDOFF_LOG_FORMAT"),
            "{stderr}"
        );
    }
}

#[tokio::test]
async fn unknown_flag_is_reported_without_its_value() {
    let (status, stderr) = run(GOOD, &["--idv-apikey=v4lue-must-not-leak"]).await;
    assert_eq!(status, Some(2));
    assert!(stderr.contains("--idv-apikey") && !stderr.contains(SECRET), "{stderr}");
    assert!(stderr.contains("did you mean --idv-api-key?"), "{stderr}");
    // Without quotes, the second half of a key is an argument that must not be printed.
    for arguments in
        [&["--idv-api-key", "ApiKey", SECRET][..], &["--idv-url", "--idv-api-key", SECRET]]
    {
        let (status, stderr) = run(GOOD, arguments).await;
        assert_eq!(status, Some(2));
        assert!(!stderr.contains(SECRET), "{stderr}");
    }
}

/// Variables that Kubernetes sets in each pod for Services called `handoff` and `handoff-metrics`.
const SERVICE_LINKS: [&str; 7] = [
    "SERVICE_HOST",
    "SERVICE_PORT",
    "SERVICE_PORT_METRICS",
    "PORT",
    "PORT_9464_TCP",
    "PORT_9464_TCP_ADDR",
    "METRICS_PORT_9464_TCP_PROTO",
];

#[tokio::test]
async fn unknown_setting_is_one_warning_that_names_the_nearest_and_no_value() {
    let mut env = TestEnv::start().await;
    for name in SERVICE_LINKS {
        env.set(name, "tcp://v4lue-must-not-leak:9464");
    }
    let api_key = TempFile::new("k");
    env.settings.remove("HANDOFF_IDV_API_KEY");
    env.set("IDV_API_KEY_FILE", api_key.path());
    let worker = env.start_worker().await;
    assert!(worker.log_lines(log_text::UNKNOWN_SETTING).is_empty());
    worker.stop().await;

    env.set("CONCURENCY", SECRET).set("IDV_TIMEOUT_FILE", SECRET);
    let worker = env.start_worker().await;
    let warnings = worker.log_lines(log_text::UNKNOWN_SETTING);
    let named = |field: &str| warnings.iter().map(|line| line[field].clone()).collect::<Vec<_>>();
    assert_eq!(named("variable"), ["HANDOFF_CONCURENCY", "HANDOFF_IDV_TIMEOUT_FILE"]);
    assert_eq!(named("nearest"), ["HANDOFF_CONCURRENCY", "HANDOFF_IDV_TIMEOUT"]);
    assert_eq!(named("level"), ["WARN", "WARN"]);
    let report = doctor(&env, &[]).await;
    let unknown = report.0.iter().filter(|check| check["name"] == "unknown");
    let unknown: Vec<_> = unknown.map(|check| &check["verdict"]).collect();
    assert_eq!(unknown, [&json!("hint"), &json!("hint")]);
    assert!(!json!(report.0).to_string().contains(SECRET));
    assert!(!worker.stop_and_output().await.contains(SECRET));

    // Commands that read only some of the settings know the others.
    env.set("AMQP_URL", "amqp://127.0.0.1:1");
    let listing = command(&["dead-letters", "list"], &env.settings).output();
    let output = within_timeout("its exit", listing).await.unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(stderr.matches(log_text::UNKNOWN_SETTING).count(), 2, "{stderr}");
    assert!(!stderr.contains(SECRET), "{stderr}");
}

#[tokio::test]
async fn missing_setting_is_reported_together_with_the_misspelt_one() {
    let settings = [("IDV_URL", "https://idv.example.com"), ("IDV_APIKEY", SECRET)];
    let (status, stderr) = run(&settings, &[]).await;
    assert_eq!(status, Some(2));
    assert!(stderr.contains("HANDOFF_IDV_API_KEY: is required"), "{stderr}");
    let note =
        "HANDOFF_IDV_APIKEY is not a setting and is ignored; the nearest is HANDOFF_IDV_API_KEY";
    assert!(stderr.contains(note) && !stderr.contains(SECRET), "{stderr}");
}

#[tokio::test]
async fn mistakes_in_the_settings_of_a_redis_mode_name_the_variable_and_the_remedy() {
    for (settings, variable, why) in [
        (&[("REDIS_MODE", "sentinel")][..], "REDIS_SENTINELS", "is required"),
        (
            &[("REDIS_MODE", "cluster"), ("REDIS_SENTINELS", "redis://a")],
            "REDIS_SENTINELS",
            "HANDOFF_REDIS_MODE=sentinel",
        ),
        (
            &[("REDIS_SENTINEL_SERVICE", "primary")],
            "REDIS_SENTINEL_SERVICE",
            "HANDOFF_REDIS_MODE=sentinel",
        ),
        (
            &[
                ("REDIS_MODE", "sentinel"),
                ("REDIS_SENTINELS", "redis://a"),
                ("REDIS_URL", "redis://a,redis://b"),
            ],
            "REDIS_URL",
            "HANDOFF_REDIS_MODE=cluster",
        ),
        (
            &[("REDIS_MODE", "cluster"), ("REDIS_URL", "redis://a,rediss://b")],
            "REDIS_URL",
            "scheme",
        ),
        (
            &[("REDIS_MODE", "cluster"), ("REDIS_URL", "redis://:v4lue-must-not-leak@a,redis://b")],
            "REDIS_URL",
            "user or password",
        ),
        (&[("REDIS_MODE", "cluster"), ("REDIS_URL", "redis://a/1")], "REDIS_URL", "database"),
        (
            &[("REDIS_MODE", "sentinel"), ("REDIS_SENTINELS", "redis://a,,redis://b")],
            "REDIS_SENTINELS",
            "empty element",
        ),
    ] {
        let (status, stderr) = run(&[GOOD, settings].concat(), &[]).await;
        assert_eq!(status, Some(2), "{settings:?}");
        assert!(stderr.contains("configuration errors: 1"), "{settings:?}: {stderr}");
        assert!(stderr.contains(&format!("HANDOFF_{variable}: ")), "{settings:?}: {stderr}");
        assert!(stderr.contains(why) && !stderr.contains(SECRET), "{settings:?}: {stderr}");
    }
}

#[tokio::test]
async fn mistake_in_one_setting_hides_none_in_another() {
    let too_long = "q".repeat(250);
    for (settings, variables) in [
        (
            &[("REDIS_MODE", "sentinel"), ("REDIS_SENTINEL_SERVICE", "a b")][..],
            ["REDIS_SENTINELS", "REDIS_SENTINEL_SERVICE"],
        ),
        (
            &[("REDIS_SENTINELS", SECRET), ("REDIS_SENTINEL_SERVICE", "primary")],
            ["REDIS_SENTINELS", "REDIS_SENTINEL_SERVICE"],
        ),
        (
            &[("REDIS_SENTINELS", "redis://a"), ("REDIS_SENTINEL_SERVICE", "a b")],
            ["REDIS_SENTINELS", "REDIS_SENTINEL_SERVICE"],
        ),
        (&[("QUEUE", &too_long), ("RETRY_DELAYS", "soon")], ["QUEUE", "RETRY_DELAYS"]),
    ] {
        let (status, stderr) = run(&[GOOD, settings].concat(), &[]).await;
        assert_eq!(status, Some(2), "{settings:?}");
        assert!(stderr.contains("configuration errors: 2"), "{settings:?}: {stderr}");
        for variable in variables {
            assert!(stderr.contains(&format!("HANDOFF_{variable}: ")), "{settings:?}: {stderr}");
        }
        assert!(!stderr.contains(SECRET), "{stderr}");
    }
}
