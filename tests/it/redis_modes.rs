//! Redis Cluster and Sentinel, where their servers misbehave together.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::net::TcpListener;

use crate::support::{FakeRedis, TestEnv, Worker, log_text, wait_until};

const OK: &str = "+OK\r\n";
const WRONG_PASSWORD: &str = "-WRONGPASS invalid username-password pair or user is disabled.\r\n";

fn bulk(text: &str) -> String {
    format!("${}\r\n{text}\r\n", text.len())
}

/// The answer to `CLUSTER SLOTS` of a cluster whose slots this port alone serves.
fn one_owner(port: u16) -> String {
    format!("*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n{}:{port}\r\n", bulk("127.0.0.1"))
}

/// Asserts that the worker soon uses a server that is back as of now.
async fn assert_used_soon(worker: &Worker) {
    let back = Instant::now();
    worker.wait_for_log(log_text::REDIS_RECONNECTED).await;
    println!("used {:?} after it was back", back.elapsed());
    assert!(back.elapsed() < Duration::from_millis(1_500), "{:?}", back.elapsed());
}

#[tokio::test]
async fn nodes_of_a_cluster_that_is_down_are_dialled_a_few_times_a_second_and_used_once_they_are_back()
 {
    let node = FakeRedis::start_with_port(|port, command| match command {
        "CLUSTER SLOTS" => one_owner(port),
        _ => OK.to_owned(),
    })
    .await;
    let seed = FakeRedis::start({
        let owner = node.addr.port();
        move |command| match command {
            "CLUSTER SLOTS" => one_owner(owner),
            _ => OK.to_owned(),
        }
    })
    .await;
    let mut env = TestEnv::start().await;
    env.set("REDIS_MODE", "cluster").set("REDIS_URL", &format!("{},{}", node.url(), seed.url()));
    let worker = env.start_worker().await;
    let is_used = async || !worker.get("/readyz").await.1.contains("degraded");
    wait_until("the worker uses Redis", is_used).await;
    for server in [&node, &seed] {
        server.set_down(true);
    }
    // Asks, so that the worker notices.
    env.publish_request("r", "ann").await;
    worker.wait_for_log(log_text::REDIS_UNAVAILABLE).await;
    env.rabbitmq.next_event().await;
    for server in [&node, &seed] {
        server.take_connections();
    }
    tokio::time::sleep(Duration::from_secs(4)).await;
    let dials = [node.take_connections(), seed.take_connections()];
    println!("dialled {dials:?} times in 4 s");
    // Two for each dial: a second connection finds out why the first one broke. Without back-off, 20 to 30 dials.
    assert!(dials.iter().all(|dials| (4..=30).contains(dials)), "{dials:?}");
    // The successor is another node.
    for server in [&seed, &node] {
        server.set_down(false);
    }
    assert_used_soon(&worker).await;
}

#[tokio::test]
async fn sentinel_that_refuses_the_login_does_not_delay_the_use_of_another() {
    let mut env = TestEnv::start().await;
    let redis = url::Url::parse(env.setting("REDIS_URL")).unwrap();
    let primary =
        format!("*2\r\n{}{}", bulk("127.0.0.1"), bulk(&redis.port().unwrap().to_string()));
    let refusing = FakeRedis::start(|_| WRONG_PASSWORD.to_owned()).await;
    let other = FakeRedis::start(move |command| match command.starts_with("SENTINEL") {
        true => primary.clone(),
        false => OK.to_owned(),
    })
    .await;
    other.set_down(true);
    let sentinel = |server: &FakeRedis| format!("redis://:s3cret@{}", server.addr);
    env.set("REDIS_MODE", "sentinel");
    env.set("REDIS_SENTINELS", &format!("{},{}", sentinel(&refusing), sentinel(&other)));
    let worker = env.start_worker().await;
    let warning = worker.wait_for_log(log_text::REDIS_UNAVAILABLE).await;
    assert!(warning["error"].as_str().unwrap().contains("refuses the login"), "{warning}");
    // By then, a common wait after refused logins would take 4 s.
    tokio::time::sleep(Duration::from_millis(3_500)).await;
    let logins = refusing.take_connections();
    assert!((2..=3).contains(&logins), "{logins}");
    other.set_down(false);
    assert_used_soon(&worker).await;
    env.publish_request("r", "ann").await;
    env.rabbitmq.next_event().await;
    env.publish_request("r-again", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["reused"], true);
}

