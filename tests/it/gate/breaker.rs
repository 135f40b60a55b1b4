//! The circuit breaker: calls that fail for many requests, and the probes that follow.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::checks::{
    PAUSED, assert_no_attempt_spent, expect_ready, failing_sessions, readiness, unavailable,
};
use crate::support::{
    Answer, Latch, TestEnv, log_text,
    platform::{Call, hold_calls, success},
};

#[tokio::test]
async fn outage_costs_few_calls_and_no_attempt_and_ends_promptly() {
    let mut env = TestEnv::builder().platform(unavailable).start().await;
    env.set("RETRY_BUDGET", "2s");
    let workers = [env.start_worker().await, env.start_worker().await];
    let began = Instant::now();
    env.publish_requests(0..300).await;
    for worker in &workers {
        worker.wait_for_log(log_text::BREAKER_OPEN).await;
        assert_eq!(readiness(worker).await, (503, json!(["platform"])));
        assert_eq!(worker.metric(PAUSED).await, 1.0);
    }
    // Five failures open a breaker. Probes follow after 0.75 s, 1.5 s later, and then every 2.5 s.
    env.platform.wait_for_calls(2 * 8).await;
    let took = began.elapsed();
    assert!(took > Duration::from_secs(4), "{took:?}");
    env.platform.set_script(success);
    let recovered = Instant::now();
    env.rabbitmq.next_event().await;
    assert!(recovered.elapsed() < Duration::from_secs(4), "{:?}", recovered.elapsed());
    assert_eq!(expect_ready(&mut env, 299).await.len(), 299);
    assert_eq!(env.platform.session_calls().len(), 300);
    for worker in &workers {
        assert_no_attempt_spent(&env, worker).await;
        assert_eq!(worker.log_lines(log_text::BREAKER_OPEN).len(), 1);
        assert_eq!(worker.log_lines(log_text::RESUMED).len(), 1);
        assert_eq!(readiness(worker).await, (200, Value::Null));
        assert_eq!(worker.metric(PAUSED).await, 0.0);
    }
}

#[tokio::test]
async fn open_breaker_spends_no_attempt_even_without_a_retry_budget() {
    let mut env = TestEnv::builder().platform(unavailable).start().await;
    env.set("RETRY_BUDGET", "0s");
    env.declare_topology().await;
    env.publish_requests(0..20).await;
    let worker = env.start_worker().await;
    worker.wait_for_log(log_text::BREAKER_OPEN).await;
    env.platform.set_script(success);
    assert_eq!(expect_ready(&mut env, 20).await.len(), 20);
    assert_no_attempt_spent(&env, &worker).await;
}

#[tokio::test]
async fn breaker_opened_by_session_calls_keeps_their_tokens() {
    let mut env = TestEnv::builder().platform(failing_sessions).start().await;
    env.set("RETRY_BUDGET", "1s").set("CONCURRENCY", "8");
    let worker = env.start_worker().await;
    env.publish_requests(0..8).await;
    worker.wait_for_log(log_text::BREAKER_OPEN).await;
    env.platform.set_script(success);
    assert_eq!(expect_ready(&mut env, 8).await.len(), 8);
    assert_eq!(env.platform.token_calls().len(), 8);
    assert_no_attempt_spent(&env, &worker).await;
}

#[tokio::test]
async fn one_failing_request_does_not_open_the_breaker() {
    let poison = |call: &Call| {
        if call.user_is("poison") { Answer::status(500) } else { success(call) }
    };
    let mut env = TestEnv::builder().platform(poison).start().await;
    env.set("RETRY_BUDGET", "700ms").set("RETRY_DELAYS", "100ms,200ms");
    let worker = env.start_worker().await;
    env.publish_request("poison", "poison").await;
    let event = env.rabbitmq.next_event().await;
    assert_eq!(event.data()["reason"]["code"], "retries_exhausted");
    assert_eq!(event.data()["attempts"], 3);
    assert!(
        env.platform.session_calls().len() > 5,
        "enough failures to open a breaker, had others failed too"
    );
    env.publish_requests(0..1).await;
    expect_ready(&mut env, 1).await;
    assert!(worker.log_lines(log_text::BREAKER_OPEN).is_empty());
}

#[tokio::test]
async fn token_that_expires_while_held_is_replaced() {
    let mut env = TestEnv::builder().platform(failing_sessions).start().await;
    env.set("IDV_TOKEN_TTL", "5s").set("LINK_MIN_LIFE", "2s").set("CONCURRENCY", "4");
    let worker = env.start_worker().await;
    env.publish_requests(0..4).await;
    worker.wait_for_log(log_text::BREAKER_OPEN).await;
    // Probes use each token until it expires; then they request new ones.
    env.platform.wait_for_calls(4 + 5 + 3).await;
    env.platform.set_script(success);
    for event in env.rabbitmq.next_events(4).await {
        let event = event.json();
        // RFC 3339 in UTC, so the order of the texts is the order of the times.
        let expires_at = event["data"]["expiresAt"].as_str().unwrap();
        assert!(expires_at > event["time"].as_str().unwrap(), "{event}");
    }
    assert_no_attempt_spent(&env, &worker).await;
}

#[tokio::test]
async fn slow_platform_is_called_by_all_requests_at_once() {
    let (latch, script) = hold_calls(|_| true);
    let mut env = TestEnv::builder().platform(script).start().await;
    let _worker = env.start_worker().await;
    env.publish_requests(0..64).await;
    env.platform.wait_for_calls(64).await;
    latch.open();
    assert_eq!(expect_ready(&mut env, 64).await.len(), 64);
}

#[tokio::test]
async fn hanging_probe_spends_no_attempt_when_another_closes_the_breaker() {
    let never = Latch::closed();
    let silent = move |call: &Call| success(call).held_by(&never);
    let mut env = TestEnv::builder().platform(silent).start().await;
    // A probe times out later than the next probe begins.
    env.set("IDV_TIMEOUT", "4s").set("RETRY_BUDGET", "2s").set("CONCURRENCY", "8");
    let worker = env.start_worker().await;
    env.publish_requests(0..16).await;
    worker.wait_for_log(log_text::BREAKER_OPEN).await;
    let before = env.platform.calls().len();
    // The third probe is pending; it begins 2.5 s before the fourth.
    env.platform.wait_for_calls(before + 3).await;
    env.platform.set_script(success);
    assert_eq!(expect_ready(&mut env, 16).await.len(), 16);
    worker.wait_for_finished(16).await;
    assert_no_attempt_spent(&env, &worker).await;
}
