//! `handoff doctor`: each thing that can be wrong, made wrong.

use std::time::{Duration, SystemTime};

use lapin::{
    ExchangeKind,
    options::{ExchangeDeclareOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use serde_json::{Value, json};

use crate::support::{
    Answer, Authority, Flow, Message, Node, Proxy, TempFile, TestEnv, TlsProxy, log_text,
    platform::{API_KEY, success},
    rabbitmq::{field_table, long_string},
    redis,
    tls::tls_url,
    within_timeout,
    worker::command,
};

/// What it told.
struct Told(Vec<Value>);

impl Told {
    /// What was told about something, which must be there once.
    fn about(&self, area: &str, name: &str) -> &Value {
        let mut about = self.all(area, name);
        assert_eq!(about.len(), 1, "{area} {name}: {:#?}", self.0);
        about.remove(0)
    }

    fn all(&self, area: &str, name: &str) -> Vec<&Value> {
        self.0.iter().filter(|check| check["area"] == area && check["name"] == name).collect()
    }

    fn is(&self, area: &str, name: &str, verdict: &str) {
        assert_eq!(self.about(area, name)["verdict"], verdict, "{}", self.about(area, name));
    }

    /// The same, with these words in it, and a cost.
    fn finding(&self, area: &str, name: &str, words: &[&str]) {
        let check = self.about(area, name);
        assert_eq!(check["verdict"], "finding", "{check}");
        assert!(check["cost"].is_string(), "{check}");
        for word in words {
            assert!(check.to_string().contains(word), "{word} is not in {check}");
        }
    }

    fn findings(&self) -> Vec<String> {
        let findings = self.0.iter().filter(|check| check["verdict"] == "finding");
        findings
            .map(|check| format!("{} {}", check["area"], check["name"]).replace('"', ""))
            .collect()
    }
}

async fn doctor(env: &TestEnv, flags: &[&str]) -> Told {
    let arguments = [&["doctor", "--json"], flags].concat();
    let output =
        within_timeout("the end", command(&arguments, &env.settings).output()).await.unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    for secret in [API_KEY, "guest:guest", "must-not-leak"] {
        assert!(!stdout.contains(secret) && !stderr.contains(secret), "{stdout}{stderr}");
    }
    let told = Told(stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect());
    let expected = if told.findings().is_empty() { 0 } else { 1 };
    assert_eq!(output.status.code(), Some(expected), "{stdout}{stderr}");
    told
}

#[tokio::test]
async fn where_all_is_well_there_is_no_finding_and_no_call() {
    let env = TestEnv::start().await;
    // Before there was a worker: only said, nothing made.
    let told = doctor(&env, &[]).await;
    told.is("rabbitmq", "topology", "hint");
    assert!(told.findings().is_empty(), "{:#?}", told.0);
    let declared = env.rabbitmq.open_channel().await;
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
    let queue = env.rabbitmq.queue.as_str();
    assert!(declared.queue_declare(queue.into(), passive, FieldTable::default()).await.is_err());

    let worker = env.start_worker().await;
    // It subscribes once more then, and for a moment nobody would be found to take requests.
    worker.wait_for_log(log_text::WINDOW_GROWN).await;
    let told = doctor(&env, &[]).await;
    assert!(told.findings().is_empty(), "{:#?}", told.0);
    for name in ["version", "topology", "consumers", "dead letters", "publishing"] {
        told.is("rabbitmq", name, "ok");
    }
    for name in ["version", "role", "eviction", "memory", "latency", "commands", "clock"] {
        told.is("redis", name, "ok");
    }
    told.is("settings", "seal", "hint");
    assert!(env.platform.calls().is_empty());
    assert!(env.redis_entries().await.is_empty());

    // For people: the same, without colours where nobody looks.
    let output = command(&["doctor"], &env.settings).output().await.unwrap();
    let page = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    assert!(page.contains("\nfindings: 0, ") && !page.contains('\u{1b}'), "{page}");
    assert!(page.contains("\n                              $ export HANDOFF_CACHE_KEY"), "{page}");
}

#[tokio::test]
async fn what_does_not_fit_on_rabbitmq_is_found_and_left_alone() {
    let mut env = TestEnv::builder().without_event_queue().start().await;
    let (queue, dead) = (env.rabbitmq.queue.clone(), env.dead_queue());
    let channel = env.rabbitmq.open_channel().await;
    let durable = QueueDeclareOptions::durable();
    channel.queue_declare(queue.as_str().into(), durable, FieldTable::default()).await.unwrap();
    let arguments = field_table(&[
        ("x-queue-type", long_string("quorum")),
        ("x-overflow", long_string("drop-head")),
        ("x-delivery-limit", AMQPValue::LongInt(5)),
    ]);
    channel.queue_declare(dead.as_str().into(), durable, arguments).await.unwrap();
    let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
    let exchange = env.rabbitmq.event_exchange.clone();
    let exchange = exchange.as_str();
    channel
        .exchange_declare(exchange.into(), ExchangeKind::Fanout, options, FieldTable::default())
        .await
        .unwrap();
    let about = |told: &Told, name: &str, object: &str| {
        let all = told.all("rabbitmq", name);
        let mut about = all
            .into_iter()
            .filter(|check| check["what"].as_str().unwrap().contains(&format!("`{object}`")));
        about.next().cloned().unwrap_or_else(|| panic!("{object}: {:#?}", told.0))
    };

    for (declare, verdict) in [("true", "finding"), ("false", "hint")] {
        env.set("DECLARE_TOPOLOGY", declare);
        let told = doctor(&env, &[]).await;
        // A queue that is not replicated is wrong, whoever has declared it.
        let wrong_type = about(&told, "queue", &queue);
        assert_eq!(wrong_type["verdict"], "finding");
        let what = wrong_type["what"].as_str().unwrap();
        for words in ["x-queue-type is ", "x-overflow is unset, not reject-publish"] {
            assert!(what.contains(words), "{what}");
        }
        let remedy = wrong_type["commands"][1].as_str().unwrap();
        assert!(remedy.contains(&format!("delete_queue '{queue}'")), "{remedy}");
        let argument = about(&told, "queue", &dead);
        assert_eq!(argument["verdict"], verdict, "{argument}");
        let what = argument["what"].as_str().unwrap();
        for words in ["x-overflow is drop-head, not unset", "x-delivery-limit is 5, not unset"] {
            assert!(what.contains(words), "{what}");
        }
        let kind = about(&told, "exchange", exchange);
        assert_eq!(kind["verdict"], verdict, "{kind}");
        assert!(kind["what"].as_str().unwrap().contains("type is fanout, not topic"), "{kind}");
    }
    // Where a worker declares nothing, what is missing is a finding.
    let missing = about(&doctor(&env, &[]).await, "queue", &format!("{queue}.retry.1m"));
    assert_eq!(missing["verdict"], "finding");
    assert!(missing["what"].as_str().unwrap().contains("does not exist"), "{missing}");
}

#[tokio::test]
async fn requests_that_wait_for_nobody_and_dead_letters_are_told() {
    let env = TestEnv::start().await;
    env.declare_topology().await;
    doctor(&env, &[]).await.is("rabbitmq", "consumers", "hint");
    env.publish_requests(0..2).await;
    env.rabbitmq.wait_for_depth(2).await;
    let body = b"{}".to_vec();
    let letter = Message { routing_key: String::new(), properties: Default::default(), body };
    let dead = env.dead_queue();
    env.rabbitmq.publish_to_queue(&dead, &letter).await;
    crate::support::wait_until("it is there", async || env.rabbitmq.depth(&dead).await == 1).await;
    let told = doctor(&env, &[]).await;
    told.finding("rabbitmq", "consumers", &["requests that wait: 2", "handoff run"]);
    told.is("rabbitmq", "dead letters", "hint");
}

#[tokio::test]
async fn rights_and_alarms_of_rabbitmq_are_found() {
    let node = Node::rabbitmq().await;
    let mut env = TestEnv::builder().rabbitmq(&node).start().await;
    env.declare_topology().await;
    node.ctl(&["add_user", "poor", "secret"]).await;
    node.ctl(&["set_permissions", "poor", "^$", "^$", ".*"]).await;
    env.set("AMQP_URL", &node.url.replace("guest:guest", "poor:secret"));
    let told = doctor(&env, &[]).await;
    let queues = told.all("rabbitmq", "queue");
    assert_eq!(queues.len(), 6, "{:#?}", told.0);
    assert!(queues.iter().all(|check| check["verdict"] == "finding"));
    told.finding("rabbitmq", "publishing", &["amq.default", "list_permissions"]);

    env.set("AMQP_URL", &node.url);
    node.ctl(&["set_vm_memory_high_watermark", "0.00001"]).await;
    doctor(&env, &[]).await.finding("rabbitmq", "publishing", &["short of memory", "alarms"]);

    // Who it is, and where to, are told apart.
    for (url, word) in [
        (node.url.replace("guest:guest", "guest:must-not-leak"), "ACCESS_REFUSED"),
        (node.url.replace("/%2f", "/elsewhere"), "virtual host"),
    ] {
        env.set("AMQP_URL", &url);
        doctor(&env, &[]).await.finding("rabbitmq", "login", &[word]);
    }
}

#[tokio::test]
async fn what_is_wrong_with_redis_is_found() {
    let node = Node::redis().await;
    let mut env = TestEnv::builder().redis(&node).start().await;
    let mut admin = redis::connect(&node.url).await;
    let mut set = async |line: &str| redis::run(&mut admin, line).await;
    set("CONFIG SET maxmemory-policy allkeys-lru").await;
    let told = doctor(&env, &[]).await;
    told.finding("redis", "eviction", &["allkeys-lru", "maxmemory-policy noeviction"]);
    set("CONFIG SET maxmemory-policy volatile-ttl").await;
    doctor(&env, &[]).await.is("redis", "eviction", "hint");

    set("CONFIG SET maxmemory-policy noeviction maxmemory 1mb").await;
    let told = doctor(&env, &[]).await;
    told.is("redis", "eviction", "ok");
    told.finding("redis", "memory", &["maxmemory"]);
    told.finding("redis", "commands", &["OOM"]);
    set("CONFIG SET maxmemory 0").await;

    set("ACL SETUSER poor on >secret ~* +ping +script|load +evalsha +get").await;
    let url = node.url.clone();
    env.set("REDIS_URL", &url.replace("redis://", "redis://poor:secret@"));
    let told = doctor(&env, &[]).await;
    told.finding("redis", "commands", &["NOPERM", "ACL SETUSER"]);
    told.is("redis", "not seen", "hint");
    env.set("REDIS_URL", &url.replace("redis://", "redis://poor:must-not-leak@"));
    doctor(&env, &[]).await.finding("redis", "login", &["HANDOFF_REDIS_URL"]);

    env.set("REDIS_URL", &url);
    set("REPLICAOF 127.0.0.1 1").await;
    let told = doctor(&env, &[]).await;
    told.finding("redis", "role", &["replica"]);
    told.finding("redis", "commands", &["READONLY"]);
}

#[tokio::test]
async fn whatever_is_down_the_rest_is_looked_at() {
    let mut env = TestEnv::start().await;
    let _worker = env.start_worker().await;
    let names = ["AMQP_URL", "REDIS_URL", "IDV_URL"];
    let urls = names.map(|name| env.setting(name).to_owned());
    let nowhere = ["amqp://guest:guest@127.0.0.1:1", "redis://127.0.0.1:1", "http://127.0.0.1:1"];
    let areas = ["rabbitmq", "redis", "platform"];
    for n in 0..3 {
        env.set(names[n], nowhere[n]);
        let told = doctor(&env, &[]).await;
        assert_eq!(told.findings(), [format!("{} connection", areas[n])]);
        told.finding(
            areas[n],
            "connection",
            &["connection refused", &format!("HANDOFF_{}", names[n])],
        );
        env.set(names[n], &urls[n]);
    }
    // A server of another kind.
    env.set("AMQP_URL", &urls[1].replace("redis://", "amqp://"));
    doctor(&env, &[]).await.finding("rabbitmq", "version", &["AMQP 0-9-1"]);
    for (n, url) in nowhere.into_iter().enumerate() {
        env.set(names[n], url);
    }
    // Settings that are valid each for itself.
    env.set("IDV_RATE_LIMIT", "1/1h").set("IDV_TIMEOUT", "8m").set("RETRY_DELAYS", "1m,10s");
    let told = doctor(&env, &["--probe"]).await;
    assert_eq!(told.findings().len(), 4, "{:?}", told.findings());
    told.finding("settings", "rate", &["HANDOFF_IDV_RATE_LIMIT"]);
    told.is("settings", "grace", "hint");
    told.is("settings", "delays", "hint");
}

#[tokio::test]
async fn servers_that_say_nothing_do_not_hold_it_up() {
    let mut env = TestEnv::start().await;
    let mut proxies = Vec::new();
    for name in ["AMQP_URL", "REDIS_URL"] {
        let url = env.setting(name).to_owned();
        let proxy = Proxy::to(&url).await;
        proxy.set_replies(Flow::Held);
        env.set(name, &proxy.url(&url));
        proxies.push(proxy);
    }
    let told = doctor(&env, &[]).await;
    told.finding("rabbitmq", "version", &["says nothing"]);
    told.finding("rabbitmq", "login", &["did not answer in time"]);
    told.finding("redis", "login", &["no answer in time"]);
    told.is("platform", "connection", "ok");
}

#[tokio::test]
async fn a_key_file_that_everybody_can_read_is_told() {
    use std::{fs::Permissions, os::unix::fs::PermissionsExt};
    let mut env = TestEnv::start().await;
    let file = TempFile::new(API_KEY);
    env.settings.remove("HANDOFF_IDV_API_KEY");
    env.set("IDV_API_KEY_FILE", file.path());
    for (mode, verdict) in [(0o644, "hint"), (0o640, "ok")] {
        std::fs::set_permissions(file.path(), Permissions::from_mode(mode)).unwrap();
        doctor(&env, &[]).await.is("settings", "key file", verdict);
    }
}

#[tokio::test]
async fn a_request_that_may_be_kept_for_too_long_is_told() {
    let mut env = TestEnv::start().await;
    env.set("IDV_TIMEOUT", "8m");
    doctor(&env, &[]).await.finding(
        "rabbitmq",
        "consumer time-out",
        &["32 min", "consumer_timeout ="],
    );
}

#[tokio::test]
async fn the_key_is_tried_only_where_that_is_asked_for() {
    let env = TestEnv::start().await;
    let _worker = env.start_worker().await;
    let told = doctor(&env, &["--probe"]).await;
    told.is("platform", "key", "ok");
    told.is("platform", "clock", "ok");
    let calls = env.platform.calls();
    assert_eq!(calls.len(), 1);
    assert!(calls[0].is_token() && calls[0].header("authorization") == API_KEY);
    assert_eq!(calls[0].body, json!({ "ttl": 1 }));

    let hour_ago = httpdate::fmt_http_date(SystemTime::now() - Duration::from_secs(3_600));
    env.platform.set_script(move |_| Answer::status(401).header("date", hour_ago.clone()));
    let told = doctor(&env, &["--probe"]).await;
    told.finding("platform", "key", &["status 401", "Ephemeral Devices: Write"]);
    told.finding("platform", "clock", &["behind", "NTP"]);
    env.platform.set_script(success);
}

#[tokio::test]
async fn certificates_are_looked_at_wherever_there_is_tls() {
    let authority = Authority::new();
    let day = Duration::from_secs(24 * 60 * 60);
    let (short, long) = (
        authority.issue_valid_for(&["127.0.0.1"], 5 * day),
        authority.issue_valid_for(&["127.0.0.1"], 100 * day),
    );
    let mut env = TestEnv::start().await;
    let _worker = env.start_worker().await;
    env.settings.insert("SSL_CERT_FILE".into(), authority.certificate_file());
    env.settings.insert("SSL_CERT_DIR".into(), String::new());
    let servers = [("AMQP_URL", "rabbitmq"), ("REDIS_URL", "redis"), ("IDV_URL", "platform")];
    let urls = servers.map(|(name, _)| env.setting(name).to_owned());
    for (identity, days, verdict) in [(&short, "4 days", "finding"), (&long, "99 days", "ok")] {
        let mut fronts = Vec::new();
        for ((name, _), url) in servers.iter().zip(&urls) {
            let front = TlsProxy::to(url, identity).await;
            env.set(name, &tls_url(url, front.port()));
            fronts.push(front);
        }
        let told = doctor(&env, &["--probe"]).await;
        for (_, area) in servers {
            let check = told.about(area, "certificate");
            assert_eq!(check["verdict"], verdict, "{check}");
            assert!(check["what"].as_str().unwrap().contains(days), "{check}");
        }
        told.is("platform", "key", "ok");
        told.is("rabbitmq", "version", "ok");
        if verdict == "ok" {
            assert!(told.findings().is_empty(), "{:?}", told.findings());
            env.settings.retain(|name, _| !name.starts_with("SSL_"));
            let told = doctor(&env, &[]).await;
            for (_, area) in servers {
                told.finding(area, "connection", &["SSL_CERT_FILE"]);
            }
        }
    }
}
