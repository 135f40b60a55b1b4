//! Transient failures: retries in the process, retry queues, and what happens when both end.

use lapin::{
    BasicProperties, Channel,
    types::{AMQPValue, FieldTable, ShortString},
};
use serde_json::json;

use crate::support::{
    Answer, TestEnv, log_text,
    platform::{Call, hold_calls, success},
    rabbitmq::{field_table, long_string},
};

#[tokio::test]
async fn request_that_joins_a_failing_call_late_has_its_full_budget() {
    let mut env = TestEnv::builder().platform(|_| Answer::status(500)).start().await;
    env.set("RETRY_BUDGET", "3s");
    let worker = env.start_worker().await;
    env.publish_request("early", "ann").await;
    // The delays double from 200 ms, so the fourth call is more than a second after the first.
    env.platform.wait_for_calls(4).await;
    env.publish_request("late", "ann").await;
    let first = worker.wait_for_finished(1).await;
    assert_eq!(first["request_id"], "early");
    assert_eq!(first["outcome"], "retried");
    env.platform.set_script(success);
    let event = env.rabbitmq.next_event().await;
    assert_eq!(event.data()["requestId"], "late");
    assert_eq!(event.routing_key, "handoff.ready");
}

#[tokio::test]
async fn transient_failure_is_retried_in_the_process() {
    let script = |call: &Call| match (call.is_token(), call.nth) {
        (true, 0) => Answer::status(500),
        (true, 1) => Answer::json(&json!({ "authorization": "control\u{7}character" })),
        (true, 2) => Answer::json(&json!({ "authorization": " spaces at its ends " })),
        (false, 0) => Answer::status(503).header("retry-after", "1"),
        (false, 1) => Answer::status(302).header("location", "http://127.0.0.1:1/elsewhere"),
        (false, 2) => Answer { body: vec![b' '; 65 * 1024], ..Answer::status(200) },
        _ => success(call),
    };
    let mut env = TestEnv::builder().platform(script).start().await;
    let worker = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    let event = env.rabbitmq.next_event().await;
    assert_eq!(event.routing_key, "handoff.ready", "{}", event.json());
    let sessions = env.platform.session_calls();
    assert_eq!(env.platform.token_calls().len(), 4);
    assert_eq!(sessions.len(), 4);
    // The same token and request have the same key, so that the platform recognizes a repeat.
    let keys: std::collections::HashSet<_> =
        sessions.iter().map(|call| call.header("idempotency-key")).collect();
    assert_eq!(keys.len(), 1);
    let line = worker.wait_for_finished(1).await;
    assert_eq!(line["attempt"], 1);
    assert!(line["duration_ms"].as_u64().unwrap() >= 1_000, "Retry-After is honoured");
}

#[tokio::test]
async fn call_is_repeated_after_its_timeout() {
    let (_never, script) = hold_calls(|call| call.nth == 0);
    let mut env = TestEnv::builder().platform(script).start().await;
    env.set("IDV_TIMEOUT", "300ms");
    let worker = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.ready");
    for call in ["token", "session"] {
        let series = format!("handoff_platform_calls_total{{call=\"{call}\",outcome=\"timeout\"}}");
        assert_eq!(worker.metric(&series).await, 1.0, "{call}");
    }
}

#[tokio::test]
async fn unreachable_platform_spends_an_attempt() {
    let mut env = TestEnv::start().await;
    env.set("IDV_URL", "http://127.0.0.1:1").set("RETRY_BUDGET", "500ms");
    let worker = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    let line = worker.wait_for_finished(1).await;
    assert_eq!(line["outcome"], "retried");
    assert_eq!(line["error"], log_text::TOKEN_CALL_UNCONNECTED);
}

