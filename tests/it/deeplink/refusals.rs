//! Refused calls: the key, the URL or one workflow.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::start;
use crate::{
    gate::checks::{PAUSED, assert_no_attempt_spent, expect_ready, readiness},
    support::{
        Answer, TempFile, TestEnv, Worker, log_text,
        platform::{API_KEY, Call, success},
        wait_until,
    },
};

fn is_for(call: &Call, workflow: &str) -> bool {
    call.query.as_deref() == Some(&format!("workflowId={workflow}"))
}

async fn publish(env: &TestEnv, id: &str, workflow: &str) {
    env.rabbitmq.publish_request(id, json!({ "userId": id, "workflowId": workflow })).await;
}

/// Answers all calls with this status until the flag is set.
fn broken_until(
    fixed: &Arc<AtomicBool>,
    status: u16,
) -> impl Fn(&Call) -> Answer + Send + Sync + 'static {
    let fixed = Arc::clone(fixed);
    move |call| if fixed.load(Relaxed) { success(call) } else { Answer::status(status) }
}

#[tokio::test]
async fn wrong_host_or_key_holds_all_requests_until_it_is_corrected() {
    // Each takes two probes, which are seconds apart.
    join_all([401, 403, 404, 405, 302].map(|status| async move {
        let fixed = Arc::new(AtomicBool::new(false));
        let mut env = start(broken_until(&fixed, status)).await;
        env.set("RETRY_BUDGET", "0s").set("CONCURRENCY", "4");
        let worker = env.start_worker().await;
        env.publish_requests(0..20).await;
        let line = worker.wait_for_log(log_text::DEEPLINK_REFUSED).await;
        let early = env.platform.calls().len();
        assert!(early <= 4 + 1, "{early}");
        let error = line["error"].as_str().unwrap();
        assert!(
            error.contains(&status.to_string()) && error.contains("HANDOFF_IDV_URL"),
            "{error}"
        );
        assert_eq!(readiness(&worker).await, (503, json!(["platform"])));
        assert_eq!(worker.metric(PAUSED).await, 1.0);
        env.platform.wait_for_calls(early + 2).await;
        fixed.store(true, Relaxed);
        assert_eq!(expect_ready(&mut env, 20).await.len(), 20, "{status}");
        assert_no_attempt_spent(&env, &worker).await;
        assert_eq!(worker.log_lines(log_text::DEEPLINK_REFUSED).len(), 1);
        assert_eq!(readiness(&worker).await, (200, Value::Null));
    }))
    .await;
}

#[tokio::test]
async fn replaced_api_key_is_used_without_a_pause() {
    let script = |call: &Call| {
        let accepted = if call.nth == 0 { API_KEY } else { "new-k3y-must-not-leak" };
        if call.header("authorization") == accepted { success(call) } else { Answer::status(401) }
    };
    let mut env = start(script).await;
    let key = TempFile::new(API_KEY);
    env.settings.remove("HANDOFF_IDV_API_KEY");
    env.set("IDV_API_KEY_FILE", key.path());
    let worker = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    env.rabbitmq.next_event().await;
    std::fs::write(key.path(), "new-k3y-must-not-leak").unwrap();
    env.publish_request("r-2", "bob").await;
    assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.ready");
    assert_eq!(worker.log_lines(log_text::DEEPLINK_REFUSED).len(), 0);
    assert_eq!(env.platform.calls().len(), 3);
}

#[tokio::test]
async fn unknown_workflow_pauses_nobody_once_a_good_answer_was_seen() {
    let script =
        |call: &Call| if is_for(call, "unknown") { Answer::status(404) } else { success(call) };
    let mut env = start(script).await;
    let worker = env.start_worker().await;
    publish(&env, "good", "w").await;
    assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.ready");
    for n in 0..20 {
        publish(&env, &format!("bad-{n}"), "unknown").await;
        publish(&env, &format!("good-{n}"), "w").await;
    }
    for event in env.rabbitmq.next_events(40).await {
        let is_good = event.data()["workflowId"] == "w";
        let code = event.data()["reason"]["code"].clone();
        assert_eq!(code, if is_good { Value::Null } else { json!("platform_rejected") });
    }
    assert_eq!(env.platform.calls().len(), 41);
    assert!(worker.log_lines(log_text::DEEPLINK_REFUSED).is_empty());
    let rejected = "handoff_platform_calls_total{call=\"deeplink\",outcome=\"rejected\"}";
    assert_eq!(worker.metric(rejected).await, 20.0);
    wait_until("its dead letters", async || env.dead_letters().await == 20).await;
}

