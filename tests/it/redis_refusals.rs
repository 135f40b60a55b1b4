//! Redis answers and refuses: requests are served without it, and one warning says why and what to do.

use std::fs;

use deadpool_redis::redis::aio::MultiplexedConnection;

use crate::{
    doctor::doctor,
    support::{Node, TestEnv, Worker, log_text, redis, required_env, wait_until},
};

/// Serves requests without Redis, and checks the one warning that names the cause and the remedy.
async fn assert_refused(
    env: &mut TestEnv,
    worker: &Worker,
    message: &str,
    code: &str,
    remedy: &str,
) {
    for number in 0..5 {
        env.publish_request(&format!("{code}-{number}"), &format!("user-{number}")).await;
        assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.ready", "{code}");
    }
    let warning = worker.wait_for_log(message).await;
    let error = warning["error"].as_str().unwrap();
    assert!(error.starts_with(&format!("{code}: ")), "{code}: {warning}");
    assert!(warning["remedy"].as_str().unwrap().contains(remedy), "{code}: {warning}");
    assert_eq!(warning["level"], "WARN");
    assert_eq!(worker.log_lines(message).len(), 1, "{code}");
    let series = format!("handoff_cache_refusals_total{{cause=\"{}\"}}", code.to_ascii_lowercase());
    assert!(worker.metric(&series).await >= 1.0, "{code}");
    assert!(worker.metric("handoff_cache_errors_total").await >= 5.0, "{code}");
    let (status, page) = worker.get("/readyz").await;
    assert!(status == 200 && page.contains("degraded"), "{code}: {status} {page}");
    let report = doctor(env, &[]).await;
    let names_it = |check: &serde_json::Value| {
        let says =
            |field: &str, text: &str| check[field].as_str().unwrap_or_default().contains(text);
        check["area"] == "redis"
            && check["verdict"] == "finding"
            && says("what", &format!("{code}: "))
            && !says("remedy", "as the worker's user")
    };
    assert!(report.0.iter().any(names_it), "{code}: {:#?}", report.0);
}

/// Starts a worker, has Redis refuse with `code`, and has it accept again.
async fn refuse_and_accept(code: &str, remedy: &str, refuse: &str, accept: &str) {
    let node = Node::redis().await;
    let mut env = TestEnv::builder().redis(&node).start().await;
    let worker = env.start_worker().await;
    let mut admin = redis::connect(&node.url).await;
    redis::run(&mut admin, refuse).await;
    assert_refused(&mut env, &worker, log_text::REDIS_REFUSES, code, remedy).await;
    redis::run(&mut admin, accept).await;
    env.publish_request("accepted", "user-0").await;
    env.rabbitmq.next_event().await;
    worker.wait_for_log(log_text::REDIS_ACCEPTS).await;
    let (_, page) = worker.get("/readyz").await;
    assert!(!page.contains("degraded"), "{code}: {page}");
}

