//! A Redis Cluster: links are reused and single-flight works, whatever happens to its nodes.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::{
    endings::{assert_replaced, end, sessions},
    load::{Load, second_sessions},
    redis_servers::{Servers, assert_check, doctor, tls_options},
    support::{
        Authority, Distance, Node, TempFile, TestEnv,
        distance::{ROUND_TRIP, expect_shared_sessions},
        log_text, wait_until,
    },
};

const PRIMARIES: [&str; 3] = ["1", "2", "3"];
const NODES: [&str; 6] = ["1", "2", "3", "4", "5", "6"];
/// The permissions that a cluster needs besides.
const PERMISSIONS: &str = "+cluster|slots +asking";
const NODE_REPLACED: &str = "Redis Cluster node replaced: using its successor";

/// An environment whose workers use this cluster.
async fn env(cluster: &Servers) -> TestEnv {
    let mut env = TestEnv::start().await;
    env.set("REDIS_MODE", "cluster").set("REDIS_URL", &cluster.urls);
    env
}

#[tokio::test]
async fn links_of_all_slots_are_stored_and_reused_and_the_rate_limit_is_shared() {
    let cluster = Servers::cluster(&[]).await;
    let mut env = env(&cluster).await;
    env.set("IDV_RATE_LIMIT", "1000/1s");
    let workers = [env.start_worker().await, env.start_worker().await];
    // Requests for one person come in pairs: one session for each.
    env.publish_requests(0..100).await;
    env.request_again(0..100).await;
    let events = env.rabbitmq.next_events(200).await;
    let mut sessions = BTreeMap::<String, Vec<String>>::new();
    for event in events {
        let data = event.data();
        let (user, session) = (data["userId"].to_string(), data["sessionId"].to_string());
        sessions.entry(user).or_default().push(session);
    }
    assert!(sessions.values().all(|sessions| sessions[0] == sessions[1]), "{sessions:?}");
    assert_eq!(env.platform.session_calls().len(), 100);
    env.request_again(0..100).await;
    env.expect_all_reused(100).await;
    // One link, one index and so on for each person, spread over the primaries.
    for primary in PRIMARIES {
        let keys: Vec<String> = cluster.ask(primary, &format!("KEYS {}:*", env.name)).await;
        assert!(keys.len() > 10, "{primary}: {}", keys.len());
    }
    for worker in workers {
        assert_eq!(worker.log_lines(log_text::REDIS_UNAVAILABLE).len(), 0);
        worker.stop().await;
    }
}

#[tokio::test]
async fn killed_primary_costs_no_second_session_and_its_replica_serves_within_a_second() {
    let cluster = Servers::cluster(&["--cluster-node-timeout", "1000"]).await;
    let mut env = env(&cluster).await;
    env.set("REDIS_PATIENCE", "10s");
    let workers = [env.start_worker().await, env.start_worker().await];
    let load = Load::start(&env);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let killed = Instant::now();
    cluster.run("kill", "1").await;
    cluster.wait_for_primary("4").await;
    let promoted = killed.elapsed();
    workers[0].wait_for_log(NODE_REPLACED).await;
    let served = killed.elapsed() - promoted;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let people = load.stop().await;
    let second = second_sessions(&mut env, people).await;
    println!(
        "promoted after {promoted:?}, served {served:?} later: {people} people, {second} second sessions"
    );
    assert_eq!(second, 0);
    assert!(served < Duration::from_secs(2), "{served:?}");
}

#[tokio::test]
async fn ended_sessions_are_not_handed_out_again_although_a_primary_fails() {
    let cluster = Servers::cluster(&["--cluster-node-timeout", "1000"]).await;
    let mut env = env(&cluster).await;
    env.set("REDIS_PATIENCE", "10s");
    let workers = [env.start_worker().await, env.start_worker().await];
    env.wait_for_consumer_of_endings().await;
    let first = sessions(&mut env, 0..60, "first").await;
    assert_eq!(end(&env, &workers.each_ref(), &first).await, 60);
    let second = sessions(&mut env, 0..60, "second").await;
    assert_replaced(&first, &second);
    // Endings that arrive while a third of the keys has no node.
    cluster.run("kill", "1").await;
    // An ending that is repeated because its answer was lost finds nothing any more.
    let forgotten = end(&env, &workers.each_ref(), &second).await;
    println!("{forgotten} of 60 links found and forgotten");
    let third = sessions(&mut env, 0..60, "third").await;
    assert_replaced(&second, &third);
}