#[tokio::test]
async fn request_that_outlasts_its_budget_passes_the_retry_queues_and_becomes_a_dead_letter() {
    let script = |call: &Call| if call.is_token() { success(call) } else { Answer::status(500) };
    let mut env = TestEnv::builder().platform(script).start().await;
    env.set("RETRY_BUDGET", "0s").set("RETRY_DELAYS", "200ms,300ms");
    let worker = env.start_worker().await;
    let properties = BasicProperties::default()
        .with_expiration("60000".into())
        .with_headers(field_table(&[("mine", long_string("kept"))]));
    env.rabbitmq.publish(json!({ "userId": "ann" }).to_string(), properties).await;
    let event = env.rabbitmq.next_event().await;
    let data = event.data();
    assert_eq!(data["reason"]["code"], "retries_exhausted");
    assert_eq!(data["attempts"], 3);
    let dead = env.rabbitmq.take_dead_letter().await;
    assert_eq!(dead.text_header("mine"), "kept");
    assert_eq!(dead.header("x-handoff-attempt"), Some(&AMQPValue::LongLongInt(3)));
    assert_eq!(dead.body, json!({ "userId": "ann" }).to_string().into_bytes());
    // The request had no id: the one that the worker generated stays with it.
    let id = dead.text_header("x-handoff-request-id");
    assert_eq!(json!(id), data["requestId"]);
    for (attempt, outcome) in [(1, "retried"), (2, "retried"), (3, "failed")] {
        let line = worker.wait_for_finished(attempt).await;
        assert_eq!(line["outcome"], outcome);
        assert_eq!(line["request_id"], id);
        assert_eq!(line["attempt"], attempt);
    }
    // All three session calls used the same token.
    assert_eq!(env.platform.token_calls().len(), 1);
    assert_eq!(env.platform.session_calls().len(), 3);
}

#[tokio::test]
async fn second_attempt_serves_the_request() {
    let script = |call: &Call| {
        if !call.is_token() && call.nth == 0 { Answer::status(500) } else { success(call) }
    };
    let mut env = TestEnv::builder().platform(script).start().await;
    env.set("RETRY_BUDGET", "0s").set("RETRY_DELAYS", "200ms");
    let worker = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.ready");
    assert_eq!(worker.wait_for_finished(2).await["attempt"], 2);
}

#[tokio::test]
async fn request_with_an_unroutable_event_is_retried_and_keeps_its_link() {
    let mut env = TestEnv::builder().without_event_queue().start().await;
    env.set("RETRY_DELAYS", "200ms,300ms");
    let worker = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    let dead = env.rabbitmq.take_dead_letter().await;
    assert_eq!(dead.text_header("x-handoff-reason"), "retries_exhausted");
    assert_eq!(dead.header("x-handoff-attempt"), Some(&AMQPValue::LongLongInt(3)));
    assert_eq!(env.platform.session_calls().len(), 1, "the retries reused the cached link");
    worker.wait_for_finished(3).await;
    // Once a queue is bound again, the next request gets the same link.
    env.rabbitmq.consume_events().await;
    env.publish_request("r-2", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["reused"], true);
}

/// Binds a queue that rejects every event, until the returned channel is dropped.
async fn bind_full_queue(env: &TestEnv, key: &str) -> (Channel, ShortString) {
    let channel = env.rabbitmq.open_channel().await;
    let arguments = field_table(&[
        ("x-max-length", AMQPValue::LongInt(0)),
        ("x-overflow", long_string("reject-publish")),
    ]);
    let exclusive = lapin::options::QueueDeclareOptions { exclusive: true, ..Default::default() };
    let full = channel.queue_declare("".into(), exclusive, arguments).await.unwrap();
    let full = full.name().clone();
    let exchange = env.rabbitmq.event_exchange.as_str().into();
    channel
        .queue_bind(full.clone(), exchange, key.into(), Default::default(), FieldTable::default())
        .await
        .unwrap();
    (channel, full)
}

#[tokio::test]
async fn failed_event_rejected_by_a_full_queue_blocks_no_other_request() {
    let mut env = TestEnv::start().await;
    env.set("CONCURRENCY", "4");
    let worker = env.start_worker().await;
    let _full = bind_full_queue(&env, "handoff.failed").await;
    for _ in 0..8 {
        env.rabbitmq.publish("not a request", Default::default()).await;
    }
    env.publish_request("r-1", "ann").await;
    // The other bound queue accepts the event: a rejection by one queue rejects it all the same.
    worker.wait_for_finished(9).await;
    let ready = "handoff_requests_total{outcome=\"ready\"}";
    assert_eq!(worker.metric(ready).await, 1.0);
    assert_eq!(env.dead_letters().await, 8);
    assert_eq!(
        env.rabbitmq.take_dead_letter().await.text_header("x-handoff-reason"),
        "invalid_request"
    );
}

