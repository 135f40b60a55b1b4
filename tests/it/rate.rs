//! The limit on platform calls that all replicas share.

use std::time::{Duration, Instant};

use crate::support::{
    Flow, Node, TestEnv, log_text,
    platform::{Call, hold_calls},
    wait_until,
};

/// The most calls in any window of this duration.
fn most_in(calls: &[Call], window: Duration) -> usize {
    let within = |first: &Call| {
        calls.iter().filter(|call| call.at >= first.at && call.at - first.at < window).count()
    };
    calls.iter().map(within).max().unwrap_or(0)
}

#[tokio::test]
async fn replicas_share_the_limit_and_use_all_of_it() {
    let mut env = TestEnv::start().await;
    env.set("IDV_RATE_LIMIT", "20/1s").set("RETRY_BUDGET", "0s");
    let _workers = [env.start_worker().await, env.start_worker().await, env.start_worker().await];
    let began = Instant::now();
    env.publish_requests(0..40).await;
    let events = env.rabbitmq.next_events(40).await;
    assert!(events.iter().all(|event| event.routing_key == "handoff.ready"));
    let calls = env.platform.calls();
    assert_eq!(calls.len(), 80);
    let most = most_in(&calls, Duration::from_secs(1));
    assert!(most <= 40, "{most} in a second");
    // The bucket holds the calls of half a second; the rest are made at 20 a second.
    let took = began.elapsed();
    assert!(took > Duration::from_secs(3) && took < Duration::from_secs(6), "{took:?}");
    // Session calls go first: the first link does not wait for every request's token.
    let first_session = calls.iter().position(|call| !call.is_token()).unwrap();
    assert!(first_session < 15, "{first_session} tokens before the first session");
}

#[tokio::test]
async fn replica_without_redis_keeps_to_its_share_of_the_limit() {
    let node = Node::redis().await;
    let mut env = TestEnv::builder().redis(&node).start().await;
    env.set("IDV_RATE_LIMIT", "20/1s").set("RETRY_BUDGET", "0s").set("REDIS_PATIENCE", "0s");
    let workers = [env.start_worker().await, env.start_worker().await];
    node.kill().await;
    for worker in &workers {
        worker.wait_for_log(log_text::REDIS_UNAVAILABLE).await;
    }
    let began = Instant::now();
    env.publish_requests(0..30).await;
    env.rabbitmq.next_events(30).await;
    let took = began.elapsed();
    let most = most_in(&env.platform.calls(), Duration::from_secs(1));
    assert!(most <= 24, "{most} in a second");
    assert!(took < Duration::from_secs(6), "{took:?}");
}

#[tokio::test]
async fn permit_is_fetched_together_with_the_claim_and_the_token() {
    let (token, script) = hold_calls(Call::is_token);
    let mut env = TestEnv::builder().platform(script).start().await;
    let proxy = env.proxy("REDIS_URL").await;
    env.set("IDV_RATE_LIMIT", "1000/1s");
    let _worker = env.start_worker().await;
    // How many scripts the worker has had Redis run.
    let mut sent = Vec::new();
    let mut scripts = || {
        sent.extend(proxy.take_sent());
        sent.windows(7).filter(|word| word == b"EVALSHA").count()
    };
    proxy.set_replies(Flow::Held);
    env.publish_request("r-1", "ann").await;
    wait_until("claim and permit are requested together", async || scripts() == 2).await;
    proxy.set_replies(Flow::Forwarded);
    env.platform.wait_for_calls(1).await;
    wait_until("the permit for the session call is requested", async || scripts() == 3).await;
    // The session call is made although Redis is silent from here on.
    proxy.set_replies(Flow::Held);
    token.open();
    env.platform.wait_for_calls(2).await;
    proxy.set_replies(Flow::Forwarded);
    env.rabbitmq.next_event().await;
}