#[tokio::test]
async fn frozen_primary_delays_only_its_own_keys() {
    let cluster = Servers::cluster(&["--cluster-node-timeout", "60000"]).await;
    let mut env = env(&cluster).await;
    env.set("REDIS_PATIENCE", "20s");
    let _worker = env.start_worker().await;
    env.publish_requests(0..60).await;
    env.expect_all_ready(60).await;
    let keys: Vec<String> = cluster.ask("1", &format!("KEYS {}:*:link", env.name)).await;
    cluster.run("freeze", "1").await;
    let frozen = Instant::now();
    env.request_again(0..60).await;
    env.expect_all_reused(60 - keys.len()).await;
    let took = frozen.elapsed();
    println!("{} links on the frozen node; the others took {took:?}", keys.len());
    assert!(!keys.is_empty() && took < Duration::from_secs(5), "{took:?}");
    cluster.run("thaw", "1").await;
    env.expect_all_reused(keys.len()).await;
    assert_eq!(env.platform.session_calls().len(), 60);
}

#[tokio::test]
async fn long_outage_of_a_primary_makes_a_second_session_for_each_person_at_most() {
    let cluster = Servers::cluster(&["--cluster-node-timeout", "4000"]).await;
    let mut env = env(&cluster).await;
    env.set("REDIS_PATIENCE", "1s");
    let worker = env.start_worker().await;
    let load = Load::start(&env);
    tokio::time::sleep(Duration::from_secs(2)).await;
    cluster.run("kill", "2").await;
    cluster.wait_for_primary("5").await;
    worker.wait_for_log(NODE_REPLACED).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = env.platform.session_calls().len();
    let people = load.stop().await;
    let second = second_sessions(&mut env, people).await;
    println!("{people} people, {second} second sessions");
    assert!(second <= people, "{second}");
    env.request_again(0..people).await;
    env.expect_all_reused(people).await;
    assert!(env.platform.session_calls().len() >= before);
}

#[tokio::test]
async fn slots_that_move_and_nodes_that_come_and_go_cost_no_second_session() {
    let cluster = Servers::cluster(&[]).await;
    let mut env = env(&cluster).await;
    cluster.add_user(&NODES, &env, "s3cret", PERMISSIONS).await;
    env.set("REDIS_URL", &cluster.urls.replace("redis://", "redis://handoff:s3cret@"));
    let worker = env.start_worker().await;
    let load = Load::start(&env);
    cluster.add().await;
    cluster.add_user(&["7"], &env, "s3cret", PERMISSIONS).await;
    cluster.move_slots("1", "7", 1_500).await;
    cluster.move_slots("7", "2", 1_500).await;
    let gone = cluster.id("7").await;
    for server in NODES {
        cluster.ask::<()>(server, &format!("CLUSTER FORGET {gone}")).await;
    }
    cluster.run("kill", "7").await;
    let people = load.stop().await;
    let second = second_sessions(&mut env, people).await;
    let failed = worker.metric("handoff_cache_errors_total").await;
    println!("{people} people, {second} second sessions, {failed} failed operations");
    assert_eq!(second, 0);
    assert_eq!(worker.log_lines(log_text::REDIS_REFUSES).len(), 0);
    env.request_again(0..people).await;
    env.expect_all_reused(people).await;
}

