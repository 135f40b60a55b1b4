//! Sentinels: the worker follows them to the new primary.

use std::time::{Duration, Instant};

use crate::{
    endings::{assert_replaced, end, sessions},
    load::{Load, second_sessions},
    redis_servers::{Servers, assert_check, doctor, tls_options},
    support::{
        Authority, Distance, Node, TestEnv, TlsProxy,
        distance::{ROUND_TRIP, expect_shared_sessions},
        log_text,
    },
};

/// An environment whose workers ask these sentinels. The host of the URL is not used.
async fn env(sentinels: &str) -> TestEnv {
    let mut env = TestEnv::start().await;
    env.set("REDIS_MODE", "sentinel").set("REDIS_URL", "redis://192.0.2.1/0");
    env.set("REDIS_SENTINELS", sentinels);
    env
}

#[tokio::test]
async fn killed_primary_costs_no_second_session_and_its_successor_serves_within_a_second() {
    let servers = Servers::sentinels(&[], &[]).await;
    let mut env = env(&servers.urls).await;
    env.set("REDIS_PATIENCE", "10s");
    let workers = [env.start_worker().await, env.start_worker().await];
    let load = Load::start(&env);
    tokio::time::sleep(Duration::from_secs(3)).await;
    servers.run("kill", "1").await;
    let killed = Instant::now();
    servers.wait_for_named_primary("s1", "1").await;
    let promoted = Instant::now();
    workers[0].wait_for_log(log_text::REDIS_RECONNECTED).await;
    let served = promoted.elapsed();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let people = load.stop().await;
    let second = second_sessions(&mut env, people).await;
    let promoted = promoted - killed;
    println!(
        "promoted after {promoted:?}, served {served:?} later: {people} people, {second} second sessions"
    );
    assert_eq!(second, 0);
    assert!(served < Duration::from_secs(2), "{served:?}");
}

#[tokio::test]
async fn ended_sessions_are_not_handed_out_again_although_the_primary_fails() {
    let servers = Servers::sentinels(&[], &[]).await;
    let mut env = env(&servers.urls).await;
    env.set("REDIS_PATIENCE", "10s");
    let worker = env.start_worker().await;
    env.wait_for_consumer_of_endings().await;
    let first = sessions(&mut env, 0..60, "first").await;
    assert_eq!(end(&env, &[&worker], &first).await, 60);
    let second = sessions(&mut env, 0..60, "second").await;
    assert_replaced(&first, &second);
    servers.run("kill", "1").await;
    // An ending that is repeated because its answer was lost finds nothing any more.
    let forgotten = end(&env, &[&worker], &second).await;
    println!("{forgotten} of 60 links found and forgotten");
    let third = sessions(&mut env, 0..60, "third").await;
    assert_replaced(&second, &third);
}

#[tokio::test]
async fn frozen_primary_is_left_as_soon_as_the_sentinels_name_another() {
    let servers = Servers::sentinels(&[], &[]).await;
    let mut env = env(&servers.urls).await;
    env.set("REDIS_PATIENCE", "10s");
    let worker = env.start_worker().await;
    let load = Load::start(&env);
    tokio::time::sleep(Duration::from_secs(2)).await;
    servers.run("freeze", "1").await;
    servers.wait_for_named_primary("s1", "1").await;
    let promoted = Instant::now();
    worker.wait_for_log(log_text::REDIS_RECONNECTED).await;
    let served = promoted.elapsed();
    let people = load.stop().await;
    let second = second_sessions(&mut env, people).await;
    println!("served {served:?} after the promotion: {people} people, {second} second sessions");
    assert_eq!(second, 0);
    assert!(served < Duration::from_secs(2), "{served:?}");
    // It comes back as a replica, and stays one.
    servers.run("thaw", "1").await;
    env.request_again(0..people).await;
    env.expect_all_reused(people).await;
}

#[tokio::test]
async fn planned_fail_over_costs_no_second_session() {
    let servers = Servers::sentinels(&[], &[]).await;
    let mut env = env(&servers.urls).await;
    let _worker = env.start_worker().await;
    let load = Load::start(&env);
    tokio::time::sleep(Duration::from_secs(1)).await;
    servers.ask::<()>("s2", "SENTINEL FAILOVER mymaster").await;
    servers.wait_for_named_primary("s1", "1").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let people = load.stop().await;
    assert_eq!(second_sessions(&mut env, people).await, 0);
}

#[tokio::test]
async fn sentinels_that_are_gone_or_wrong_do_not_mislead() {
    let servers = Servers::sentinels(&[], &[]).await;
    let others = Servers::sentinels(&[], &[]).await;
    let node = Node::redis().await;
    let mut own = servers.urls.split(',');
    let (first, second) = (own.next().unwrap(), own.next().unwrap());
    let other = others.urls.split(',').next().unwrap();
    servers.run("freeze", "s3").await;
    let frozen = servers.url("s3").await;
    // The last one leads to a server that is no sentinel, and the one before to nothing.
    let sentinels = format!("{other},{first},{frozen},{second},redis://127.0.0.1:1,{}", node.url);
    let mut env = env(&sentinels).await;
    let worker = env.start_worker().await;
    env.publish_requests(0..20).await;
    env.expect_all_ready(20).await;
    let keys: Vec<String> = servers.ask("1", &format!("KEYS {}:*", env.name)).await;
    assert!(keys.len() >= 20, "{keys:?}");
    assert_eq!(worker.log_lines(log_text::REDIS_UNAVAILABLE).len(), 0);
    // Without any sentinel, the connection stays in use.
    for sentinel in ["s1", "s2"] {
        servers.run("kill", sentinel).await;
    }
    others.run("kill", "s1").await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    env.request_again(0..20).await;
    env.expect_all_reused(20).await;
    assert_eq!(worker.log_lines(log_text::REDIS_UNAVAILABLE).len(), 0);
}

