//! Requests that expire before they are served.

use std::time::Duration;

use serde_json::json;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::support::{
    Answer, TestEnv,
    platform::{Call, hold_calls, success},
    wait_until,
};

#[tokio::test]
async fn expired_request_fails_without_a_dead_letter() {
    let mut env = TestEnv::start().await;
    let worker = env.start_worker().await;
    env.rabbitmq
        .publish_request("r-1", json!({ "userId": "ann", "expiresAt": "2020-01-01T00:00:00Z" }))
        .await;
    let event = env.rabbitmq.next_event().await;
    assert_eq!(event.routing_key, "handoff.failed");
    assert_eq!(event.data()["reason"]["code"], "request_expired");
    assert_eq!(event.data()["userId"], "ann");
    worker.wait_for_finished(1).await;
    assert_eq!(env.dead_letters().await, 0);
    assert_eq!(env.platform.calls().len(), 0);
}

#[tokio::test]
async fn expired_request_with_an_unroutable_event_becomes_a_dead_letter() {
    let env = TestEnv::builder().without_event_queue().start().await;
    let _worker = env.start_worker().await;
    let data = json!({ "userId": "ann", "expiresAt": "2020-01-31T12:00:00Z" });
    env.rabbitmq.publish_request("r-1", data).await;
    let dead = env.rabbitmq.take_dead_letter().await;
    assert_eq!(dead.text_header("x-handoff-reason"), "request_expired");
    assert!(env.platform.calls().is_empty());
}

#[tokio::test]
async fn request_that_expires_between_tries_fails_promptly() {
    let script = |call: &Call| if call.is_token() { success(call) } else { Answer::status(503) };
    let mut env = TestEnv::builder().platform(script).start().await;
    let _worker = env.start_worker().await;
    let end = OffsetDateTime::now_utc() + Duration::from_secs(1);
    let expires_at = end.format(&Rfc3339).unwrap();
    env.rabbitmq.publish_request("r-1", json!({ "userId": "ann", "expiresAt": expires_at })).await;
    let event = env.rabbitmq.next_event().await;
    assert_eq!(event.data()["reason"]["code"], "request_expired");
    let late = OffsetDateTime::now_utc() - end;
    assert!(late < Duration::from_secs(2), "{late}");
}

#[tokio::test]
async fn request_that_expires_between_the_calls_makes_no_session() {
    let (latch, script) = hold_calls(|_| true);
    let mut env = TestEnv::builder().platform(script).start().await;
    let _worker = env.start_worker().await;
    let end = OffsetDateTime::now_utc() + Duration::from_millis(1_500);
    let expires_at = end.format(&Rfc3339).unwrap();
    env.rabbitmq.publish_request("r-1", json!({ "userId": "ann", "expiresAt": expires_at })).await;
    env.platform.wait_for_calls(1).await;
    wait_until("the request has expired", async || OffsetDateTime::now_utc() > end).await;
    latch.open();
    assert_eq!(env.rabbitmq.next_event().await.data()["reason"]["code"], "request_expired");
    assert!(env.platform.session_calls().is_empty());
}
