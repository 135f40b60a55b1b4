//! Redis breaks, and requests are served without it; it is used again as soon as it is back.

use std::time::{Duration, Instant};

use deadpool_redis::redis::aio::MultiplexedConnection;
use serde_json::{Value, json};

use crate::support::{
    Answer, Bench, Flow, Latch, Node, Platform, Proxy,
    bench::{redis, redis_cmd},
    log_text,
    platform::{Call, hold_calls, success},
    until,
};

/// How long a request took, as the log tells it.
fn duration_ms(line: &Value) -> u64 {
    line["duration_ms"].as_u64().unwrap()
}

#[tokio::test]
async fn a_network_that_swallows_all_for_20_seconds_costs_half_a_second_and_leaves_nothing() {
    let mut bench = Bench::new().await;
    let proxy = bench.through_proxy("REDIS_URL").await;
    let worker = bench.worker().await;
    bench.requests(0..10).await;
    bench.all_ready(10).await;
    let before = worker.holdings(proxy.addr);

    proxy.both(Flow::Vanishes);
    let vanished = Instant::now();
    for number in 10.. {
        bench.requests(number..number + 1).await;
        assert_eq!(bench.rabbit.event().await.routing_key, "handoff.ready");
        if number == 10 {
            // Whoever meets it first trips the breaker, for all who come after.
            worker.logged_times(log_text::REQUEST_FINISHED, 11).await;
            assert_eq!(worker.lines(log_text::REDIS_CONNECTION_DISCARDED).len(), 1);
        }
        if vanished.elapsed() > Duration::from_secs(20) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut took: Vec<_> =
        worker.lines(log_text::REQUEST_FINISHED).iter().map(duration_ms).collect();
    took.sort_unstable();
    let (median, longest) = (took[took.len() / 2], took[took.len() - 1]);
    println!("{} requests took {median} ms at the median, {longest} ms at most", took.len());
    assert!(median < 150 && longest < 750, "{median} {longest}");
    worker.logged(log_text::REDIS_UNAVAILABLE).await;
    worker.holds_no_more_than(before, proxy.addr).await;

    proxy.both(Flow::Passes);
    worker.logged(log_text::REDIS_RECONNECTED).await;
    for id in ["r-again", "r-and-again"] {
        bench.rabbit.request(id, json!({ "userId": "user-0" })).await;
        assert_eq!(bench.rabbit.event().await.data()["reused"], true);
    }
    println!("before: {before:?}, after: {:?}", worker.holdings(proxy.addr));
    worker.holds_no_more_than(before, proxy.addr).await;
}

#[tokio::test]
async fn without_redis_requests_are_served_and_with_it_again_links_are_cached() {
    let node = Node::redis().await;
    let mut bench = Bench::on_own_redis(Platform::healthy().await, &node).await;
    let worker = bench.worker().await;
    bench.rabbit.request("r-1", json!({ "userId": "ann" })).await;
    bench.rabbit.event().await;
    node.kill().await;

    for id in ["r-2", "r-3"] {
        bench.rabbit.request(id, json!({ "userId": "ann" })).await;
        let event = bench.rabbit.event().await;
        assert_eq!(
            (event.routing_key.as_str(), &event.data()["reused"]),
            ("handoff.ready", &json!(false))
        );
    }
    assert!(worker.metric("handoff_cache_errors_total").await >= 2.0);
    let (status, page) = worker.page("/readyz").await;
    assert!(status == 200 && page.contains("degraded"), "{status} {page}");

    node.start().await;
    worker.logged(log_text::REDIS_RECONNECTED).await;
    // A link that was made meanwhile is the person's link from now on.
    bench.rabbit.request("r-4", json!({ "userId": "ann" })).await;
    let event = bench.rabbit.event().await;
    assert_eq!(
        (&event.data()["reused"], &event.data()["sessionId"]),
        (&json!(true), &json!("session-1"))
    );
    assert!(!worker.page("/readyz").await.1.contains("degraded"));
}

#[tokio::test]
async fn a_worker_starts_without_redis() {
    let mut bench = Bench::new().await;
    bench.set("REDIS_URL", "redis://127.0.0.1:1/0");
    let _worker = bench.worker().await;
    bench.rabbit.request("r-1", json!({ "userId": "ann" })).await;
    assert_eq!(bench.rabbit.event().await.routing_key, "handoff.ready");
}

#[tokio::test]
async fn a_silent_redis_holds_up_only_those_who_meet_it_first() {
    let mut bench = Bench::new().await;
    let proxy = bench.through_proxy("REDIS_URL").await;
    let worker = bench.worker().await;
    proxy.both(Flow::Waits);
    bench.rabbit.request("r-1", json!({ "userId": "ann" })).await;
    assert_eq!(bench.rabbit.event().await.routing_key, "handoff.ready");
    bench.rabbit.request("r-2", json!({ "userId": "ann" })).await;
    assert_eq!(bench.rabbit.event().await.routing_key, "handoff.ready");
    worker.logged(log_text::REDIS_UNAVAILABLE).await;
    proxy.both(Flow::Passes);
    worker.logged(log_text::REDIS_RECONNECTED).await;
    // The link that was made meanwhile is known now, and the claim that nobody answered is no more.
    bench.rabbit.request("r-3", json!({ "userId": "ann" })).await;
    let event = bench.rabbit.event().await;
    assert_eq!(
        (&event.data()["reused"], &event.data()["sessionId"]),
        (&json!(true), &json!("session-0"))
    );
}

#[tokio::test]
async fn without_redis_requests_at_once_in_one_worker_still_share_a_session() {
    let mut bench = Bench::new().await;
    bench.set("REDIS_URL", "redis://127.0.0.1:1/0");
    let (session, script) = hold_calls(|call| !call.is_token());
    bench.platform.set_script(script);
    let worker = bench.worker().await;
    for n in 0..10 {
        bench.rabbit.request(&format!("r-{n}"), json!({ "userId": "ann" })).await;
    }
    until("all are in flight", async || worker.metric("handoff_in_flight").await == 10.0).await;
    session.open();
    let events = bench.rabbit.events(10).await;
    assert!(events.iter().all(|event| event.data()["sessionId"] == "session-0"));
    assert_eq!(bench.platform.session_calls().len(), 1);
}

#[tokio::test]
async fn a_redis_that_was_frozen_costs_nobody_anything_once_it_is_back() {
    let node = Node::redis().await;
    let mut bench = Bench::on_own_redis(Platform::healthy().await, &node).await;
    let worker = bench.worker().await;
    node.freeze().await;
    for n in 0..10 {
        bench.rabbit.request(&format!("r-{n}"), json!({ "userId": format!("user-{n}") })).await;
    }
    bench.rabbit.events(10).await;
    worker.logged(log_text::REDIS_UNAVAILABLE).await;
    node.thaw().await;
    worker.logged(log_text::REDIS_RECONNECTED).await;
    for n in 0..10 {
        bench.rabbit.request(&format!("again-{n}"), json!({ "userId": format!("user-{n}") })).await;
    }
    let events = bench.rabbit.events(10).await;
    assert!(events.iter().all(|event| event.data()["reused"] == true));
    assert_eq!(bench.platform.session_calls().len(), 10);
}

#[tokio::test]
async fn a_renewal_without_redis_is_the_persons_link_once_it_is_back() {
    let node = Node::redis().await;
    let mut bench = Bench::on_own_redis(Platform::healthy().await, &node).await;
    let worker = bench.worker().await;
    bench.rabbit.request("r-1", json!({ "userId": "ann" })).await;
    bench.rabbit.event().await;
    node.freeze().await;
    bench.rabbit.request("r-2", json!({ "userId": "ann", "renew": true })).await;
    assert_eq!(bench.rabbit.event().await.data()["sessionId"], "session-1");
    worker.logged(log_text::REDIS_UNAVAILABLE).await;
    node.thaw().await;
    worker.logged(log_text::REDIS_RECONNECTED).await;
    bench.rabbit.request("r-3", json!({ "userId": "ann" })).await;
    assert_eq!(bench.rabbit.event().await.data()["sessionId"], "session-1");
    bench.rabbit.request("r-2", json!({ "userId": "ann", "renew": true })).await;
    assert_eq!(bench.rabbit.event().await.data()["sessionId"], "session-1", "it knows its own");
}

#[tokio::test]
async fn a_renewal_makes_one_session_even_if_redis_forgets_all_meanwhile() {
    let node = Node::redis().await;
    let mut bench = Bench::on_own_redis(Platform::healthy().await, &node).await;
    let worker = bench.worker().await;
    bench.rabbit.request("r-1", json!({ "userId": "ann" })).await;
    bench.rabbit.event().await;
    let (session, script) = hold_calls(|call| !call.is_token());
    bench.platform.set_script(script);
    bench.rabbit.request("r-2", json!({ "userId": "ann", "renew": true })).await;
    bench.platform.wait_for_calls(4).await;
    node.kill().await;
    worker.logged(log_text::REDIS_UNAVAILABLE).await;
    node.start().await;
    worker.logged(log_text::REDIS_RECONNECTED).await;
    session.open();
    assert_eq!(bench.rabbit.event().await.data()["sessionId"], "session-1");
    assert_eq!(bench.platform.session_calls().len(), 2);
}

#[tokio::test]
async fn a_redis_that_is_full_shows_as_degraded() {
    let node = Node::redis().await;
    let mut bench = Bench::on_own_redis(Platform::healthy().await, &node).await;
    let worker = bench.worker().await;
    let mut client = redis(&node.url).await;
    limit(&mut client, "1").await;
    bench.rabbit.request("r-1", json!({ "userId": "ann" })).await;
    assert_eq!(bench.rabbit.event().await.routing_key, "handoff.ready");
    let (status, page) = worker.page("/readyz").await;
    assert!(status == 200 && page.contains("degraded"), "{status} {page}");
    limit(&mut client, "0").await;
    bench.rabbit.request("r-2", json!({ "userId": "ann" })).await;
    bench.rabbit.event().await;
    assert!(!worker.page("/readyz").await.1.contains("degraded"));
}

#[tokio::test]
async fn what_a_full_redis_refused_is_stored_once_it_has_room() {
    let node = Node::redis().await;
    let mut bench = Bench::on_own_redis(Platform::healthy().await, &node).await;
    bench.set("IDV_TOKEN_TTL", "1h").set("LINK_MIN_LIFE", "10m");
    let _worker = bench.worker().await;
    let mut client = redis(&node.url).await;
    limit(&mut client, "1").await;
    bench.rabbit.request("r-1", json!({ "userId": "ann" })).await;
    bench.rabbit.event().await;
    let told = Instant::now();
    limit(&mut client, "0").await;
    until("the link is stored", async || !bench.cached().await.is_empty()).await;
    // Its life began when it was made.
    let longest = Duration::from_secs(50 * 60) - told.elapsed();
    let (_, _, left) = bench.cached().await.remove(0);
    assert!(Duration::from_millis(left.try_into().unwrap()) <= longest, "{left} ms are left");
    bench.rabbit.request("r-2", json!({ "userId": "ann" })).await;
    assert_eq!(bench.rabbit.event().await.data()["reused"], true);
    assert_eq!(bench.platform.session_calls().len(), 1);
}

#[tokio::test]
async fn a_redis_that_is_a_replica_is_told_as_one_that_is_away_until_it_takes_writes() {
    let node = Node::redis().await;
    let mut bench = Bench::on_own_redis(Platform::healthy().await, &node).await;
    let worker = bench.worker().await;
    let mut client = redis(&node.url).await;
    let mut follow = async |host: &str, port: &str| {
        let mut command = redis_cmd("REPLICAOF");
        command.arg(host).arg(port).query_async::<()>(&mut client).await.unwrap();
    };
    follow("127.0.0.1", "1").await;
    for number in 0..3 {
        bench.rabbit.request(&format!("r-{number}"), json!({ "userId": "ann" })).await;
        assert_eq!(bench.rabbit.event().await.routing_key, "handoff.ready");
        let (status, page) = worker.page("/readyz").await;
        assert!(status == 200 && page.contains("degraded"), "{status} {page}");
    }
    worker.logged(log_text::REDIS_UNAVAILABLE).await;
    assert_eq!(worker.lines(log_text::REDIS_UNAVAILABLE)[0][log_text::REDIS_CAUSE], "READONLY");
    follow("NO", "ONE").await;
    // The links that were made meanwhile are stored.
    worker.logged(log_text::REDIS_RECONNECTED).await;
    assert!(!worker.page("/readyz").await.1.contains("degraded"));
    bench.rabbit.request("r-again", json!({ "userId": "ann" })).await;
    assert_eq!(bench.rabbit.event().await.data()["reused"], true);
    assert_eq!(worker.lines(log_text::REDIS_UNAVAILABLE).len(), 1);
}

async fn limit(client: &mut MultiplexedConnection, bytes: &str) {
    let mut set = redis_cmd("CONFIG");
    set.arg("SET").arg("maxmemory").arg(bytes).query_async::<()>(client).await.unwrap();
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
    let mut bench = Bench::with(Platform::scripted(script).await).await;
    let direct = bench.settings["HANDOFF_REDIS_URL"].clone();
    let proxy = Proxy::to(&direct).await;
    bench.set("REDIS_URL", &proxy.url(&direct)).set("CONCURRENCY", "1");
    let alone = bench.worker().await;
    proxy.both(Flow::Waits);
    bench.rabbit.request("r-1", json!({ "userId": "ann" })).await;
    bench.platform.wait_for_calls(1).await;
    // Meanwhile another worker makes the link.
    bench.set("REDIS_URL", &direct);
    let _other = bench.worker().await;
    bench.rabbit.request("r-2", json!({ "userId": "ann" })).await;
    assert_eq!(bench.rabbit.event().await.data()["requestId"], "r-2");
    alone.logged(log_text::REDIS_UNAVAILABLE).await;
    proxy.both(Flow::Passes);
    alone.logged(log_text::REDIS_RECONNECTED).await;
    answer.open();
    let event = bench.rabbit.event().await;
    assert_eq!(
        (&event.data()["requestId"], &event.data()["reused"]),
        (&json!("r-1"), &json!(true))
    );
    assert_eq!(bench.platform.session_calls().len(), 1);
}
