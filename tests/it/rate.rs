//! The limit on platform calls that all replicas keep together.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{
    Bench, Flow, Latch, Node, Platform, log_text,
    platform::{Call, success},
    until,
};

/// The most calls in any window of this length.
fn most_in(calls: &[Call], window: Duration) -> usize {
    let within = |first: &Call| {
        calls.iter().filter(|call| call.at >= first.at && call.at - first.at < window).count()
    };
    calls.iter().map(within).max().unwrap_or(0)
}

async fn publish(bench: &Bench, count: usize) {
    for n in 0..count {
        bench.rabbit.request(&format!("r-{n}"), json!({ "userId": format!("user-{n}") })).await;
    }
}

#[tokio::test]
async fn replicas_keep_within_the_limit_together_and_use_it() {
    let mut bench = Bench::new().await;
    bench.set("IDV_RATE_LIMIT", "20/1s").set("RETRY_BUDGET", "0s");
    let _workers = [bench.worker().await, bench.worker().await, bench.worker().await];
    let began = Instant::now();
    publish(&bench, 40).await;
    let events = bench.rabbit.events(40).await;
    assert!(events.iter().all(|event| event.routing_key == "handoff.ready"));
    let calls = bench.platform.calls();
    assert_eq!(calls.len(), 80);
    let most = most_in(&calls, Duration::from_secs(1));
    assert!(most <= 40, "{most} in a second");
    // Half a second's worth may come at once, the rest at twenty a second.
    let took = began.elapsed();
    assert!(took > Duration::from_secs(3) && took < Duration::from_secs(6), "{took:?}");
    // Who has a token goes first: the first link does not wait for everybody's token.
    let first_session = calls.iter().position(|call| !call.is_token()).unwrap();
    assert!(first_session < 15, "{first_session} tokens before the first session");
}

#[tokio::test]
async fn without_redis_each_replica_keeps_to_its_share() {
    let node = Node::redis().await;
    let mut bench = Bench::on_own_redis(Platform::healthy().await, &node).await;
    bench.set("IDV_RATE_LIMIT", "20/1s").set("RETRY_BUDGET", "0s");
    let workers = [bench.worker().await, bench.worker().await];
    node.kill().await;
    for worker in &workers {
        worker.logged(log_text::REDIS_UNAVAILABLE).await;
    }
    let began = Instant::now();
    publish(&bench, 30).await;
    bench.rabbit.events(30).await;
    let (took, calls) = (began.elapsed(), bench.platform.calls());
    let most = most_in(&calls, Duration::from_secs(1));
    assert!(most <= 24, "{most} in a second");
    assert!(took < Duration::from_secs(6), "{took:?}");
}

#[tokio::test]
async fn leave_to_call_comes_with_what_is_waited_for_anyway() {
    let bench_platform = Platform::healthy().await;
    let token = Latch::closed();
    bench_platform.set_script({
        let token = token.clone();
        move |call| if call.is_token() { success(call).held_by(&token) } else { success(call) }
    });
    let mut bench = Bench::with(bench_platform).await;
    let proxy = bench.through_proxy("REDIS_URL").await;
    bench.set("IDV_RATE_LIMIT", "1000/1s");
    let _worker = bench.worker().await;
    // How often Redis has been asked to run a script.
    let mut sent = Vec::new();
    let mut scripts = || {
        sent.extend(proxy.take_sent());
        sent.windows(7).filter(|word| word == b"EVALSHA").count()
    };
    proxy.replies(Flow::Waits);
    bench.rabbit.request("r-1", json!({ "userId": "ann" })).await;
    until("claim and leave are asked for together", async || scripts() == 2).await;
    proxy.replies(Flow::Passes);
    bench.platform.wait_for_calls(1).await;
    until("leave for the session is asked for", async || scripts() == 3).await;
    // From here Redis is silent; the session call is made all the same.
    proxy.replies(Flow::Waits);
    token.open();
    bench.platform.wait_for_calls(2).await;
    proxy.replies(Flow::Passes);
    bench.rabbit.event().await;
}
