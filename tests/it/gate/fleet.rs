//! Replicas that share a Redis, in an outage of the platform.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::checks::{
    assert_no_attempt_spent, expect_ready, failing_sessions, readiness, unavailable,
};
use crate::support::{
    Flow, Node, TestEnv, Worker, log_text,
    platform::{Call, success},
    redis,
};

const SECOND: Duration = Duration::from_secs(1);

/// The most calls that began within a second.
fn most_in_a_second(calls: &[Call]) -> usize {
    let within = |first: &Call| {
        calls.iter().filter(|call| call.at >= first.at && call.at - first.at < SECOND).count()
    };
    calls.iter().map(within).max().unwrap_or(0)
}

/// Starts workers that differ in their API keys, and waits until the breaker of each is open.
async fn start_paused(env: &mut TestEnv, count: usize) -> Vec<Worker> {
    let mut workers = vec![];
    for n in 0..count {
        env.set("IDV_API_KEY", &format!("key-{n}"));
        workers.push(env.start_worker().await);
    }
    env.publish_requests(0..count * 16).await;
    for worker in &workers {
        worker.wait_for_log(log_text::BREAKER_OPEN).await;
    }
    workers
}

#[tokio::test]
async fn replicas_send_at_most_five_calls_a_second_and_go_on_without_one_that_is_killed() {
    let mut env = TestEnv::builder().platform(failing_sessions).start().await;
    env.set("CONCURRENCY", "8");
    let mut workers = start_paused(&mut env, 4).await;
    let open = Instant::now();
    let probes = |env: &TestEnv| -> Vec<Call> {
        // The calls that opened the breakers may still arrive.
        env.platform.calls().into_iter().filter(|call| call.at > open + SECOND).collect()
    };
    // Each replica by itself probes four times a second at first.
    tokio::time::sleep(6 * SECOND).await;
    workers.pop().unwrap().kill().await;
    tokio::time::sleep(3 * SECOND).await;
    let calls = probes(&env);
    let most = most_in_a_second(&calls);
    // Five are allowed. On a busy machine one may be sent late; without permits, there are 32. Tokens are answered, so
    // that most probes are two calls: with one permit for both, there are 60 in 8 s.
    assert!(most <= 7, "{most} calls in a second");
    assert!((16..=40).contains(&calls.len()), "{} calls in 8 s", calls.len());
    let after = open + 6 * SECOND;
    assert!(calls.iter().any(|call| call.at > after + SECOND), "no probe without that replica");
    assert!(calls.iter().any(|call| !call.is_token()), "only tokens");

    env.platform.set_script(success);
    assert_eq!(expect_ready(&mut env, 64).await.len(), 64);
    for worker in &workers {
        assert_no_attempt_spent(&env, worker).await;
        assert_eq!(readiness(worker).await, (200, Value::Null));
    }
}

#[tokio::test]
async fn good_answer_to_one_replica_half_opens_the_breaker_of_another() {
    let mut served = TestEnv::builder().platform(unavailable).start().await;
    // Its platform stays down, so that only the other replica's answer can change anything.
    let mut failing = TestEnv::builder().platform(unavailable).start().await;
    failing.set("KEY_PREFIX", &served.name);
    let served_worker = served.start_worker().await;
    let failing_worker = failing.start_worker().await;
    served.publish_requests(0..16).await;
    failing.publish_requests(16..32).await;
    for worker in [&served_worker, &failing_worker] {
        worker.wait_for_log(log_text::BREAKER_OPEN).await;
        assert_eq!(readiness(worker).await, (503, json!(["platform"])));
    }
    served.platform.set_script(success);
    served_worker.wait_for_log(log_text::RESUMED).await;
    let answered = Instant::now();
    failing_worker.wait_for_log(log_text::HALF_OPEN_AFTER_ANSWER).await;
    let took = answered.elapsed();
    assert!(took < 4 * SECOND, "{took:?}");
    // The next request is the probe, which fails.
    failing_worker.wait_for_log(log_text::REOPENED).await;
    assert_eq!(expect_ready(&mut served, 16).await.len(), 16);
    failing.platform.set_script(success);
    assert_eq!(expect_ready(&mut failing, 16).await.len(), 16);
}

/// Asserts that each of two workers probes, and at most 3 s apart.
async fn assert_both_probe(env: &TestEnv) {
    let began = Instant::now();
    tokio::time::sleep(8 * SECOND).await;
    for n in 0..2 {
        let key = format!("key-{n}");
        let calls = env.platform.token_calls().into_iter();
        let calls = calls.filter(|call| call.at > began && call.header("authorization") == key);
        let mut times: Vec<_> = calls.map(|call| call.at).collect();
        times.insert(0, began);
        let longest = times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(SECOND * 8);
        assert!(longest < 4 * SECOND, "{key}: no probe for {longest:?} of {times:?}");
        assert!(times.len() > 2, "{key}: {times:?}");
    }
}

#[tokio::test]
async fn replicas_probe_by_themselves_without_redis() {
    let node = Node::redis().await;
    let mut env = TestEnv::builder().platform(unavailable).redis(&node).start().await;
    env.set("REDIS_PATIENCE", "0s");
    let workers = start_paused(&mut env, 2).await;
    node.kill().await;
    assert_both_probe(&env).await;
    env.platform.set_script(success);
    assert_eq!(expect_ready(&mut env, 32).await.len(), 32);
    assert_no_attempt_spent(&env, &workers[0]).await;
}

#[tokio::test]
async fn replicas_probe_by_themselves_while_redis_does_not_answer_or_refuses() {
    let node = Node::redis().await;
    let mut env = TestEnv::builder().platform(unavailable).redis(&node).start().await;
    env.set("REDIS_PATIENCE", "0s");
    let proxy = env.proxy("REDIS_URL").await;
    let _workers = start_paused(&mut env, 2).await;
    proxy.set_replies(Flow::Held);
    assert_both_probe(&env).await;
    proxy.set_replies(Flow::Forwarded);
    // A new connection is refused every script.
    redis::run(&mut redis::connect(&node.url).await, "ACL SETUSER default -evalsha").await;
    proxy.close_connections();
    assert_both_probe(&env).await;
}
