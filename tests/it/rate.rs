//! The limit on platform calls that all replicas keep together.

use std::time::{Duration, Instant};

use crate::support::{
    Flow, Latch, Node, Platform, TestEnv, log_text,
    platform::{Call, success},
    wait_until,
};

/// The most calls in any window of this length.
fn most_in(calls: &[Call], window: Duration) -> usize {
    let within = |first: &Call| {
        calls.iter().filter(|call| call.at >= first.at && call.at - first.at < window).count()
    };
    calls.iter().map(within).max().unwrap_or(0)
}

async fn publish(env: &TestEnv, count: usize) {
    for n in 0..count {
        env.publish_request(&format!("r-{n}"), &format!("user-{n}")).await;
    }
}

#[tokio::test]
async fn replicas_keep_within_the_limit_together_and_use_it() {
    let mut env = TestEnv::start().await;
    env.set("IDV_RATE_LIMIT", "20/1s").set("RETRY_BUDGET", "0s");
    let _workers = [env.start_worker().await, env.start_worker().await, env.start_worker().await];
    let began = Instant::now();
    publish(&env, 40).await;
    let events = env.rabbitmq.next_events(40).await;
    assert!(events.iter().all(|event| event.routing_key == "handoff.ready"));
    let calls = env.platform.calls();
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
    let mut env = TestEnv::builder().redis(&node).start().await;
    env.set("IDV_RATE_LIMIT", "20/1s").set("RETRY_BUDGET", "0s");
    let workers = [env.start_worker().await, env.start_worker().await];
    node.kill().await;
    for worker in &workers {
        worker.wait_for_log(log_text::REDIS_UNAVAILABLE).await;
    }
    let began = Instant::now();
    publish(&env, 30).await;
    env.rabbitmq.next_events(30).await;
    let (took, calls) = (began.elapsed(), env.platform.calls());
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
    let mut env = TestEnv::builder().platform(bench_platform).start().await;
    let proxy = env.proxy("REDIS_URL").await;
    env.set("IDV_RATE_LIMIT", "1000/1s");
    let _worker = env.start_worker().await;
    // How often Redis has been asked to run a script.
    let mut sent = Vec::new();
    let mut scripts = || {
        sent.extend(proxy.take_sent());
        sent.windows(7).filter(|word| word == b"EVALSHA").count()
    };
    proxy.set_replies(Flow::Held);
    env.publish_request("r-1", "ann").await;
    wait_until("claim and leave are asked for together", async || scripts() == 2).await;
    proxy.set_replies(Flow::Forwarded);
    env.platform.wait_for_calls(1).await;
    wait_until("leave for the session is asked for", async || scripts() == 3).await;
    // From here Redis is silent; the session call is made all the same.
    proxy.set_replies(Flow::Held);
    token.open();
    env.platform.wait_for_calls(2).await;
    proxy.set_replies(Flow::Forwarded);
    env.rabbitmq.next_event().await;
}
