//! No log line, page, metric, span or dead letter header contains a secret or a user id.

use std::time::Duration;

use clap::{Args, FromArgMatches};
use handoff::{
    cache::Cache,
    config::{LogSettings, RunFlags, Settings},
    message::decode_request,
    platform::PlatformClient as Client,
    session::{Access, Session, Token},
    telemetry::{logs, metrics::Metrics},
};
use lapin::{BasicProperties, types::AMQPValue};
use serde_json::json;

pub use crate::support::leaks::assert_no_secret;
use crate::support::{
    Answer, Collector, Message, TestEnv, Worker,
    leaks::{CACHE_KEY, MARK},
    log_text,
    platform::{API_KEY, Call, success},
    redis::{self, RedisEntry},
    required_env, within_timeout,
};

pub const USER: &str = "us3r-must-not-leak";
pub const PASSWORD: &str = "p4ss-must-not-leak";
/// An answer that repeats the call in its body and in every header that a client reads.
fn echo(status: u16, call: &Call) -> Answer {
    let mut echoed = format!("{} {}", call.header("authorization"), call.body);
    echoed.retain(|c| c.is_ascii() && !c.is_control());
    let mut answer = Answer::status(status)
        .header("location", format!("https://127.0.0.1:1/?{}", echoed.replace(' ', "+")))
        .header("retry-after", echoed.clone())
        .header("www-authenticate", echoed.clone());
    answer.body = echoed.into_bytes();
    answer
}

/// Answers a session call as the end of the user id says.
fn script(call: &Call) -> Answer {
    let metadata = &call.body["metadata"];
    let user = metadata["externalUserId"].as_str().unwrap_or_default();
    match user.rsplit_once('/').map(|(_, what)| what) {
        Some("rejected") => echo(422, call),
        Some("unauthorized") => echo(401, call),
        Some("unavailable") => echo(503, call),
        Some("redirected") => echo(307, call),
        Some("echoed") => echo(200, call),
        Some("unlikely") => echo(600, call),
        Some("broken") => Answer::json(&json!({ "error": metadata, "id": null })),
        _ if call.is_token() => success(call),
        _ => Answer::json(&json!({ "id": format!("s3ssion-{MARK}-{}", call.nth) })),
    }
}

