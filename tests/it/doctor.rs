//! `handoff doctor`: each thing that can be wrong, made wrong.

use std::time::{Duration, SystemTime};

use lapin::{
    ExchangeKind,
    options::{ExchangeDeclareOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use serde_json::{Value, json};

use crate::support::{
    Answer, Authority, Bench, Flow, Message, Node, Platform, Proxy, TempFile, TlsFront,
    bench::{redis, redis_cmd},
    log_text,
    platform::{API_KEY, success},
    rabbit::{table, text},
    soon,
    tls::secured,
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

async fn doctor(bench: &Bench, flags: &[&str]) -> Told {
    let arguments = [&["doctor", "--json"], flags].concat();
    let output = soon("the end", command(&arguments, &bench.settings).output()).await.unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    for secret in [API_KEY, "guest:guest", "nobody-may-see"] {
        assert!(!stdout.contains(secret) && !stderr.contains(secret), "{stdout}{stderr}");
    }
    let told = Told(stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect());
    let expected = if told.findings().is_empty() { 0 } else { 1 };
    assert_eq!(output.status.code(), Some(expected), "{stdout}{stderr}");
    told
}

#[tokio::test]
async fn where_all_is_well_there_is_no_finding_and_no_call() {
    let bench = Bench::new().await;
    // Before there was a worker: only said, nothing made.
    let told = doctor(&bench, &[]).await;
    told.is("rabbitmq", "topology", "hint");
    assert!(told.findings().is_empty(), "{:#?}", told.0);
    let declared = bench.rabbit.channel().await;
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
    let queue = bench.rabbit.queue.as_str();
    assert!(declared.queue_declare(queue.into(), passive, FieldTable::default()).await.is_err());

    let worker = bench.worker().await;
    // It subscribes once more then, and for a moment nobody would be found to take requests.
    worker.logged(log_text::WINDOW_GROWN).await;
    let told = doctor(&bench, &[]).await;
    assert!(told.findings().is_empty(), "{:#?}", told.0);
    for name in ["version", "topology", "consumers", "dead letters", "publishing"] {
        told.is("rabbitmq", name, "ok");
    }
    for name in ["version", "role", "eviction", "memory", "latency", "commands", "clock"] {
        told.is("redis", name, "ok");
    }
    told.is("settings", "seal", "hint");
    assert!(bench.platform.calls().is_empty());
    assert!(bench.cached().await.is_empty());

    // For people: the same, without colours where nobody looks.
    let output = command(&["doctor"], &bench.settings).output().await.unwrap();
    let page = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    assert!(page.contains("\nfindings: 0, ") && !page.contains('\u{1b}'), "{page}");
    assert!(page.contains("\n                              $ export HANDOFF_CACHE_KEY"), "{page}");
}

#[tokio::test]
async fn what_does_not_fit_on_rabbitmq_is_found_and_left_alone() {
    let mut bench = Bench::deaf(Platform::healthy().await).await;
    let (queue, dead) = (bench.rabbit.queue.clone(), format!("{}.dead", bench.rabbit.queue));
    let channel = bench.rabbit.channel().await;
    let durable = QueueDeclareOptions::durable();
    channel.queue_declare(queue.as_str().into(), durable, FieldTable::default()).await.unwrap();
    let arguments = table(&[
        ("x-queue-type", text("quorum")),
        ("x-overflow", text("drop-head")),
        ("x-delivery-limit", AMQPValue::LongInt(5)),
    ]);
    channel.queue_declare(dead.as_str().into(), durable, arguments).await.unwrap();
    let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
    let exchange = bench.rabbit.event_exchange.clone();
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
        bench.set("DECLARE_TOPOLOGY", declare);
        let told = doctor(&bench, &[]).await;
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
    let missing = about(&doctor(&bench, &[]).await, "queue", &format!("{queue}.retry.1m"));
    assert_eq!(missing["verdict"], "finding");
    assert!(missing["what"].as_str().unwrap().contains("does not exist"), "{missing}");
}

#[tokio::test]
async fn requests_that_wait_for_nobody_and_dead_letters_are_told() {
    let bench = Bench::new().await;
    bench.worker().await.stop().await;
    doctor(&bench, &[]).await.is("rabbitmq", "consumers", "hint");
    bench.requests(0..2).await;
    bench.rabbit.holds(2).await;
    let body = b"{}".to_vec();
    let letter = Message { routing_key: String::new(), properties: Default::default(), body };
    let dead = format!("{}.dead", bench.rabbit.queue);
    bench.rabbit.put(&dead, &letter).await;
    crate::support::until("it is there", async || bench.rabbit.depth(&dead).await == 1).await;
    let told = doctor(&bench, &[]).await;
    told.finding("rabbitmq", "consumers", &["2 wait", "handoff run"]);
    told.is("rabbitmq", "dead letters", "hint");
}

#[tokio::test]
async fn rights_and_alarms_of_rabbitmq_are_found() {
    let node = Node::rabbitmq().await;
    let mut bench = Bench::on_own_rabbitmq(Platform::healthy().await, &node).await;
    bench.worker().await.stop().await;
    node.ctl(&["add_user", "poor", "secret"]).await;
    node.ctl(&["set_permissions", "poor", "^$", "^$", ".*"]).await;
    bench.set("AMQP_URL", &node.url.replace("guest:guest", "poor:secret"));
    let told = doctor(&bench, &[]).await;
    let queues = told.all("rabbitmq", "queue");
    assert_eq!(queues.len(), 6, "{:#?}", told.0);
    assert!(queues.iter().all(|check| check["verdict"] == "finding"));
    told.finding("rabbitmq", "publishing", &["amq.default", "list_permissions"]);

    bench.set("AMQP_URL", &node.url);
    node.ctl(&["set_vm_memory_high_watermark", "0.00001"]).await;
    doctor(&bench, &[]).await.finding("rabbitmq", "publishing", &["short of memory", "alarms"]);

    // Who it is, and where to, are told apart.
    for (url, word) in [
        (node.url.replace("guest:guest", "guest:nobody-may-see"), "ACCESS_REFUSED"),
        (node.url.replace("/%2f", "/elsewhere"), "virtual host"),
    ] {
        bench.set("AMQP_URL", &url);
        doctor(&bench, &[]).await.finding("rabbitmq", "login", &[word]);
    }
}

#[tokio::test]
async fn what_is_wrong_with_redis_is_found() {
    let node = Node::redis().await;
    let mut bench = Bench::on_own_redis(Platform::healthy().await, &node).await;
    let mut admin = redis(&node.url).await;
    let mut set = async |line: &str| {
        let mut words = line.split(' ');
        let mut command = redis_cmd(words.next().unwrap());
        command.arg(words.collect::<Vec<_>>());
        command.query_async::<()>(&mut admin).await.unwrap();
    };
    set("CONFIG SET maxmemory-policy allkeys-lru").await;
    let told = doctor(&bench, &[]).await;
    told.finding("redis", "eviction", &["allkeys-lru", "maxmemory-policy noeviction"]);
    set("CONFIG SET maxmemory-policy volatile-ttl").await;
    doctor(&bench, &[]).await.is("redis", "eviction", "hint");

    set("CONFIG SET maxmemory-policy noeviction maxmemory 1mb").await;
    let told = doctor(&bench, &[]).await;
    told.is("redis", "eviction", "ok");
    told.finding("redis", "memory", &["maxmemory"]);
    told.finding("redis", "commands", &["OOM"]);
    set("CONFIG SET maxmemory 0").await;

    set("ACL SETUSER poor on >secret ~* +ping +script|load +evalsha +get").await;
    let url = node.url.clone();
    bench.set("REDIS_URL", &url.replace("redis://", "redis://poor:secret@"));
    let told = doctor(&bench, &[]).await;
    told.finding("redis", "commands", &["NOPERM", "ACL SETUSER"]);
    told.is("redis", "not seen", "hint");
    bench.set("REDIS_URL", &url.replace("redis://", "redis://poor:nobody-may-see@"));
    doctor(&bench, &[]).await.finding("redis", "login", &["HANDOFF_REDIS_URL"]);

    bench.set("REDIS_URL", &url);
    set("REPLICAOF 127.0.0.1 1").await;
    let told = doctor(&bench, &[]).await;
    told.finding("redis", "role", &["replica"]);
    told.finding("redis", "commands", &["READONLY"]);
}

#[tokio::test]
async fn whatever_is_down_the_rest_is_looked_at() {
    let mut bench = Bench::new().await;
    let _worker = bench.worker().await;
    let names = ["AMQP_URL", "REDIS_URL", "IDV_URL"];
    let urls = names.map(|name| bench.settings[&format!("HANDOFF_{name}")].clone());
    let nowhere = ["amqp://guest:guest@127.0.0.1:1", "redis://127.0.0.1:1", "http://127.0.0.1:1"];
    let areas = ["rabbitmq", "redis", "platform"];
    for n in 0..3 {
        bench.set(names[n], nowhere[n]);
        let told = doctor(&bench, &[]).await;
        assert_eq!(told.findings(), [format!("{} connection", areas[n])]);
        told.finding(
            areas[n],
            "connection",
            &["connection refused", &format!("HANDOFF_{}", names[n])],
        );
        bench.set(names[n], &urls[n]);
    }
    // A server of another kind.
    bench.set("AMQP_URL", &urls[1].replace("redis://", "amqp://"));
    doctor(&bench, &[]).await.finding("rabbitmq", "version", &["AMQP 0-9-1"]);
    for (n, url) in nowhere.into_iter().enumerate() {
        bench.set(names[n], url);
    }
    // Settings that are valid each for itself.
    bench.set("IDV_RATE_LIMIT", "1/1h").set("IDV_TIMEOUT", "8m").set("RETRY_DELAYS", "1m,10s");
    let told = doctor(&bench, &["--probe"]).await;
    assert_eq!(told.findings().len(), 4, "{:?}", told.findings());
    told.finding("settings", "rate", &["HANDOFF_IDV_RATE_LIMIT"]);
    told.is("settings", "grace", "hint");
    told.is("settings", "delays", "hint");
}

#[tokio::test]
async fn servers_that_say_nothing_do_not_hold_it_up() {
    let mut bench = Bench::new().await;
    let mut proxies = Vec::new();
    for name in ["AMQP_URL", "REDIS_URL"] {
        let url = bench.settings[&format!("HANDOFF_{name}")].clone();
        let proxy = Proxy::to(&url).await;
        proxy.replies(Flow::Waits);
        bench.set(name, &proxy.url(&url));
        proxies.push(proxy);
    }
    let told = doctor(&bench, &[]).await;
    told.finding("rabbitmq", "version", &["says nothing"]);
    told.finding("rabbitmq", "login", &["did not answer in time"]);
    told.finding("redis", "login", &["no answer in time"]);
    told.is("platform", "connection", "ok");
}

#[tokio::test]
async fn a_key_file_that_everybody_can_read_is_told() {
    use std::{fs::Permissions, os::unix::fs::PermissionsExt};
    let mut bench = Bench::new().await;
    let file = TempFile::new(API_KEY);
    bench.settings.remove("HANDOFF_IDV_API_KEY");
    bench.set("IDV_API_KEY_FILE", file.path());
    for (mode, verdict) in [(0o644, "hint"), (0o640, "ok")] {
        std::fs::set_permissions(file.path(), Permissions::from_mode(mode)).unwrap();
        doctor(&bench, &[]).await.is("settings", "key file", verdict);
    }
}

#[tokio::test]
async fn a_request_that_may_be_kept_for_too_long_is_told() {
    let mut bench = Bench::new().await;
    bench.set("IDV_TIMEOUT", "8m");
    doctor(&bench, &[]).await.finding(
        "rabbitmq",
        "consumer time-out",
        &["32 min", "consumer_timeout ="],
    );
}

#[tokio::test]
async fn the_key_is_tried_only_where_that_is_asked_for() {
    let bench = Bench::new().await;
    let _worker = bench.worker().await;
    let told = doctor(&bench, &["--probe"]).await;
    told.is("platform", "key", "ok");
    told.is("platform", "clock", "ok");
    let calls = bench.platform.calls();
    assert_eq!(calls.len(), 1);
    assert!(calls[0].is_token() && calls[0].header("authorization") == API_KEY);
    assert_eq!(calls[0].body, json!({ "ttl": 1 }));

    let hour_ago = httpdate::fmt_http_date(SystemTime::now() - Duration::from_secs(3_600));
    bench.platform.set_script(move |_| Answer::status(401).header("date", hour_ago.clone()));
    let told = doctor(&bench, &["--probe"]).await;
    told.finding("platform", "key", &["status 401", "Ephemeral Devices: Write"]);
    told.finding("platform", "clock", &["behind", "NTP"]);
    bench.platform.set_script(success);
}

#[tokio::test]
async fn certificates_are_looked_at_wherever_there_is_tls() {
    let authority = Authority::new();
    let day = Duration::from_secs(24 * 60 * 60);
    let (short, long) = (
        authority.issue_for(&["127.0.0.1"], 5 * day),
        authority.issue_for(&["127.0.0.1"], 100 * day),
    );
    let mut bench = Bench::new().await;
    let _worker = bench.worker().await;
    bench.settings.insert("SSL_CERT_FILE".into(), authority.file());
    bench.settings.insert("SSL_CERT_DIR".into(), String::new());
    let servers = [("AMQP_URL", "rabbitmq"), ("REDIS_URL", "redis"), ("IDV_URL", "platform")];
    let urls = servers.map(|(name, _)| bench.settings[&format!("HANDOFF_{name}")].clone());
    for (identity, days, verdict) in [(&short, "4 days", "finding"), (&long, "99 days", "ok")] {
        let mut fronts = Vec::new();
        for ((name, _), url) in servers.iter().zip(&urls) {
            let front = TlsFront::of(url, identity).await;
            bench.set(name, &secured(url, front.port()));
            fronts.push(front);
        }
        let told = doctor(&bench, &["--probe"]).await;
        for (_, area) in servers {
            let check = told.about(area, "certificate");
            assert_eq!(check["verdict"], verdict, "{check}");
            assert!(check["what"].as_str().unwrap().contains(days), "{check}");
        }
        told.is("platform", "key", "ok");
        told.is("rabbitmq", "version", "ok");
        if verdict == "ok" {
            assert!(told.findings().is_empty(), "{:?}", told.findings());
            bench.settings.retain(|name, _| !name.starts_with("SSL_"));
            let told = doctor(&bench, &[]).await;
            for (_, area) in servers {
                told.finding(area, "connection", &["SSL_CERT_FILE"]);
            }
        }
    }
}