#[tokio::test]
async fn slot_that_is_stuck_between_two_nodes_delays_its_people_once() {
    let cluster = Servers::cluster(&[]).await;
    let mut env = env(&cluster).await;
    let _worker = env.start_worker().await;
    env.publish_requests(0..1).await;
    env.expect_all_ready(1).await;
    let mut stuck = false;
    for (from, to) in [("1", "2"), ("2", "3"), ("3", "1")] {
        let [from_id, to_id] = [cluster.id(from).await, cluster.id(to).await];
        for key in cluster.ask::<Vec<String>>(from, &format!("KEYS {}:*", env.name)).await {
            let slot: u16 = cluster.ask(from, &format!("CLUSTER KEYSLOT {key}")).await;
            let importing = format!("CLUSTER SETSLOT {slot} IMPORTING {from_id}");
            cluster.ask::<()>(to, &importing).await;
            let migrating = format!("CLUSTER SETSLOT {slot} MIGRATING {to_id}");
            cluster.ask::<()>(from, &migrating).await;
            stuck = true;
        }
    }
    assert!(stuck);
    let mut took = Vec::new();
    for _ in 0..3 {
        let asked = Instant::now();
        env.request_again(0..1).await;
        env.rabbitmq.next_events(1).await;
        took.push(asked.elapsed());
    }
    println!("{took:?}");
    assert!(took[0] > Duration::from_secs(2), "{took:?}");
    assert!(took[1..].iter().all(|took| *took < Duration::from_millis(1_500)), "{took:?}");
}