#[tokio::test]
async fn reason_why_the_sentinels_name_no_primary_is_logged() {
    let servers = Servers::sentinels(&[], &[]).await;
    let node = Node::redis().await;
    for (sentinels, service, error) in [
        (servers.urls.as_str(), "other", "HANDOFF_REDIS_SENTINEL_SERVICE"),
        (node.url.as_str(), "mymaster", "no sentinel"),
        ("redis://127.0.0.1:1", "mymaster", "no sentinel can be reached"),
    ] {
        let mut env = env(sentinels).await;
        env.set("REDIS_SENTINEL_SERVICE", service).set("REDIS_PATIENCE", "0s");
        let worker = env.start_worker().await;
        let warning = worker.wait_for_log(log_text::REDIS_UNAVAILABLE).await;
        assert!(warning["error"].as_str().unwrap().contains(error), "{warning}");
        env.publish_request("r", "ann").await;
        assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.ready");
    }
}

#[tokio::test]
async fn sentinels_and_primary_are_reached_over_tls_each_as_a_user_of_its_own() {
    let authority = Authority::new();
    let identity = authority.issue(&["127.0.0.1"]);
    let (certificate, key) = identity.pem();
    let mut options = tls_options(&certificate, &key, &authority);
    options.extend(["--tls-replication", "yes"].map(str::to_owned));
    let files = [certificate.path(), key.path(), &authority.certificate_file()];
    let config = format!(
        "tls-replication yes\ntls-cert-file {}\ntls-key-file {}\ntls-ca-cert-file {}",
        files[0], files[1], files[2]
    );
    let options: Vec<_> = options.iter().map(String::as_str).collect();
    let environment =
        [("SENTINEL_CONFIG", config.as_str()), ("SENTINEL_OPTIONS", "--tls-port TLS_PORT")];
    let servers = Servers::sentinels(&options, &environment).await;
    let mut env = env("").await;
    servers.add_user(&["1", "2", "3"], &env, "s3cret-1", "+select +role").await;
    let (mut sentinels, mut fronts) = (Vec::new(), Vec::new());
    for sentinel in ["s1", "s2", "s3"] {
        let user = "ACL SETUSER asker on >s3cret-2 +sentinel|get-master-addr-by-name";
        servers.ask::<()>(sentinel, user).await;
        let front = TlsProxy::to(&servers.url(sentinel).await, &identity).await;
        sentinels.push(format!("rediss://asker:s3cret-2@127.0.0.1:{}", front.port()));
        fronts.push(front);
    }
    let sentinels = sentinels.join(",");
    env.trust(&authority);
    env.set("REDIS_URL", "rediss://handoff:s3cret-1@192.0.2.1/1");
    env.set("REDIS_SENTINELS", &sentinels).set("REDIS_PATIENCE", "10s");
    let worker = env.start_worker().await;
    let load = Load::start(&env);
    tokio::time::sleep(Duration::from_secs(1)).await;
    servers.run("kill", "1").await;
    worker.wait_for_log(log_text::REDIS_RECONNECTED).await;
    let people = load.stop().await;
    assert_eq!(second_sessions(&mut env, people).await, 0);
    assert!(!worker.output().contains("s3cret"));
    let checks = doctor(&env).await;
    assert_check(&checks, "primary", "ok", "3 of 3 sentinels");
    assert_check(&checks, "commands", "ok", "all commands");
    env.set("REDIS_SENTINELS", &sentinels.replacen("s3cret-2", "s3cret-3", 1));
    assert_check(&doctor(&env).await, "sentinel", "finding", "refuses the login");
    // Where a sentinel is taken for the server.
    env.set("REDIS_MODE", "single").set("REDIS_URL", &servers.url("s1").await);
    env.settings.remove("HANDOFF_REDIS_SENTINELS");
    assert_check(&doctor(&env).await, "role", "finding", "HANDOFF_REDIS_MODE=sentinel");
}

#[tokio::test]
async fn distant_primary_and_sentinels_are_used_like_any_others() {
    let servers = Servers::sentinels(&[], &[]).await;
    let primary = Distance::to(&servers.url("1").await, ROUND_TRIP).await;
    let (mut distances, mut urls) = (Vec::new(), Vec::new());
    for sentinel in ["s1", "s2", "s3"] {
        servers.ask::<()>(sentinel, "SENTINEL REMOVE mymaster").await;
        let monitor = format!("SENTINEL MONITOR mymaster 127.0.0.1 {} 2", primary.port());
        servers.ask::<()>(sentinel, &monitor).await;
        let url = servers.url(sentinel).await;
        let distance = Distance::to(&url, ROUND_TRIP).await;
        urls.push(distance.url(&url));
        distances.push(distance);
    }
    let mut env = env(&urls.join(",")).await;
    expect_shared_sessions(&mut env).await;
}