#[tokio::test]
async fn node_of_a_cluster_that_refuses_the_login_does_not_delay_the_use_of_another() {
    let mut env = TestEnv::start().await;
    let refusing = FakeRedis::start(|_| WRONG_PASSWORD.to_owned()).await;
    let other = FakeRedis::start_with_port(|port, command| match command {
        "CLUSTER SLOTS" => one_owner(port),
        _ => OK.to_owned(),
    })
    .await;
    other.set_down(true);
    let node = |server: &FakeRedis| format!("redis://:s3cret@{}", server.addr);
    env.set("REDIS_MODE", "cluster");
    env.set("REDIS_URL", &format!("{},{}", node(&refusing), node(&other)));
    let worker = env.start_worker().await;
    worker.wait_for_log(log_text::REDIS_UNAVAILABLE).await;
    tokio::time::sleep(Duration::from_millis(3_500)).await;
    let logins = refusing.take_connections();
    assert!((2..=3).contains(&logins), "{logins}");
    other.set_down(false);
    assert_used_soon(&worker).await;
}

#[tokio::test]
async fn redirections_take_no_longer_than_one_operation_without_patience() {
    let [first, second] = [
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
    ];
    let ports = [&first, &second].map(|listener| listener.local_addr().unwrap().port());
    let [first, second] =
        [(first, ports), (second, [ports[1], ports[0]])].map(|(listener, [own, other])| {
            FakeRedis::serve(listener, move |command| match command {
                "CLUSTER SLOTS" => (Duration::ZERO, one_owner(own)),
                script if script.starts_with("EVALSHA") => {
                    (Duration::from_millis(180), format!("-MOVED 1 127.0.0.1:{other}\r\n"))
                }
                _ => (Duration::ZERO, OK.to_owned()),
            })
        });
    let mut env = TestEnv::start().await;
    env.set("REDIS_MODE", "cluster").set("REDIS_PATIENCE", "0s");
    env.set("REDIS_URL", &format!("{},{}", first.url(), second.url()));
    let worker = env.start_worker().await;
    let mut took = Vec::new();
    for number in 0..3 {
        env.publish_request(&format!("r-{number}"), &format!("user-{number}")).await;
        assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.ready");
        let line = worker.wait_for_logs(log_text::REQUEST_FINISHED, number + 1).await;
        took.push(line["duration_ms"].as_u64().unwrap());
    }
    println!("{took:?} ms");
    // One operation to claim and one to store.
    assert!(took.iter().all(|took| *took < 900), "{took:?}");
}

#[tokio::test]
async fn sentinels_that_disagree_move_no_connection_that_works() {
    let mut env = TestEnv::start().await;
    let redis = url::Url::parse(env.setting("REDIS_URL")).unwrap();
    let primary =
        |host: &str| format!("*2\r\n{}{}", bulk(host), bulk(&redis.port().unwrap().to_string()));
    let slow = Arc::new(AtomicBool::new(false));
    let mut sentinels = Vec::new();
    for (n, host) in ["127.0.0.1", "localhost"].into_iter().enumerate() {
        let (primary, slow) = (primary(host), Arc::clone(&slow));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        // Each is the first to answer in turn.
        sentinels.push(FakeRedis::serve(listener, move |command| {
            let is_first = slow.load(Ordering::SeqCst) == (n == 0);
            let delay = Duration::from_millis(if is_first { 0 } else { 100 });
            match command.starts_with("SENTINEL") {
                true => (delay, primary.clone()),
                false => (Duration::ZERO, OK.to_owned()),
            }
        }));
    }
    env.set("REDIS_MODE", "sentinel");
    env.set("REDIS_SENTINELS", &format!("{},{}", sentinels[0].url(), sentinels[1].url()));
    let worker = env.start_worker().await;
    worker.wait_for_log("serving /livez, /readyz and /metrics").await;
    env.publish_request("r", "ann").await;
    env.rabbitmq.next_event().await;
    slow.store(true, Ordering::SeqCst);
    for sentinel in &sentinels {
        sentinel.take_connections();
    }
    // The worker asks every 5 s.
    wait_until("the sentinels are asked again", async || sentinels[0].take_connections() > 0).await;
    env.publish_request("r-again", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["reused"], true);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(worker.log_lines("the sentinels name another Redis primary: reconnecting").len(), 0);
}