#[tokio::test]
async fn moved_platform_pauses_after_five_missing_workflows_and_recovers() {
    let is_gone = Arc::new(AtomicBool::new(true));
    let mut env = start(broken_until(&is_gone, 404)).await;
    env.set("CONCURRENCY", "1");
    let worker = env.start_worker().await;
    publish(&env, "good-0", "w").await;
    assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.ready");
    is_gone.store(false, Relaxed);
    for n in 1..=12 {
        publish(&env, &format!("good-{n}"), "w").await;
    }
    worker.wait_for_log(log_text::DEEPLINK_REFUSED).await;
    is_gone.store(true, Relaxed);
    let events = env.rabbitmq.next_events(12).await;
    let rejected = events.iter().filter(|event| event.routing_key == "handoff.failed").count();
    assert_eq!(rejected, 4, "until five in a row");
}

/// A worker, one workflow whose calls are answered with 403, and another that works.
async fn with_forbidden_workflow() -> (TestEnv, Worker) {
    let script =
        |call: &Call| if is_for(call, "forbidden") { Answer::status(403) } else { success(call) };
    let mut env = start(script).await;
    env.set("CONCURRENCY", "2");
    let worker = env.start_worker().await;
    (env, worker)
}

#[tokio::test]
async fn forbidden_workflow_is_rejected_once_another_is_answered_well_in_the_pause() {
    let (mut env, worker) = with_forbidden_workflow().await;
    for n in 0..4 {
        publish(&env, &format!("bad-{n}"), "forbidden").await;
    }
    worker.wait_for_log(log_text::DEEPLINK_REFUSED).await;
    // They make room for it, although they hold all slots: each goes to the end of the queue after a probe.
    publish(&env, "good", "w").await;
    let mut rejected = 0;
    for event in env.rabbitmq.next_events(5).await {
        if event.data()["workflowId"] == "w" {
            assert_eq!(event.routing_key, "handoff.ready");
        } else {
            assert_eq!(event.data()["reason"]["code"], "platform_rejected", "{}", event.json());
            assert_eq!(event.data()["attempts"], 1, "nothing was spent in the pause");
            rejected += 1;
        }
    }
    assert_eq!(rejected, 4);
    assert_eq!(readiness(&worker).await, (200, Value::Null));
}

#[tokio::test]
async fn pause_with_no_request_held_is_half_open_at_the_next_interval() {
    let fixed = Arc::new(AtomicBool::new(false));
    let mut env = start(broken_until(&fixed, 401)).await;
    let worker = env.start_worker().await;
    let end = time::OffsetDateTime::now_utc() + time::Duration::milliseconds(1_500);
    let end = end.format(&time::format_description::well_known::Rfc3339).unwrap();
    env.rabbitmq.publish_request("r-1", json!({ "userId": "ann", "expiresAt": end })).await;
    worker.wait_for_log(log_text::DEEPLINK_REFUSED).await;
    assert_eq!(readiness(&worker).await.0, 503);
    assert_eq!(env.rabbitmq.next_event().await.data()["reason"]["code"], "request_expired");
    worker.wait_for_log(log_text::HALF_OPEN_FOR_NEXT).await;
    assert_eq!(readiness(&worker).await, (200, Value::Null));
    let calls = env.platform.calls().len();
    fixed.store(true, Relaxed);
    env.publish_request("r-2", "bob").await;
    assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.ready");
    assert_eq!(env.platform.calls().len(), calls + 1, "no call but a person's request");
}
