//! The log: one line for each request, and few others.

use serde_json::{Value, json};

use crate::support::{Node, TestEnv, log_text, wait_until};

#[tokio::test]
async fn unroutable_failed_events_cost_a_line_each_and_one_warning_together() {
    let mut env = TestEnv::builder().without_event_queue().start().await;
    env.set("LOG", "info");
    let worker = env.start_worker().await;
    for n in 0..200 {
        env.rabbitmq.publish_request(&format!("r-{n}"), json!({ "userId": n })).await;
    }
    worker.wait_for_finished(200).await;
    let mut ids: Vec<_> =
        worker.log_lines(log_text::REQUEST_FINISHED).iter().map(assert_failed).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 200);
    assert_eq!(worker.log_lines(log_text::FAILED_EVENT_UNROUTABLE).len(), 1);
    let failures = "handoff_publishes_total{kind=\"failed\",outcome=\"unroutable\"}";
    assert_eq!(worker.metric(failures).await, 200.0);
    let printed = worker.stop_and_output().await;
    let others = printed.lines().filter(|line| !line.contains(log_text::REQUEST_FINISHED)).count();
    assert!(others < 10, "{printed}");
}

/// Asserts that a line is about a failed request, and returns the request's id.
fn assert_failed(line: &Value) -> String {
    assert_eq!(line["outcome"], "failed");
    assert_eq!(line["attempt"], 1);
    assert_eq!(line["level"], "INFO");
    assert_eq!(line["reason"], "invalid_request");
    assert!(line["duration_ms"].is_u64() && line["error"].is_string(), "{line}");
    assert_eq!(line["trace_id"], Value::Null);
    line["request_id"].to_string()
}

#[tokio::test]
async fn flapping_redis_is_logged_three_times_a_minute() {
    let node = Node::redis().await;
    let mut env = TestEnv::builder().redis(&node).start().await;
    let worker = env.start_worker().await;
    for flaps in 1..=5 {
        node.kill().await;
        // The first request that uses the connection detects the failure.
        env.publish_request("r", "ann").await;
        assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.ready");
        worker.wait_for_logs(log_text::REDIS_CONNECTION_DISCARDED, flaps).await;
        node.start().await;
        wait_until("it has reconnected", async || {
            worker.metric("handoff_cache_reconnects_total").await == flaps as f64
        })
        .await;
    }
    assert_eq!(worker.log_lines(log_text::REDIS_UNAVAILABLE).len(), 3);
    assert_eq!(worker.log_lines(log_text::REDIS_RECONNECTED).len(), 3);
}
