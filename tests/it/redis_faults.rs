//! Faults of Redis: requests are served without it, and use it again as soon as it is available.

use std::time::{Duration, Instant};

use deadpool_redis::redis::aio::MultiplexedConnection;
use serde_json::{Value, json};

use crate::support::{
    Answer, Flow, Latch, Node, TestEnv, log_text,
    platform::{Call, hold_calls, success},
    redis, wait_until,
};

/// How long a request took, according to its log line.
fn duration_ms(line: &Value) -> u64 {
    line["duration_ms"].as_u64().unwrap()
}

#[tokio::test]
async fn network_silent_for_20_seconds_delays_requests_by_half_a_second_and_leaks_nothing() {
    let mut env = TestEnv::start().await;
    env.set("REDIS_PATIENCE", "0s");
    let proxy = env.proxy("REDIS_URL").await;
    let worker = env.start_worker().await;
    env.publish_requests(0..10).await;
    env.expect_all_ready(10).await;
    let before = worker.resources(proxy.addr);

    proxy.set_flow(Flow::Dropped);
    let silent_since = Instant::now();
    for number in 10.. {
        env.publish_requests(number..number + 1).await;
        assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.ready");
        if number == 10 {
            // The first request that times out opens the breaker for all later ones.
            worker.wait_for_logs(log_text::REQUEST_FINISHED, 11).await;
            assert_eq!(worker.log_lines(log_text::REDIS_CONNECTION_DISCARDED).len(), 1);
        }
        if silent_since.elapsed() > Duration::from_secs(20) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut took: Vec<_> =
        worker.log_lines(log_text::REQUEST_FINISHED).iter().map(duration_ms).collect();
    took.sort_unstable();
    let median = took[took.len() / 2];
    let longest = took[took.len() - 1];
    println!("{} requests took {median} ms at the median, {longest} ms at most", took.len());
    assert!(median < 150 && longest < 1_500, "{median} {longest}");
    worker.wait_for_log(log_text::REDIS_UNAVAILABLE).await;
    worker.assert_no_leak_since(before, proxy.addr).await;

    proxy.set_flow(Flow::Forwarded);
    worker.wait_for_log(log_text::REDIS_RECONNECTED).await;
    for id in ["r-again", "r-and-again"] {
        env.publish_request(id, "user-0").await;
        assert_eq!(env.rabbitmq.next_event().await.data()["reused"], true);
    }
    println!("before: {before:?}, after: {:?}", worker.resources(proxy.addr));
    worker.assert_no_leak_since(before, proxy.addr).await;
}

#[tokio::test]
async fn requests_are_served_while_redis_is_down_and_links_cached_once_it_is_up() {
    let node = Node::redis().await;
    let mut env = TestEnv::builder().redis(&node).start().await;
    let worker = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    env.rabbitmq.next_event().await;
    node.kill().await;

    for (id, reused) in [("r-2", false), ("r-3", true)] {
        env.publish_request(id, "ann").await;
        let event = env.rabbitmq.next_event().await;
        assert_eq!(event.routing_key, "handoff.ready");
        assert_eq!(event.data()["reused"], reused);
    }
    assert!(worker.metric("handoff_cache_errors_total").await >= 2.0);
    let (status, page) = worker.get("/readyz").await;
    assert!(status == 200 && page.contains("degraded"), "{status} {page}");

    node.start().await;
    worker.wait_for_log(log_text::REDIS_RECONNECTED).await;
    // A link made while Redis was down is now the user's link.
    env.publish_request("r-4", "ann").await;
    let event = env.rabbitmq.next_event().await;
    assert_eq!(event.data()["reused"], true);
    assert_eq!(event.data()["sessionId"], "session-1");
    assert!(!worker.get("/readyz").await.1.contains("degraded"));
}

#[tokio::test]
async fn worker_starts_without_redis() {
    let mut env = TestEnv::start().await;
    env.set("REDIS_URL", "redis://127.0.0.1:1/0");
    let _worker = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.ready");
}

#[tokio::test]
async fn silent_redis_delays_only_the_first_requests() {
    let mut env = TestEnv::start().await;
    let proxy = env.proxy("REDIS_URL").await;
    let worker = env.start_worker().await;
    proxy.set_flow(Flow::Held);
    env.publish_request("r-1", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.ready");
    env.publish_request("r-2", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.ready");
    worker.wait_for_log(log_text::REDIS_UNAVAILABLE).await;
    proxy.set_flow(Flow::Forwarded);
    worker.wait_for_log(log_text::REDIS_RECONNECTED).await;
    // The link made meanwhile is stored now, and the unanswered claim holds no lease.
    env.publish_request("r-3", "ann").await;
    let event = env.rabbitmq.next_event().await;
    assert_eq!(event.data()["reused"], true);
    assert_eq!(event.data()["sessionId"], "session-0");
}

#[tokio::test]
async fn concurrent_requests_in_one_worker_share_a_session_without_redis() {
    let mut env = TestEnv::start().await;
    env.set("REDIS_URL", "redis://127.0.0.1:1/0");
    let (session, script) = hold_calls(|call| !call.is_token());
    env.platform.set_script(script);
    let worker = env.start_worker().await;
    for n in 0..10 {
        env.publish_request(&format!("r-{n}"), "ann").await;
    }
    worker.wait_for_in_flight(10).await;
    session.open();
    let events = env.rabbitmq.next_events(10).await;
    assert!(events.iter().all(|event| event.data()["sessionId"] == "session-0"));
    assert_eq!(env.platform.session_calls().len(), 1);
}

#[tokio::test]
async fn links_made_while_redis_was_frozen_are_reused_once_it_thaws() {
    let node = Node::redis().await;
    let mut env = TestEnv::builder().redis(&node).start().await;
    let worker = env.start_worker().await;
    node.freeze().await;
    env.publish_requests(0..10).await;
    env.rabbitmq.next_events(10).await;
    worker.wait_for_log(log_text::REDIS_UNAVAILABLE).await;
    node.thaw().await;
    worker.wait_for_log(log_text::REDIS_RECONNECTED).await;
    env.request_again(0..10).await;
    env.expect_all_reused(10).await;
    assert_eq!(env.platform.session_calls().len(), 10);
}

#[tokio::test]
async fn link_renewed_while_redis_was_frozen_is_the_users_link_once_it_thaws() {
    let node = Node::redis().await;
    let mut env = TestEnv::builder().redis(&node).start().await;
    let worker = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    env.rabbitmq.next_event().await;
    node.freeze().await;
    env.rabbitmq.publish_request("r-2", json!({ "userId": "ann", "renew": true })).await;
    assert_eq!(env.rabbitmq.next_event().await.data()["sessionId"], "session-1");
    worker.wait_for_log(log_text::REDIS_UNAVAILABLE).await;
    node.thaw().await;
    worker.wait_for_log(log_text::REDIS_RECONNECTED).await;
    env.publish_request("r-3", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["sessionId"], "session-1");
    env.rabbitmq.publish_request("r-2", json!({ "userId": "ann", "renew": true })).await;
    assert_eq!(
        env.rabbitmq.next_event().await.data()["sessionId"],
        "session-1",
        "a repeated renewal reuses its own link"
    );
}

#[tokio::test]
async fn renewal_makes_one_session_although_redis_loses_its_data_meanwhile() {
    let node = Node::redis().await;
    let mut env = TestEnv::builder().redis(&node).start().await;
    let worker = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    env.rabbitmq.next_event().await;
    let (session, script) = hold_calls(|call| !call.is_token());
    env.platform.set_script(script);
    env.rabbitmq.publish_request("r-2", json!({ "userId": "ann", "renew": true })).await;
    env.platform.wait_for_calls(4).await;
    node.kill().await;
    worker.wait_for_log(log_text::REDIS_UNAVAILABLE).await;
    node.start().await;
    worker.wait_for_log(log_text::REDIS_RECONNECTED).await;
    session.open();
    assert_eq!(env.rabbitmq.next_event().await.data()["sessionId"], "session-1");
    assert_eq!(env.platform.session_calls().len(), 2);
}

#[tokio::test]
async fn full_redis_is_reported_as_degraded() {
    let node = Node::redis().await;
    let mut env = TestEnv::builder().redis(&node).start().await;
    let worker = env.start_worker().await;
    let mut client = redis::connect(&node.url).await;
    set_max_memory(&mut client, "1").await;
    env.publish_request("r-1", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.ready");
    let (status, page) = worker.get("/readyz").await;
    assert!(status == 200 && page.contains("degraded"), "{status} {page}");
    set_max_memory(&mut client, "0").await;
    env.publish_request("r-2", "ann").await;
    env.rabbitmq.next_event().await;
    assert!(!worker.get("/readyz").await.1.contains("degraded"));
}

#[tokio::test]
async fn link_refused_by_a_full_redis_is_stored_once_it_has_room() {
    let node = Node::redis().await;
    let mut env = TestEnv::builder().redis(&node).start().await;
    env.set("IDV_TOKEN_TTL", "1h").set("LINK_MIN_LIFE", "10m");
    let _worker = env.start_worker().await;
    let mut client = redis::connect(&node.url).await;
    set_max_memory(&mut client, "1").await;
    env.publish_request("r-1", "ann").await;
    env.rabbitmq.next_event().await;
    let made = Instant::now();
    set_max_memory(&mut client, "0").await;
    wait_until("the link is stored", async || !env.redis_entries().await.is_empty()).await;
    // The time to live counts from when the link was made.
    let longest = Duration::from_secs(50 * 60) - made.elapsed();
    let ttl_ms = env.redis_entries().await.remove(0).ttl_ms;
    assert!(Duration::from_millis(ttl_ms.try_into().unwrap()) <= longest, "{ttl_ms}");
    env.publish_request("r-2", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["reused"], true);
    assert_eq!(env.platform.session_calls().len(), 1);
}

#[tokio::test]
async fn replica_counts_as_unavailable_until_it_accepts_writes() {
    let node = Node::redis().await;
    let mut env = TestEnv::builder().redis(&node).start().await;
    let worker = env.start_worker().await;
    let mut client = redis::connect(&node.url).await;
    let mut follow = async |host: &str, port: &str| {
        redis::run(&mut client, &format!("REPLICAOF {host} {port}")).await;
    };
    follow("127.0.0.1", "1").await;
    for number in 0..3 {
        env.publish_request(&format!("r-{number}"), "ann").await;
        assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.ready");
        let (status, page) = worker.get("/readyz").await;
        assert!(status == 200 && page.contains("degraded"), "{status} {page}");
    }
    worker.wait_for_log(log_text::REDIS_UNAVAILABLE).await;
    let warning = &worker.log_lines(log_text::REDIS_UNAVAILABLE)[0];
    assert!(warning["error"].as_str().unwrap().starts_with("READONLY: "), "{warning}");
    assert!(warning["remedy"].as_str().unwrap().contains("the primary"), "{warning}");
    follow("NO", "ONE").await;
    // The links made meanwhile are stored.
    worker.wait_for_log(log_text::REDIS_RECONNECTED).await;
    assert!(!worker.get("/readyz").await.1.contains("degraded"));
    env.publish_request("r-again", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["reused"], true);
    assert_eq!(worker.log_lines(log_text::REDIS_UNAVAILABLE).len(), 1);
}

#[tokio::test]
async fn cause_that_says_more_than_a_timeout_is_logged_in_the_same_outage() {
    let mut env = TestEnv::start().await;
    let proxy = env.proxy("REDIS_URL").await;
    proxy.set_flow(Flow::Held);
    let worker = env.start_worker().await;
    let timeout = worker.wait_for_log(log_text::REDIS_UNAVAILABLE).await;
    assert_eq!(timeout["error"], "no answer in time");
    drop(proxy);
    // Another one, if a connection was being made at that moment.
    let refused = worker.wait_for_logs(log_text::REDIS_UNAVAILABLE, 2).await["error"].clone();
    let errors = ["connection refused", "connection reset", "broken pipe"];
    assert!(errors.contains(&refused.as_str().unwrap()), "{refused}");
}

/// Limits the memory of a Redis; 0 removes the limit.
async fn set_max_memory(client: &mut MultiplexedConnection, bytes: &str) {
    redis::run(client, &format!("CONFIG SET maxmemory {bytes}")).await;
}

#[tokio::test]
async fn request_waiting_for_the_platform_asks_redis_again_once_it_is_available() {
    let answer = Latch::closed();
    let script = {
        let answer = answer.clone();
        move |call: &Call| {
            if call.is_token() && call.nth == 0 {
                Answer::status(503).held_by(&answer)
            } else {
                success(call)
            }
        }
    };
    let mut env = TestEnv::builder().platform(script).start().await;
    let direct = env.setting("REDIS_URL").to_owned();
    let proxy = env.proxy("REDIS_URL").await;
    env.set("CONCURRENCY", "1");
    let isolated = env.start_worker().await;
    proxy.set_flow(Flow::Held);
    env.publish_request("r-1", "ann").await;
    env.platform.wait_for_calls(1).await;
    // Another worker makes the link meanwhile.
    env.set("REDIS_URL", &direct);
    let _other = env.start_worker().await;
    env.publish_request("r-2", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["requestId"], "r-2");
    isolated.wait_for_log(log_text::REDIS_UNAVAILABLE).await;
    proxy.set_flow(Flow::Forwarded);
    isolated.wait_for_log(log_text::REDIS_RECONNECTED).await;
    answer.open();
    let event = env.rabbitmq.next_event().await;
    assert_eq!(event.data()["requestId"], "r-1");
    assert_eq!(event.data()["reused"], true);
    assert_eq!(env.platform.session_calls().len(), 1);
}