#[tokio::test]
async fn ready_event_rejected_by_a_full_queue_is_retried() {
    let mut env = TestEnv::builder().without_event_queue().start().await;
    env.set("RETRY_DELAYS", "300ms");
    let worker = env.start_worker().await;
    let (channel, full) = bind_full_queue(&env, "#").await;
    env.publish_request("r-1", "ann").await;
    assert_eq!(worker.wait_for_finished(1).await["outcome"], "retried");
    channel.queue_delete(full, Default::default()).await.unwrap();
    env.rabbitmq.consume_events().await;
    assert_eq!(env.rabbitmq.next_event().await.data()["reused"], true);
}

/// Asserts that the dead letter and the log report a refused event.
async fn assert_event_refused(env: &TestEnv, line: &serde_json::Value) {
    assert_eq!(line["outcome"], "failed", "{line}");
    assert_eq!(line["reason"], "event_refused", "{line}");
    let letter = env.rabbitmq.take_dead_letter().await;
    assert_eq!(letter.text_header("x-handoff-reason"), "event_refused");
    assert_eq!(letter.header("x-handoff-event-refused"), Some(&AMQPValue::Boolean(true)));
}

/// Asserts that no `handoff.failed` follows: the next new event belongs to another request.
async fn assert_no_failed_event(env: &mut TestEnv) {
    env.publish_request("r-last", "last").await;
    loop {
        let event = env.rabbitmq.next_event().await;
        assert_eq!(event.routing_key, "handoff.ready", "{}", event.json());
        if event.data()["requestId"] == "r-last" {
            return;
        }
    }
}

#[tokio::test]
async fn ready_event_that_one_of_two_queues_refuses_is_followed_by_no_failed_event() {
    let mut env = TestEnv::start().await;
    env.set("RETRY_DELAYS", "200ms");
    let worker = env.start_worker().await;
    let (channel, full) = bind_full_queue(&env, "handoff.ready").await;
    env.publish_request("r-1", "ann").await;
    for reused in [false, true] {
        let event = env.rabbitmq.next_event().await;
        assert_eq!(event.routing_key, "handoff.ready", "{}", event.json());
        assert_eq!(event.data()["reused"], reused);
    }
    let line = worker.wait_for_finished(2).await;
    assert_event_refused(&env, &line).await;
    assert_eq!(worker.metric(r#"handoff_requests_total{outcome="failed"}"#).await, 1.0);
    channel.queue_delete(full, Default::default()).await.unwrap();
    assert_no_failed_event(&mut env).await;
}

#[tokio::test]
async fn request_that_fails_after_its_event_was_refused_is_a_dead_letter_without_an_event() {
    let mut env = TestEnv::start().await;
    env.set("RETRY_DELAYS", "2s");
    let worker = env.start_worker().await;
    let (channel, full) = bind_full_queue(&env, "handoff.ready").await;
    let ends = time::OffsetDateTime::now_utc() + time::Duration::milliseconds(1_900);
    let ends = ends.format(&time::format_description::well_known::Rfc3339).unwrap();
    let expiring = json!({ "userId": "ann", "expiresAt": ends });
    env.rabbitmq.publish_request("r-1", expiring).await;
    env.publish_request("r-2", "bea").await;
    assert_eq!(worker.wait_for_finished(2).await["outcome"], "retried");
    channel.queue_delete(full, Default::default()).await.unwrap();
    // Both links are lost, one request expires, and the platform rejects the other.
    for entry in env.redis_entries().await {
        if entry.key.ends_with(":link") {
            env.set_redis_value(&entry.key, b"").await;
        }
    }
    env.platform.set_script(|call: &Call| match call.is_token() {
        true => success(call),
        false => Answer::status(400),
    });
    for finished in 3..=4 {
        let line = worker.wait_for_finished(finished).await;
        assert_event_refused(&env, &line).await;
    }
    env.platform.set_script(success);
    assert_no_failed_event(&mut env).await;
}
