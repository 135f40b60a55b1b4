//! The log: one line for each request, and no flood of anything else.

use serde_json::json;

use crate::support::{Bench, Node, Platform, log_text, until};

#[tokio::test]
async fn requests_that_fail_unheard_have_a_line_each_and_one_warning_together() {
    let mut bench = Bench::deaf(Platform::healthy().await).await;
    bench.set("LOG", "info");
    let worker = bench.worker().await;
    for n in 0..200 {
        bench.rabbit.request(&format!("r-{n}"), json!({ "userId": n })).await;
    }
    worker.finished(200).await;
    let mut ids: Vec<_> = worker.lines(log_text::REQUEST_FINISHED).iter().map(id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 200);
    assert_eq!(worker.lines(log_text::FAILED_EVENT_UNROUTABLE).len(), 1);
    let failures = "handoff_publishes_total{kind=\"failed\",outcome=\"unroutable\"}";
    assert_eq!(worker.metric(failures).await, 200.0);
    let printed = worker.printed().await;
    let others = printed.lines().filter(|line| !line.contains(log_text::REQUEST_FINISHED)).count();
    assert!(others < 10, "{printed}");
}

fn id(line: &serde_json::Value) -> String {
    assert_eq!((&line["outcome"], &line["attempt"]), (&json!("failed"), &json!(1)));
    assert_eq!((&line["level"], &line["reason"]), (&json!("INFO"), &json!("invalid_request")));
    assert!(line["duration_ms"].is_u64() && line["detail"].is_string(), "{line}");
    assert_eq!(line["trace_id"], json!(null));
    line["request_id"].to_string()
}

#[tokio::test]
async fn a_redis_that_comes_and_goes_is_told_three_times_a_minute() {
    let node = Node::redis().await;
    let mut bench = Bench::on_own_redis(Platform::healthy().await, &node).await;
    let worker = bench.worker().await;
    for flaps in 1..=5 {
        node.kill().await;
        // Who meets it finds out.
        bench.rabbit.request("r", json!({ "userId": "ann" })).await;
        assert_eq!(bench.rabbit.event().await.routing_key, "handoff.ready");
        worker.logged_times(log_text::REDIS_CONNECTION_DISCARDED, flaps).await;
        node.start().await;
        until("it is back", async || {
            worker.metric("handoff_cache_reconnects_total").await == flaps as f64
        })
        .await;
    }
    assert_eq!(worker.lines(log_text::REDIS_UNAVAILABLE).len(), 3);
    assert_eq!(worker.lines(log_text::REDIS_RECONNECTED).len(), 3);
}