/// The part of the version before the first dot.
async fn major_version(admin: &mut MultiplexedConnection) -> u32 {
    let info: String = redis::cmd("INFO").arg("server").query_async(admin).await.unwrap();
    let version = info.lines().find_map(|line| line.strip_prefix("redis_version:")).unwrap();
    version.split('.').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn full_memory_and_missing_permissions_and_replicas_are_reported_once_by_name() {
    let shared = &required_env("HANDOFF_REDIS_URL");
    let old = major_version(&mut redis::connect(shared).await).await < 7;
    let no_replicas = async {
        // Redis 6 does not count its replicas before the writes of a script.
        if !old {
            let set = |number| format!("CONFIG SET min-replicas-to-write {number}");
            refuse_and_accept("NOREPLICAS", "min-replicas-to-write", &set(1), &set(0)).await;
        }
    };
    let oom = ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0");
    let no_perm = ("ACL SETUSER default -set", "ACL SETUSER default +set");
    tokio::join!(
        no_replicas,
        refuse_and_accept("OOM", "more memory", oom.0, oom.1),
        refuse_and_accept("NOPERM", "permissions", no_perm.0, no_perm.1),
    );
}

#[tokio::test]
async fn redis_that_cannot_save_is_reported_once_by_name() {
    let node = Node::redis().await;
    if node.is_in_docker() {
        return;
    }
    let mut env = TestEnv::builder().redis(&node).start().await;
    let proxy = env.proxy("REDIS_URL").await;
    let worker = env.start_worker().await;
    let mut admin = redis::connect(&node.url).await;
    // A folder in the place of the snapshot makes every save fail.
    fs::create_dir(node.path("dump.rdb")).unwrap();
    let mut save = redis::cmd("CONFIG");
    save.arg(&["SET", "save", "3600 1000000"]).query_async::<()>(&mut admin).await.unwrap();
    redis::run(&mut admin, "BGSAVE").await;
    wait_for_info(&admin, "persistence", "rdb_last_bgsave_status:err").await;
    assert_refused(&mut env, &worker, log_text::REDIS_REFUSES, "MISCONF", "saving").await;
    doctor(&env, &[]).await.assert_finding("redis", "saving", &["rdb_last_bgsave_status"]);
    // Redis refuses the PING, too, which is an answer: the connection stays.
    proxy.take_sent();
    wait_until("the connection is checked", async || {
        String::from_utf8_lossy(&proxy.take_sent()).contains("PING")
    })
    .await;
    env.publish_request("checked", "user-0").await;
    env.rabbitmq.next_event().await;
    assert_eq!(worker.metric("handoff_cache_reconnects_total").await, 0.0);
    redis::run(&mut admin, "CONFIG SET stop-writes-on-bgsave-error no").await;
    env.publish_request("accepted", "user-0").await;
    env.rabbitmq.next_event().await;
    worker.wait_for_log(log_text::REDIS_ACCEPTS).await;
}

#[tokio::test]
async fn replica_without_its_primary_is_reported_once_by_name() {
    let node = Node::redis().await;
    let mut env = TestEnv::builder().redis(&node).start().await;
    let worker = env.start_worker().await;
    let mut admin = redis::connect(&node.url).await;
    redis::run(&mut admin, "CONFIG SET replica-serve-stale-data no").await;
    redis::run(&mut admin, "REPLICAOF 127.0.0.1 1").await;
    let unavailable = log_text::REDIS_UNAVAILABLE;
    assert_refused(&mut env, &worker, unavailable, "MASTERDOWN", "the primary").await;
}

/// Waits until `INFO` says this.
async fn wait_for_info(admin: &MultiplexedConnection, section: &str, line: &str) {
    wait_until(line, async || {
        let mut admin = admin.clone();
        let info: String = redis::cmd("INFO").arg(section).query_async(&mut admin).await.unwrap();
        info.contains(line)
    })
    .await;
}

#[tokio::test]
async fn node_of_a_redis_cluster_is_reported_once_by_name() {
    let (node, other) =
        tokio::join!(Node::redis_with(&redis::CLUSTER), Node::redis_with(&redis::CLUSTER));
    let mut env = TestEnv::builder().redis(&node).start().await;
    let worker = env.start_worker().await;
    // No slot has a node yet.
    let remedy = "HANDOFF_REDIS_MODE=cluster";
    assert_refused(&mut env, &worker, log_text::REDIS_UNAVAILABLE, "CLUSTERDOWN", remedy).await;
    worker.stop().await;

    // All slots are on the other node.
    let mut admin = redis::connect(&node.url).await;
    redis::add_all_slots(&mut redis::connect(&other.url).await).await;
    let meet = format!("CLUSTER MEET 127.0.0.1 {}", other.address().port());
    redis::run(&mut admin, &meet).await;
    redis::wait_for_cluster(&admin).await;
    let worker = env.start_worker().await;
    assert_refused(&mut env, &worker, log_text::REDIS_REFUSES, "MOVED", remedy).await;
    for line in worker.stop_and_output().await.lines() {
        assert!(!line.contains(&other.address().port().to_string()), "{line}");
    }
}

#[tokio::test]
async fn redis_that_loads_its_data_is_reported_once_by_name() {
    // While it loads, Redis answers each 2 MiB: here after each key, twice a second.
    let options = ["--key-load-delay", "500000", "--rdbcompression", "no"];
    let node = Node::redis_with(&options).await;
    if node.is_in_docker() {
        return;
    }
    let mut env = TestEnv::builder().redis(&node).start().await;
    let worker = env.start_worker().await;
    let mut admin = redis::connect(&node.url).await;
    for number in 0..8 {
        redis::set(&mut admin, &format!("key-{number}"), &vec![b'v'; 2_200_000]).await;
    }
    redis::run(&mut admin, "BGSAVE").await;
    wait_for_info(&admin, "persistence", "rdb_changes_since_last_save:0").await;
    node.kill().await;
    env.publish_request("r-0", "ann").await;
    env.rabbitmq.next_event().await;
    let serve = async {
        worker.wait_for_log(log_text::REDIS_UNAVAILABLE).await;
        wait_until("a refusal is counted", async || {
            worker.metric("handoff_cache_refusals_total{cause=\"loading\"}").await > 0.0
        })
        .await;
        env.publish_request("r-1", "ann").await;
        assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.ready");
    };
    tokio::join!(node.start(), serve);
    worker.wait_for_log(log_text::REDIS_RECONNECTED).await;
    let warnings = worker.log_lines(log_text::REDIS_UNAVAILABLE);
    let loading =
        |warning: &&serde_json::Value| warning["error"].as_str().unwrap().starts_with("LOADING: ");
    assert_eq!(warnings.iter().filter(loading).count(), 1, "{warnings:?}");
}

#[tokio::test]
async fn redis_without_a_connection_left_is_named_although_it_closes_at_once() {
    let node = Node::redis().await;
    let mut env = TestEnv::builder().redis(&node).start().await;
    env.set("REDIS_PATIENCE", "0s");
    let worker = env.start_worker().await;
    let mut admin = redis::connect(&node.url).await;
    redis::run(&mut admin, "CONFIG SET maxclients 1").await;
    redis::run(&mut admin, "CLIENT KILL TYPE normal SKIPME yes").await;
    env.publish_request("r-1", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.ready");
    let says_so = |line: &serde_json::Value| line["error"].to_string().contains("maxclients");
    let warning = worker.wait_for_log_with(log_text::REDIS_UNAVAILABLE, says_so).await;
    assert!(warning["remedy"].as_str().unwrap().contains("CLIENT LIST"), "{warning}");
    assert!(worker.metric("handoff_cache_refusals_total{cause=\"maxclients\"}").await >= 1.0);
    let checks = doctor(&env, &[]).await.0;
    assert!(checks.iter().any(|check| check.to_string().contains("maxclients")), "{checks:#?}");
    redis::run(&mut admin, "CONFIG SET maxclients 1000").await;
    worker.wait_for_log(log_text::REDIS_RECONNECTED).await;
    env.publish_request("r-2", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["reused"], true);
}