#[tokio::test]
async fn planned_fail_over_costs_no_second_session() {
    let cluster = Servers::cluster(&[]).await;
    let mut env = env(&cluster).await;
    let _worker = env.start_worker().await;
    let load = Load::start(&env);
    for replica in ["4", "5", "6"] {
        cluster.ask::<()>(replica, "CLUSTER FAILOVER").await;
        cluster.wait_for_primary(replica).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let people = load.stop().await;
    assert_eq!(second_sessions(&mut env, people).await, 0);
}

#[tokio::test]
async fn new_link_waits_for_two_scripts_and_a_reused_one_for_one() {
    let cluster = Servers::cluster(&[]).await;
    let mut env = env(&cluster).await;
    let _worker = env.start_worker().await;
    for primary in PRIMARIES {
        cluster.ask::<()>(primary, "CONFIG RESETSTAT").await;
    }
    env.publish_requests(0..10).await;
    env.expect_all_ready(10).await;
    // Besides claiming and storing: saving the token, and the index entry, which run alongside other things.
    wait_until("all scripts", async || cluster.calls(&PRIMARIES, "evalsha").await == 50).await;
    env.request_again(0..10).await;
    env.expect_all_reused(10).await;
    // The claim, and the index entry again.
    wait_until("all scripts", async || cluster.calls(&PRIMARIES, "evalsha").await == 70).await;
    for command in ["script|load", "asking", "eval"] {
        assert_eq!(cluster.calls(&PRIMARIES, command).await, 0, "{command}");
    }
}

#[tokio::test]
async fn nodes_are_reached_over_tls_as_a_user_with_the_documented_permissions_only() {
    let authority = Authority::new();
    let (certificate, key) = authority.issue(&["127.0.0.1"]).pem();
    let mut options = tls_options(&certificate, &key, &authority);
    options.extend(["--tls-cluster", "yes", "--tls-replication", "yes"].map(str::to_owned));
    let cluster = Servers::cluster(&options.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let mut env = TestEnv::start().await;
    let mut urls = Vec::new();
    cluster.add_user(&NODES, &env, "s3cret", PERMISSIONS).await;
    for server in NODES {
        let port: (String, u16) = cluster.ask(server, "CONFIG GET tls-port").await;
        urls.push(format!("rediss://handoff:s3cret@127.0.0.1:{}", port.1));
    }
    env.set("REDIS_MODE", "cluster").set("REDIS_URL", &urls[..2].join(","));
    env.trust(&authority);
    let checks = doctor(&env).await;
    assert_check(&checks, "cluster", "ok", "3 primaries serve 16384 of 16384 slots");
    assert_check(&checks, "commands", "ok", "all commands");
    let worker = env.start_worker().await;
    let load = Load::start(&env);
    for replica in ["4", "5"] {
        cluster.ask::<()>(replica, "CLUSTER FAILOVER").await;
        cluster.wait_for_primary(replica).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let people = load.stop().await;
    assert_eq!(second_sessions(&mut env, people).await, 0);
    assert!(!worker.output().contains("s3cret"));
    assert_eq!(worker.log_lines(log_text::REDIS_UNAVAILABLE).len(), 0);
    // A password that is wrong is named, and so is a permission that is missing.
    env.set("REDIS_URL", &urls[0].replace("s3cret", "s3cret-not"));
    assert_check(&doctor(&env).await, "cluster", "finding", "user or password refused");
    env.set("REDIS_URL", &urls[0]);
    for server in NODES {
        // Redis 6 cannot take the subcommand alone.
        cluster.ask::<()>(server, "ACL SETUSER handoff -cluster").await;
    }
    assert_check(&doctor(&env).await, "cluster", "finding", "+cluster|slots");
}

#[tokio::test]
async fn doctor_names_a_mode_that_does_not_fit_and_slots_that_nobody_serves() {
    let node = Node::redis().await;
    let mut env = TestEnv::start().await;
    env.set("REDIS_MODE", "cluster").set("REDIS_URL", &node.url);
    assert_check(&doctor(&env).await, "cluster", "finding", "HANDOFF_REDIS_MODE=single");
    let worker = env.start_worker().await;
    let warning = worker.wait_for_log(log_text::REDIS_UNAVAILABLE).await;
    assert!(warning["error"].as_str().unwrap().contains("HANDOFF_REDIS_MODE=single"), "{warning}");

    let cluster = Servers::cluster(&[]).await;
    env.set("REDIS_URL", &cluster.urls);
    assert_check(&doctor(&env).await, "cluster", "ok", "3 primaries");
    cluster.run("kill", "5").await;
    let checks = doctor(&env).await;
    assert_check(&checks, "node", "hint", "connection refused");
    env.set("REDIS_MODE", "single").set("REDIS_URL", &cluster.url("1").await);
    assert_check(&doctor(&env).await, "role", "finding", "HANDOFF_REDIS_MODE=cluster");
    for server in PRIMARIES {
        cluster.ask::<()>(server, "CLUSTER DELSLOTS 0").await;
    }
    env.set("REDIS_MODE", "cluster");
    assert_check(&doctor(&env).await, "cluster", "finding", "16383 of 16384");
}

#[tokio::test]
async fn refused_logins_are_repeated_slowly_and_end_when_the_file_changes() {
    let cluster = Servers::cluster(&[]).await;
    let mut env = env(&cluster).await;
    cluster.add_user(&NODES, &env, "s3cret", PERMISSIONS).await;
    let urls: Vec<_> = cluster.urls.split(',').take(2).collect();
    let urls = urls.join(",").replace("redis://", "redis://handoff:s3cret@");
    let file = TempFile::new(&urls.replace("s3cret", "former"));
    env.settings.remove("HANDOFF_REDIS_URL");
    env.set("REDIS_URL_FILE", file.path());
    let worker = env.start_worker().await;
    let warning = worker.wait_for_log(log_text::REDIS_UNAVAILABLE).await;
    assert!(warning["file"].as_str().unwrap().contains(file.path()), "{warning}");
    tokio::time::sleep(Duration::from_secs(5)).await;
    // Two nodes at the start, after 1 s and after 3 s.
    let logins = cluster.calls(&NODES, "auth").await;
    assert!((2..=6).contains(&logins), "{logins}");
    std::fs::write(file.path(), &urls).unwrap();
    worker.wait_for_log(log_text::REDIS_RECONNECTED).await;
    env.publish_requests(0..10).await;
    env.expect_all_ready(10).await;
    env.request_again(0..10).await;
    env.expect_all_reused(10).await;
}

#[tokio::test]
async fn distant_cluster_is_used_like_any_other() {
    let cluster = Servers::cluster(&[]).await;
    let server: String = cluster.ask("1", "INFO server").await;
    if server.contains("redis_version:6.") {
        // Its nodes do not pass on a changed port.
        return;
    }
    let mut env = env(&cluster).await;
    let (mut distances, mut urls) = (Vec::new(), Vec::new());
    for server in NODES {
        let url = cluster.url(server).await;
        let distance = Distance::to(&url, ROUND_TRIP).await;
        let announce = format!("CONFIG SET cluster-announce-port {}", distance.port());
        cluster.ask::<String>(server, &announce).await;
        urls.push(distance.url(&url));
        distances.push(distance);
    }
    wait_until("the cluster announces the distant ports", async || {
        let nodes: String = cluster.ask("1", "CLUSTER NODES").await;
        distances.iter().all(|distance| nodes.contains(&format!(":{}@", distance.port())))
    })
    .await;
    env.set("REDIS_URL", &urls[..2].join(","));
    expect_shared_sessions(&mut env).await;
}
