//! Redis breaks, and requests are served without it; it is used again as soon as it is back.

use std::time::{Duration, Instant};

use deadpool_redis::redis::aio::MultiplexedConnection;
use serde_json::{Value, json};

use crate::support::{
    Answer, Flow, Latch, Node, Platform, Proxy, TestEnv, log_text,
    platform::{Call, hold_calls, success},
    redis, wait_until,
};

/// How long a request took, as the log tells it.
fn duration_ms(line: &Value) -> u64 {
    line["duration_ms"].as_u64().unwrap()
}

#[tokio::test]
async fn a_network_that_swallows_all_for_20_seconds_costs_half_a_second_and_leaves_nothing() {
    let mut env = TestEnv::start().await;
    let proxy = env.proxy("REDIS_URL").await;
    let worker = env.start_worker().await;
    env.publish_requests(0..10).await;
    env.expect_all_ready(10).await;
    let before = worker.resources(proxy.addr);

    proxy.set_flow(Flow::Dropped);
    let vanished = Instant::now();
    for number in 10.. {
        env.publish_requests(number..number + 1).await;
        assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.ready");
        if number == 10 {
            // Whoever meets it first trips the breaker, for all who come after.
            worker.wait_for_logs(log_text::REQUEST_FINISHED, 11).await;
            assert_eq!(worker.log_lines(log_text::REDIS_CONNECTION_DISCARDED).len(), 1);
        }
        if vanished.elapsed() > Duration::from_secs(20) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut took: Vec<_> =
        worker.log_lines(log_text::REQUEST_FINISHED).iter().map(duration_ms).collect();
    took.sort_unstable();
    let (median, longest) = (took[took.len() / 2], took[took.len() - 1]);
    println!("{} requests took {median} ms at the median, {longest} ms at most", took.len());
    assert!(median < 150 && longest < 750, "{median} {longest}");
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
async fn without_redis_requests_are_served_and_with_it_again_links_are_cached() {
    let node = Node::redis().await;
    let mut env = TestEnv::builder().redis(&node).start().await;
    let worker = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    env.rabbitmq.next_event().await;
    node.kill().await;

    for id in ["r-2", "r-3"] {
        env.publish_request(id, "ann").await;
        let event = env.rabbitmq.next_event().await;
        assert_eq!(
            (event.routing_key.as_str(), &event.data()["reused"]),
            ("handoff.ready", &json!(false))
        );
    }
    assert!(worker.metric("handoff_cache_errors_total").await >= 2.0);
    let (status, page) = worker.get("/readyz").await;
    assert!(status == 200 && page.contains("degraded"), "{status} {page}");

    node.start().await;
    worker.wait_for_log(log_text::REDIS_RECONNECTED).await;
    // A link that was made meanwhile is the person's link from now on.
    env.publish_request("r-4", "ann").await;
    let event = env.rabbitmq.next_event().await;
    assert_eq!(
        (&event.data()["reused"], &event.data()["sessionId"]),
        (&json!(true), &json!("session-1"))
    );
    assert!(!worker.get("/readyz").await.1.contains("degraded"));
}

#[tokio::test]
async fn a_worker_starts_without_redis() {
    let mut env = TestEnv::start().await;
    env.set("REDIS_URL", "redis://127.0.0.1:1/0");
    let _worker = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.ready");
}

#[tokio::test]
async fn a_silent_redis_holds_up_only_those_who_meet_it_first() {
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
    // The link that was made meanwhile is known now, and the claim that nobody answered is no more.
    env.publish_request("r-3", "ann").await;
    let event = env.rabbitmq.next_event().await;
    assert_eq!(
        (&event.data()["reused"], &event.data()["sessionId"]),
        (&json!(true), &json!("session-0"))
    );
}

#[tokio::test]
async fn without_redis_requests_at_once_in_one_worker_still_share_a_session() {
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
async fn a_redis_that_was_frozen_costs_nobody_anything_once_it_is_back() {
    let node = Node::redis().await;
    let mut env = TestEnv::builder().redis(&node).start().await;
    let worker = env.start_worker().await;
    node.freeze().await;
    for n in 0..10 {
        env.publish_request(&format!("r-{n}"), &format!("user-{n}")).await;
    }
    env.rabbitmq.next_events(10).await;
    worker.wait_for_log(log_text::REDIS_UNAVAILABLE).await;
    node.thaw().await;
    worker.wait_for_log(log_text::REDIS_RECONNECTED).await;
    for n in 0..10 {
        env.publish_request(&format!("again-{n}"), &format!("user-{n}")).await;
    }
    let events = env.rabbitmq.next_events(10).await;
    assert!(events.iter().all(|event| event.data()["reused"] == true));
    assert_eq!(env.platform.session_calls().len(), 10);
}

#[tokio::test]
async fn a_renewal_without_redis_is_the_persons_link_once_it_is_back() {
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
        "it knows its own"
    );
}

#[tokio::test]
async fn a_renewal_makes_one_session_even_if_redis_forgets_all_meanwhile() {
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
async fn a_redis_that_is_full_shows_as_degraded() {
    let node = Node::redis().await;
    let mut env = TestEnv::builder().redis(&node).start().await;
    let worker = env.start_worker().await;
    let mut client = redis::connect(&node.url).await;
    limit(&mut client, "1").await;
    env.publish_request("r-1", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.ready");
    let (status, page) = worker.get("/readyz").await;
    assert!(status == 200 && page.contains("degraded"), "{status} {page}");
    limit(&mut client, "0").await;
    env.publish_request("r-2", "ann").await;
    env.rabbitmq.next_event().await;
    assert!(!worker.get("/readyz").await.1.contains("degraded"));
}

#[tokio::test]
async fn what_a_full_redis_refused_is_stored_once_it_has_room() {
    let node = Node::redis().await;
    let mut env = TestEnv::builder().redis(&node).start().await;
    env.set("IDV_TOKEN_TTL", "1h").set("LINK_MIN_LIFE", "10m");
    let _worker = env.start_worker().await;
    let mut client = redis::connect(&node.url).await;
    limit(&mut client, "1").await;
    env.publish_request("r-1", "ann").await;
    env.rabbitmq.next_event().await;
    let told = Instant::now();
    limit(&mut client, "0").await;
    wait_until("the link is stored", async || !env.redis_entries().await.is_empty()).await;
    // Its life began when it was made.
    let longest = Duration::from_secs(50 * 60) - told.elapsed();
    let left = env.redis_entries().await.remove(0).ttl_ms;
    assert!(Duration::from_millis(left.try_into().unwrap()) <= longest, "{left} ms are left");
    env.publish_request("r-2", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["reused"], true);
    assert_eq!(env.platform.session_calls().len(), 1);
}

#[tokio::test]
async fn a_redis_that_is_a_replica_is_told_as_one_that_is_away_until_it_takes_writes() {
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
    assert_eq!(worker.log_lines(log_text::REDIS_UNAVAILABLE)[0][log_text::REDIS_CAUSE], "READONLY");
    follow("NO", "ONE").await;
    // The links that were made meanwhile are stored.
    worker.wait_for_log(log_text::REDIS_RECONNECTED).await;
    assert!(!worker.get("/readyz").await.1.contains("degraded"));
    env.publish_request("r-again", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["reused"], true);
    assert_eq!(worker.log_lines(log_text::REDIS_UNAVAILABLE).len(), 1);
}

async fn limit(client: &mut MultiplexedConnection, bytes: &str) {
    redis::run(client, &format!("CONFIG SET maxmemory {bytes}")).await;
}

#[tokio::test]
async fn who_waits_for_the_platform_asks_redis_again_once_it_is_back() {
    let answer = Latch::closed();
    let script = {
        let answer = answer.clone();
        move |call: &Call| match (call.is_token(), call.nth) {
            (true, 0) => Answer::status(503).held_by(&answer),
            _ => success(call),
        }
    };
    let mut env = TestEnv::builder().platform(Platform::scripted(script).await).start().await;
    let direct = env.setting("REDIS_URL").to_owned();
    let proxy = Proxy::to(&direct).await;
    env.set("REDIS_URL", &proxy.url(&direct)).set("CONCURRENCY", "1");
    let alone = env.start_worker().await;
    proxy.set_flow(Flow::Held);
    env.publish_request("r-1", "ann").await;
    env.platform.wait_for_calls(1).await;
    // Meanwhile another worker makes the link.
    env.set("REDIS_URL", &direct);
    let _other = env.start_worker().await;
    env.publish_request("r-2", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["requestId"], "r-2");
    alone.wait_for_log(log_text::REDIS_UNAVAILABLE).await;
    proxy.set_flow(Flow::Forwarded);
    alone.wait_for_log(log_text::REDIS_RECONNECTED).await;
    answer.open();
    let event = env.rabbitmq.next_event().await;
    assert_eq!(
        (&event.data()["requestId"], &event.data()["reused"]),
        (&json!("r-1"), &json!(true))
    );
    assert_eq!(env.platform.session_calls().len(), 1);
}
