//! What ends the wait of a held request other than the platform.

use std::time::{Duration, Instant, SystemTime};

use lapin::{BasicProperties, types::AMQPValue};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::checks::{expect_ready, failing_sessions, readiness, unavailable};
use crate::support::{
    Answer, Flow, TestEnv, log_text,
    platform::success,
    rabbitmq::{field_table, long_string},
    wait_until,
};

/// Publishes a request that expires after `duration`.
async fn publish_expiring(env: &TestEnv, duration: Duration) {
    let expires_at = handoff::message::format_date_time(SystemTime::now() + duration);
    let data = json!({ "userId": "e", "expiresAt": expires_at });
    env.rabbitmq.publish_request("e", data).await;
}

#[tokio::test]
async fn held_request_honours_its_expiry_and_a_shutdown() {
    let mut env = TestEnv::builder().platform(unavailable).start().await;
    let worker = env.start_worker().await;
    env.publish_requests(0..5).await;
    worker.wait_for_log(log_text::BREAKER_OPEN).await;
    publish_expiring(&env, Duration::from_secs(1)).await;
    let event = env.rabbitmq.next_event().await;
    assert_eq!(event.data()["reason"]["code"], "request_expired");
    let signalled = Instant::now();
    worker.stop().await;
    assert!(signalled.elapsed() < Duration::from_secs(2), "{:?}", signalled.elapsed());
    env.rabbitmq.wait_for_depth(5).await;
}

#[tokio::test]
async fn pause_ends_without_any_request_waiting() {
    let mut env = TestEnv::builder().platform(|_| Answer::status(403)).start().await;
    let worker = env.start_worker().await;
    publish_expiring(&env, Duration::from_secs(2)).await;
    worker.wait_for_log(log_text::TOKEN_REFUSED).await;
    assert_eq!(env.rabbitmq.next_event().await.data()["reason"]["code"], "request_expired");
    env.platform.set_script(success);
    worker.wait_for_log(log_text::RESUMED).await;
    assert_eq!(readiness(&worker).await, (200, Value::Null));
    assert!(env.platform.session_calls().is_empty());
}

#[tokio::test]
async fn cached_link_is_published_while_calls_are_held() {
    let mut env = TestEnv::start().await;
    let worker = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    env.rabbitmq.next_event().await;
    env.platform.set_script(unavailable);
    env.publish_requests(0..6).await;
    worker.wait_for_log(log_text::BREAKER_OPEN).await;
    env.publish_request("r-2", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["reused"], true);
}

#[tokio::test]
async fn held_requests_are_released_when_the_connection_is_lost() {
    let mut env = TestEnv::builder().platform(unavailable).start().await;
    let proxy = env.amqp_proxy_with_heartbeat(1).await;
    env.set("CONCURRENCY", "3");
    let worker = env.start_worker().await;
    env.publish_requests(0..3).await;
    worker.wait_for_log(log_text::BREAKER_OPEN).await;
    proxy.set_flow(Flow::Held);
    worker.wait_for_log(log_text::RABBITMQ_LOST).await;
    proxy.set_flow(Flow::Forwarded);
    // RabbitMQ will deliver these again: held on, they would occupy the whole concurrency.
    wait_until("they are released", async || worker.log_lines(log_text::HANDED_BACK).len() == 3)
        .await;
    env.platform.set_script(success);
    expect_ready(&mut env, 3).await;
}

#[tokio::test]
async fn connection_lost_twice_in_a_pause_delays_no_cached_link() {
    let mut env = TestEnv::start().await;
    let proxy = env.proxy("AMQP_URL").await;
    let worker = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    env.rabbitmq.next_event().await;
    env.platform.set_script(|_| Answer::status(403));
    env.publish_requests(0..3).await;
    worker.wait_for_in_flight(3).await;
    // The second loss follows while a request is held, which might have caused it.
    proxy.close_connections();
    worker.wait_for_logs(log_text::CONSUMING, 2).await;
    wait_until("one is delivered again", async || worker.metric("handoff_in_flight").await > 0.0)
        .await;
    proxy.close_connections();
    worker
        .wait_for_log_with(log_text::CONSUMING, |line| {
            line[log_text::WINDOW] == log_text::WINDOW_ONE_AT_A_TIME
        })
        .await;
    env.publish_request("r-2", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["reused"], true);
}

/// Starts a worker that holds no request for longer than 300 ms.
///
/// In the test's process, because no setting changes the hold limit.
async fn start_with_short_hold_limit(env: &TestEnv) -> (JoinHandle<()>, CancellationToken) {
    let mut settings = env.parsed_settings();
    settings.worker.hold_limit = Duration::from_millis(300);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stop = CancellationToken::new();
    let run = handoff::worker::run(settings, listener, stop.clone());
    (tokio::spawn(async { run.await.unwrap() }), stop)
}

#[tokio::test]
async fn request_held_too_long_is_requeued_and_spends_no_attempt() {
    let mut env = TestEnv::builder().platform(|_| Answer::status(401)).start().await;
    env.set("RETRY_DELAYS", "100ms");
    env.declare_topology().await;
    let (worker, stop) = start_with_short_hold_limit(&env).await;
    // One attempt is already spent, and stays counted.
    let properties =
        BasicProperties::default().with_message_id("r-1".into()).with_headers(field_table(&[
            ("mine", long_string("kept")),
            ("x-handoff-attempt", AMQPValue::LongInt(1)),
        ]));
    env.rabbitmq.publish(json!({ "userId": "ann" }).to_string(), properties).await;
    env.platform.wait_for_calls(1).await;
    // Longer than the hold limit: the request is requeued, delivered and held again.
    tokio::time::sleep(Duration::from_secs(1)).await;
    stop.cancel();
    worker.await.unwrap();
    let message = env.rabbitmq.take(&env.rabbitmq.queue.clone()).await;
    assert_eq!(message.text_header("mine"), "kept");
    assert_eq!(message.header("x-handoff-attempt"), Some(&AMQPValue::LongLongInt(1)));
    assert_eq!(message.text_header("x-handoff-request-id"), "r-1");
    // A requeued request is a copy: its delivery count starts at 0, so that it never reaches the
    // delivery limit.
    let count = message.header("x-delivery-count").cloned();
    assert!(
        count.is_none_or(|count| count == AMQPValue::LongLongInt(1)),
        "returned once, at shutdown"
    );
    assert_eq!(env.dead_letters().await, 0);
}

#[tokio::test]
async fn hold_limit_ends_a_longer_retry_budget() {
    let mut env = TestEnv::builder().platform(failing_sessions).start().await;
    env.set("RETRY_DELAYS", "100ms").set("RETRY_BUDGET", "1h");
    env.declare_topology().await;
    let (worker, stop) = start_with_short_hold_limit(&env).await;
    env.publish_request("r-1", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["reason"]["code"], "retries_exhausted");
    stop.cancel();
    worker.await.unwrap();
}
