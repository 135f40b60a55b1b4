//! `handoff doctor`: finds each fault that a test creates.

use std::time::{Duration, SystemTime};

use lapin::{
    ExchangeKind,
    options::{ExchangeDeclareOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use serde_json::{Value, json};

use crate::support::{
    Answer, Authority, Flow, Message, Node, TempFile, TestEnv, TlsProxy, log_text,
    platform::{API_KEY, success},
    rabbitmq::{field_table, long_string},
    redis,
    tls::tls_url,
    wait_until, within_timeout,
    worker::command,
};

/// The checks that `handoff doctor --json` printed.
pub struct Report(pub Vec<Value>);

impl Report {
    /// The only check of this area and name.
    pub fn check(&self, area: &str, name: &str) -> &Value {
        let mut checks = self.all(area, name);
        assert_eq!(checks.len(), 1, "{area} {name}: {:#?}", self.0);
        checks.remove(0)
    }

    pub fn all(&self, area: &str, name: &str) -> Vec<&Value> {
        self.0.iter().filter(|check| check["area"] == area && check["name"] == name).collect()
    }

    fn assert_verdict(&self, area: &str, name: &str, verdict: &str) {
        assert_eq!(self.check(area, name)["verdict"], verdict, "{}", self.check(area, name));
    }

    /// Asserts that the check is a finding with a cost and these words.
    pub fn assert_finding(&self, area: &str, name: &str, words: &[&str]) {
        let check = self.check(area, name);
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

pub async fn doctor(env: &TestEnv, flags: &[&str]) -> Report {
    let arguments = [&["doctor", "--json"], flags].concat();
    let output =
        within_timeout("its exit", command(&arguments, &env.settings).output()).await.unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    for secret in [API_KEY, "guest:guest", "must-not-leak"] {
        assert!(!stdout.contains(secret) && !stderr.contains(secret), "{stdout}{stderr}");
    }
    let report = Report(stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect());
    let expected = if report.findings().is_empty() { 0 } else { 1 };
    assert_eq!(output.status.code(), Some(expected), "{stdout}{stderr}");
    report
}

#[tokio::test]
async fn healthy_environment_has_no_finding_and_costs_no_call() {
    let env = TestEnv::start().await;
    // A missing topology is a hint before the first worker runs, and doctor declares nothing.
    let report = doctor(&env, &[]).await;
    report.assert_verdict("rabbitmq", "topology", "hint");
    assert!(report.findings().is_empty(), "{:#?}", report.0);
    let declared = env.rabbitmq.open_channel().await;
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
    let queue = env.rabbitmq.queue.as_str();
    assert!(declared.queue_declare(queue.into(), passive, FieldTable::default()).await.is_err());

    let worker = env.start_worker().await;
    env.wait_for_consumer_of_endings().await;
    // The worker subscribes again when it raises its prefetch: for a moment there is no consumer.
    worker.wait_for_log(log_text::WINDOW_GROWN).await;
    let report = doctor(&env, &[]).await;
    assert!(report.findings().is_empty(), "{:#?}", report.0);
    for name in ["version", "topology", "consumers", "dead letters", "publishing"] {
        report.assert_verdict("rabbitmq", name, "ok");
    }
    for name in ["version", "role", "eviction", "memory", "latency", "commands", "clock"] {
        report.assert_verdict("redis", name, "ok");
    }
    report.assert_verdict("settings", "seal", "hint");
    assert!(env.platform.calls().is_empty());
    assert!(env.redis_entries().await.is_empty());

    // The text output has no colours without a terminal.
    let output = command(&["doctor"], &env.settings).output().await.unwrap();
    let page = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    assert!(page.contains("\nfindings: 0, ") && !page.contains('\u{1b}'), "{page}");
    assert!(page.contains("\n                              $ export HANDOFF_CACHE_KEY"), "{page}");
}

#[tokio::test]
async fn mismatched_topology_is_reported_and_not_changed() {
    let mut env = TestEnv::builder().without_event_queue().start().await;
    let queue = env.rabbitmq.queue.clone();
    let dead = env.dead_queue();
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
    let about = |report: &Report, name: &str, object: &str| {
        let all = report.all("rabbitmq", name);
        let mut about = all
            .into_iter()
            .filter(|check| check["what"].as_str().unwrap().contains(&format!("`{object}`")));
        about.next().cloned().unwrap_or_else(|| panic!("{object}: {:#?}", report.0))
    };

    for (declare, verdict) in [("true", "finding"), ("false", "hint")] {
        env.set("DECLARE_TOPOLOGY", declare);
        let report = doctor(&env, &[]).await;
        // A queue that is not replicated is a finding even if an operator declared it.
        let wrong_type = about(&report, "queue", &queue);
        assert_eq!(wrong_type["verdict"], "finding");
        let what = wrong_type["what"].as_str().unwrap();
        for words in ["x-queue-type is ", "x-overflow is unset, not reject-publish"] {
            assert!(what.contains(words), "{what}");
        }
        let remedy = wrong_type["commands"][1].as_str().unwrap();
        assert!(remedy.contains(&format!("delete_queue '{queue}'")), "{remedy}");
        let argument = about(&report, "queue", &dead);
        assert_eq!(argument["verdict"], verdict, "{argument}");
        let what = argument["what"].as_str().unwrap();
        for words in ["x-overflow is drop-head, not unset", "x-delivery-limit is 5, not unset"] {
            assert!(what.contains(words), "{what}");
        }
        let kind = about(&report, "exchange", exchange);
        assert_eq!(kind["verdict"], verdict, "{kind}");
        assert!(kind["what"].as_str().unwrap().contains("type is fanout, not topic"), "{kind}");
    }
    // Where the worker declares nothing, a missing queue is a finding.
    let missing = about(&doctor(&env, &[]).await, "queue", &format!("{queue}.retry.1m"));
    assert_eq!(missing["verdict"], "finding");
    assert!(missing["what"].as_str().unwrap().contains("does not exist"), "{missing}");
}

#[tokio::test]
async fn requests_without_a_consumer_and_dead_letters_are_reported() {
    let env = TestEnv::start().await;
    env.declare_topology().await;
    doctor(&env, &[]).await.assert_verdict("rabbitmq", "consumers", "hint");
    env.publish_requests(0..2).await;
    env.rabbitmq.wait_for_depth(2).await;
    let body = b"{}".to_vec();
    let letter = Message { routing_key: String::new(), properties: Default::default(), body };
    env.rabbitmq.publish_to_queue(&env.dead_queue(), &letter).await;
    wait_until("the dead letter is queued", async || env.dead_letters().await == 1).await;
    let report = doctor(&env, &[]).await;
    report.assert_finding("rabbitmq", "consumers", &["requests that wait: 2", "handoff run"]);
    report.assert_verdict("rabbitmq", "dead letters", "hint");
}

#[tokio::test]
async fn missing_permissions_and_alarms_of_rabbitmq_are_reported() {
    let node = Node::rabbitmq().await;
    let mut env = TestEnv::builder().rabbitmq(&node).start().await;
    env.declare_topology().await;
    node.ctl(&["add_user", "poor", "secret"]).await;
    node.ctl(&["set_permissions", "poor", "^$", "^$", ".*"]).await;
    env.set("AMQP_URL", &node.url.replace("guest:guest", "poor:secret"));
    let report = doctor(&env, &[]).await;
    let queues = report.all("rabbitmq", "queue");
    assert_eq!(queues.len(), 7, "{:#?}", report.0);
    assert!(queues.iter().all(|check| check["verdict"] == "finding"));
    report.assert_finding("rabbitmq", "publishing", &["amq.default", "list_permissions"]);

    env.set("AMQP_URL", &node.url);
    node.ctl(&["set_vm_memory_high_watermark", "0.00001"]).await;
    doctor(&env, &[]).await.assert_finding(
        "rabbitmq",
        "publishing",
        &["short of memory", "alarms"],
    );

    // A refused user and a missing virtual host are distinguished.
    for (url, word) in [
        (node.url.replace("guest:guest", "guest:must-not-leak"), "ACCESS_REFUSED"),
        (node.url.replace("/%2f", "/elsewhere"), "virtual host"),
    ] {
        env.set("AMQP_URL", &url);
        doctor(&env, &[]).await.assert_finding("rabbitmq", "login", &[word]);
    }
}

#[tokio::test]
async fn faults_of_redis_are_reported() {
    let node = Node::redis().await;
    let mut env = TestEnv::builder().redis(&node).start().await;
    let mut admin = redis::connect(&node.url).await;
    let mut set = async |line: &str| redis::run(&mut admin, line).await;
    set("CONFIG SET maxmemory-policy allkeys-lru").await;
    let report = doctor(&env, &[]).await;
    report.assert_finding("redis", "eviction", &["allkeys-lru", "maxmemory-policy noeviction"]);
    set("CONFIG SET maxmemory-policy volatile-ttl").await;
    doctor(&env, &[]).await.assert_verdict("redis", "eviction", "hint");

    set("CONFIG SET maxmemory-policy noeviction").await;
    set("CONFIG SET maxmemory 600kb").await;
    let report = doctor(&env, &[]).await;
    report.assert_verdict("redis", "eviction", "ok");
    report.assert_finding("redis", "memory", &["maxmemory"]);
    report.assert_finding("redis", "commands", &["OOM"]);
    set("CONFIG SET maxmemory 0").await;

    set("ACL SETUSER poor on >secret ~* +ping +script|load +evalsha +get").await;
    let url = node.url.clone();
    env.set("REDIS_URL", &url.replace("redis://", "redis://poor:secret@"));
    let report = doctor(&env, &[]).await;
    report.assert_finding("redis", "commands", &["NOPERM", "ACL SETUSER"]);
    report.assert_verdict("redis", "not seen", "hint");
    env.set("REDIS_URL", &url.replace("redis://", "redis://poor:must-not-leak@"));
    doctor(&env, &[]).await.assert_finding("redis", "login", &["HANDOFF_REDIS_URL"]);

    env.set("REDIS_URL", &url);
    set("REPLICAOF 127.0.0.1 1").await;
    let report = doctor(&env, &[]).await;
    report.assert_finding("redis", "role", &["replica"]);
    report.assert_finding("redis", "commands", &["READONLY"]);
}

#[tokio::test]
async fn unreachable_server_does_not_stop_the_other_checks() {
    let mut env = TestEnv::start().await;
    let _worker = env.start_worker().await;
    let names = ["AMQP_URL", "REDIS_URL", "IDV_URL"];
    let urls = names.map(|name| env.setting(name).to_owned());
    let nowhere = ["amqp://guest:guest@127.0.0.1:1", "redis://127.0.0.1:1", "http://127.0.0.1:1"];
    let areas = ["rabbitmq", "redis", "platform"];
    for n in 0..3 {
        env.set(names[n], nowhere[n]);
        let report = doctor(&env, &[]).await;
        assert_eq!(report.findings(), [format!("{} connection", areas[n])]);
        report.assert_finding(
            areas[n],
            "connection",
            &["connection refused", &format!("HANDOFF_{}", names[n])],
        );
        env.set(names[n], &urls[n]);
    }
    // A server that speaks another protocol.
    env.set("AMQP_URL", &urls[1].replace("redis://", "amqp://"));
    doctor(&env, &[]).await.assert_finding("rabbitmq", "version", &["AMQP 0-9-1"]);
    for (n, url) in nowhere.into_iter().enumerate() {
        env.set(names[n], url);
    }
    // Settings that are valid separately and conflict together.
    env.set("IDV_RATE_LIMIT", "1/1h").set("IDV_TIMEOUT", "8m").set("RETRY_DELAYS", "1m,10s");
    let report = doctor(&env, &["--probe"]).await;
    assert_eq!(report.findings().len(), 4, "{:?}", report.findings());
    report.assert_finding("settings", "rate", &["HANDOFF_IDV_RATE_LIMIT"]);
    report.assert_verdict("settings", "grace", "hint");
    report.assert_verdict("settings", "delays", "hint");
}

#[tokio::test]
async fn silent_servers_are_reported_after_a_timeout() {
    let mut env = TestEnv::start().await;
    let mut proxies = Vec::new();
    for name in ["AMQP_URL", "REDIS_URL"] {
        let proxy = env.proxy(name).await;
        proxy.set_replies(Flow::Held);
        proxies.push(proxy);
    }
    let report = doctor(&env, &[]).await;
    report.assert_finding("rabbitmq", "version", &["says nothing"]);
    report.assert_finding("rabbitmq", "login", &["did not answer in time"]);
    report.assert_finding("redis", "login", &["no answer in time"]);
    report.assert_verdict("platform", "connection", "ok");
}

#[tokio::test]
async fn world_readable_key_file_is_reported() {
    use std::{fs::Permissions, os::unix::fs::PermissionsExt};
    let mut env = TestEnv::start().await;
    let file = TempFile::new(API_KEY);
    env.settings.remove("HANDOFF_IDV_API_KEY");
    env.set("IDV_API_KEY_FILE", file.path());
    for (mode, verdict) in [(0o644, "hint"), (0o640, "ok")] {
        std::fs::set_permissions(file.path(), Permissions::from_mode(mode)).unwrap();
        doctor(&env, &[]).await.assert_verdict("settings", "key file", verdict);
    }
}

#[tokio::test]
async fn request_that_may_be_held_too_long_is_reported() {
    let mut env = TestEnv::start().await;
    env.set("IDV_TIMEOUT", "8m");
    doctor(&env, &[]).await.assert_finding(
        "rabbitmq",
        "consumer time-out",
        &["32 min", "consumer_timeout ="],
    );
}

#[tokio::test]
async fn probe_checks_key_and_clock_with_one_token_call() {
    let env = TestEnv::start().await;
    let _worker = env.start_worker().await;
    let report = doctor(&env, &["--probe"]).await;
    report.assert_verdict("platform", "key", "ok");
    report.assert_verdict("platform", "clock", "ok");
    let calls = env.platform.calls();
    assert_eq!(calls.len(), 1);
    assert!(calls[0].is_token() && calls[0].header("authorization") == API_KEY);
    assert_eq!(calls[0].body, json!({ "ttl": 1 }));

    let hour_ago = httpdate::fmt_http_date(SystemTime::now() - Duration::from_secs(3_600));
    env.platform.set_script(move |_| Answer::status(401).header("date", hour_ago.clone()));
    let report = doctor(&env, &["--probe"]).await;
    report.assert_finding("platform", "key", &["status 401", "Ephemeral Devices: Write"]);
    report.assert_finding("platform", "clock", &["behind", "NTP"]);
    env.platform.set_script(success);
}

#[tokio::test]
async fn certificate_expiry_is_checked_on_every_tls_server() {
    let authority = Authority::new();
    let day = Duration::from_secs(24 * 60 * 60);
    let short = authority.issue_valid_for(&["127.0.0.1"], 5 * day);
    let long = authority.issue_valid_for(&["127.0.0.1"], 100 * day);
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
        let report = doctor(&env, &["--probe"]).await;
        for (_, area) in servers {
            let check = report.check(area, "certificate");
            assert_eq!(check["verdict"], verdict, "{check}");
            assert!(check["what"].as_str().unwrap().contains(days), "{check}");
        }
        report.assert_verdict("platform", "key", "ok");
        report.assert_verdict("rabbitmq", "version", "ok");
        if verdict == "ok" {
            assert!(report.findings().is_empty(), "{:?}", report.findings());
            env.settings.retain(|name, _| !name.starts_with("SSL_"));
            let report = doctor(&env, &[]).await;
            for (_, area) in servers {
                report.assert_finding(area, "connection", &["SSL_CERT_FILE"]);
            }
        }
    }
}