/// Request bodies that are invalid for different reasons.
fn invalid_bodies() -> Vec<Vec<u8>> {
    let texts = [
        json!({ "userId": USER, "renew": USER, "locale": [USER], "metadata": USER, "expiresAt": USER }),
        json!({ "userId": format!("{USER}\u{7}"), "workflowId": USER.repeat(9) }),
        json!({ "userId": USER.repeat(20), "metadata": { USER: USER.repeat(1_000) } }),
        json!({ "specversion": USER, "id": "e", "type": USER, "source": USER, "data": USER }),
        json!([USER]),
    ];
    let texts = texts.iter().map(ToString::to_string);
    let broken =
        [format!(r#"{{"userId":"{USER}","#), format!(r#"{{"userId":"{USER}","userId":"{USER}"}}"#)];
    let mut bodies: Vec<_> = texts.chain(broken).map(String::into_bytes).collect();
    bodies.push([USER.as_bytes(), b"\xff"].concat());
    bodies.push(format!("{USER}{}", "[".repeat(200)).into_bytes());
    bodies
}

/// Asserts that neither the pages nor the output of a worker contain a secret, and returns its output.
pub async fn assert_worker_leaks_nothing(worker: Worker) -> String {
    for path in ["/metrics", "/readyz", "/livez", &format!("/{USER}?{USER}")] {
        let (_, page) = worker.get(path).await;
        assert_no_secret(path, &page);
    }
    let printed = worker.stop_and_output().await;
    assert_no_secret("the log", &printed);
    printed
}

pub fn assert_dead_letter_leaks_nothing(letter: &Message) {
    let headers = letter.properties.headers().as_ref().unwrap().inner();
    let ours = headers.iter().filter(|(name, _)| name.as_str().starts_with("x-handoff-"));
    let ours: Vec<_> = ours.map(|(name, _)| name.as_str()).collect();
    assert!(ours.len() >= 5, "{ours:?}");
    // All other headers came from the producer.
    for name in ours.into_iter().filter(|name| *name != "x-handoff-attempt") {
        assert_no_secret(name, &letter.text_header(name));
    }
}

/// An environment whose workers log as much as they can.
pub async fn verbose_env(is_sealed: bool) -> TestEnv {
    let mut env = TestEnv::builder().platform(script).start().await;
    env.set("LOG", "trace,lapin=trace,redis=trace,reqwest=trace,hyper=trace,rustls=trace");
    env.set("RETRY_BUDGET", "350ms").set("RETRY_DELAYS", "50ms");
    for (name, value) in [("RUST_BACKTRACE", "1"), ("RUST_LOG", "trace")] {
        env.settings.insert(name.into(), value.into());
    }
    if is_sealed {
        env.set("CACHE_KEY", CACHE_KEY);
    }
    env
}

async fn serve_and_fail_in_every_way(is_sealed: bool) {
    let mut env = verbose_env(is_sealed).await;
    let collector = Collector::start().await;
    for (name, value) in [("ENDPOINT", collector.url.as_str()), ("HEADERS", "x-key=must-not-leak")]
    {
        env.settings.insert(format!("OTEL_EXPORTER_OTLP_{name}"), value.into());
    }
    let mut redis = redis::connect(&required_env("HANDOFF_REDIS_URL")).await;
    let name = env.name.clone();
    let acl = |verb: &str| redis::cmd("ACL").arg(verb).arg(&name).clone();
    let rights = ["on", "~*", "+@all", &format!(">{PASSWORD}")];
    acl("SETUSER").arg(&rights).query_async::<()>(&mut redis).await.unwrap();
    let url = env.setting("REDIS_URL").to_owned();
    let with_password = url.replace("://", &format!("://{}:{PASSWORD}@", env.name));
    env.set("REDIS_URL", &with_password);
    let worker = env.start_worker().await;

    let metadata =
        json!({ "password": PASSWORD, "externalUserId": USER, "authorization": API_KEY });
    let failed =
        ["rejected", "unauthorized", "unavailable", "redirected", "echoed", "unlikely", "broken"];
    // A served request in between keeps the circuit breaker closed.
    let others = (1..failed.len()).map(|n| format!("served-{n}"));
    let cases = failed.into_iter().map(str::to_owned).zip(others).flat_map(<[_; 2]>::from);
    let cases = ["served", "served", "renewed"].map(str::to_owned).into_iter().chain(cases);
    for (n, what) in cases.chain(["broken".to_owned()]).enumerate() {
        let request = json!({
            "userId": format!("{USER}/{what}"), "metadata": metadata, "locale": USER,
            "renew": what == "renewed",
        });
        env.rabbitmq.publish_request(&format!("r-{n}"), request).await;
        let event = env.rabbitmq.next_event().await;
        let is_failed = failed.contains(&what.as_str());
        assert_eq!(event.routing_key == "handoff.failed", is_failed, "{what}");
        assert!(event.json().to_string().contains(MARK), "the event itself has the mark");
        assert_no_secret("a reason", &event.data()["reason"].to_string());
    }
    let expired = json!({ "userId": USER, "expiresAt": "2020-01-01T00:00:00Z" });
    let mut bodies = invalid_bodies();
    bodies.push(expired.to_string().into_bytes());
    let hostile = AMQPValue::LongString(USER.into());
    let headers = crate::support::rabbitmq::field_table(&[
        ("traceparent", hostile.clone()),
        ("tracestate", hostile.clone()),
        ("x-handoff-attempt", hostile.clone()),
        ("x-handoff-detail", hostile),
    ]);
    for body in &bodies {
        let properties = BasicProperties::default().with_headers(headers.clone());
        env.rabbitmq.publish(body, properties.with_correlation_id(USER.into())).await;
        let event = env.rabbitmq.next_event().await;
        assert_eq!(event.routing_key, "handoff.failed");
        assert_no_secret("a reason", &event.data()["reason"].to_string());
    }
    for _ in 0..failed.len() + bodies.len() - 1 {
        assert_dead_letter_leaks_nothing(&env.rabbitmq.take_dead_letter().await);
    }
    for RedisEntry { key, value, .. } in env.all_redis_entries().await {
        assert_no_secret("a key", &key);
        let is_shown = !is_sealed && !key.ends_with("}:s");
        assert_eq!(String::from_utf8_lossy(&value).contains(MARK), is_shown, "{key}");
    }

    // Redis refuses its user; then the platform issues an invalid token, and refuses the key.
    acl("DELUSER").query_async::<()>(&mut redis).await.unwrap();
    let broken = json!({ "authorization": format!("t0ken-{MARK}\n") });
    env.platform.set_script(move |_| Answer::json(&broken));
    env.rabbitmq.publish_request("r-last", json!({ "userId": USER })).await;
    assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.failed");
    worker.wait_for_log(log_text::REDIS_UNAVAILABLE).await;
    let calls = env.platform.calls().len();
    env.platform.set_script(|call| echo(403, call));
    env.rabbitmq.publish_request("r-refused", json!({ "userId": USER })).await;
    env.platform.wait_for_calls(calls + 1).await;

    let printed = assert_worker_leaks_nothing(worker).await;
    let spans = collector.spans();
    assert!(spans.iter().filter(|span| span.failed).count() > 20, "{spans:?}");
    assert_no_secret("a span", &format!("{spans:?}"));
    for outcome in ["ready", "reused", "failed", "retried"] {
        assert!(printed.contains(&format!(r#""outcome":"{outcome}""#)), "{outcome}: {printed}");
    }
    assert!(printed.contains(log_text::CALL_RETRIED), "{printed}");
    for line in printed.lines() {
        let line: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
        assert!(line["target"].as_str().unwrap().starts_with("handoff"), "{line}");
    }
}

#[tokio::test]
async fn no_output_contains_a_secret() {
    serve_and_fail_in_every_way(false).await;
}

#[tokio::test]
async fn no_output_contains_a_secret_while_values_are_sealed() {
    serve_and_fail_in_every_way(true).await;
}

#[tokio::test]
async fn no_password_is_logged_for_refusing_or_missing_servers() {
    let amqp = required_env("HANDOFF_AMQP_URL");
    let redis = required_env("HANDOFF_REDIS_URL");
    let wrong = |url: &str, user: &str| {
        let mut url = url::Url::parse(url).unwrap();
        url.set_username(user).unwrap();
        url.set_password(Some(PASSWORD)).unwrap();
        url.to_string()
    };
    let nowhere = |scheme: &str| format!("{scheme}://{USER}:{PASSWORD}@127.0.0.1:1/0");
    let urls = [
        (wrong(&amqp, "guest"), wrong(&redis, "")),
        (wrong(&amqp, USER), wrong(&redis, USER)),
        (nowhere("amqp"), nowhere("redis")),
        (
            wrong(&amqp.replace("amqp:", "amqps:"), USER),
            wrong(&redis.replace("redis:", "rediss:"), USER),
        ),
    ];
    let refused = async |(amqp, redis): (String, String)| {
        let mut env = verbose_env(true).await;
        env.set("AMQP_URL", &amqp).set("REDIS_URL", &redis);
        let worker = Worker::start(&env.settings);
        worker.wait_for_log(log_text::NOT_CONSUMING).await;
        let why = worker.wait_for_log(log_text::REDIS_UNAVAILABLE).await["error"].clone();
        let known = redis.starts_with("redis:") && !redis.contains(":1/");
        assert_eq!(why == log_text::REDIS_CREDENTIALS_REFUSED, known, "{why}");
        assert_worker_leaks_nothing(worker).await;
    };
    futures_util::future::join_all(urls.map(refused)).await;
}

#[tokio::test]
async fn rust_log_does_not_change_the_log_level() {
    let mut env = TestEnv::start().await;
    env.set("LOG", "info");
    env.settings.insert("RUST_LOG".into(), "trace".into());
    let worker = env.start_worker().await;
    env.platform.set_script(|call| if call.nth == 0 { Answer::status(500) } else { success(call) });
    env.publish_request("r-1", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.ready");
    worker.wait_for_log(log_text::REQUEST_FINISHED).await;
    for line in worker.stop_and_output().await.lines() {
        assert!(line.contains(r#""level":"INFO""#), "{line}");
    }
}

#[tokio::test]
async fn panic_is_logged_with_its_place_alone() {
    const CHILD: &str = "HANDOFF_TEST_PANICS";
    if std::env::var_os(CHILD).is_some() {
        logs::init(&LogSettings { directives: "trace".into(), format: None });
        let secret = std::hint::black_box(Some(PASSWORD));
        assert_eq!(secret, None);
    }
    // Runs this very test in another process, because a panic hook is global to a process.
    let test = ["--exact", "--nocapture", "secrets::panic_is_logged_with_its_place_alone"];
    let mut child = tokio::process::Command::new(std::env::current_exe().unwrap());
    child.args(test).env(CHILD, "1").env("RUST_BACKTRACE", "1");
    let output = within_timeout("its exit", child.output()).await.unwrap();
    let output = [output.stdout, output.stderr].concat();
    let output = String::from_utf8_lossy(&output);
    assert!(output.contains("panicked") && output.contains("secrets.rs"), "{output}");
    assert_no_secret("a panic", &output);
}

#[tokio::test]
async fn debug_output_of_secret_types_contains_no_secret() {
    let url = |scheme: &str| format!("{scheme}://{USER}:{PASSWORD}@127.0.0.1:1/0");
    let flags = [
        "run".to_owned(),
        "--idv-url=http://127.0.0.1:1".to_owned(),
        format!("--idv-api-key={API_KEY}"),
        format!("--amqp-url={}", url("amqp")),
        format!("--redis-url={}", url("redis")),
        format!("--cache-key={CACHE_KEY}"),
    ];
    let command = RunFlags::augment_args(clap::Command::new("run"));
    let matches = command.try_get_matches_from(flags).unwrap();
    let settings = Settings::parse(&RunFlags::from_arg_matches(&matches).unwrap()).unwrap();
    let shown = format!("{settings:#?} {settings:?}");
    assert!(shown.contains("127.0.0.1") && shown.contains("verification"), "{shown}");
    assert_no_secret("the settings", &shown);

    let cache = Cache::new(&settings.cache, Metrics::new());
    let client = Client::new(&settings.platform, None, 1, Metrics::new()).unwrap();
    let expires_at = std::time::SystemTime::now() + Duration::from_secs(1);
    let token = Token { value: format!("t0ken-{MARK}").into(), expires_at };
    let access = Access::Token(token.value.clone());
    let session = Session { access, id: "s".into(), made_at: expires_at, expires_at };
    let body =
        json!({ "userId": USER, "metadata": { USER: USER }, "locale": USER, "workflowId": "w" });
    let request = decode_request(body.to_string().as_bytes(), 65_536, None);
    assert!(request.request.is_ok());
    let invalid = json!({ "userId": USER, "renew": USER });
    let invalid = decode_request(invalid.to_string().as_bytes(), 65_536, None);
    assert!(invalid.request.is_err());
    let keys = cache.keys(USER, "w");
    let shown =
        format!("{cache:?} {client:?} {token:?} {session:?} {request:?} {invalid:?} {keys:?}");
    assert_no_secret("the debug output", &shown);
}
