//! A pause in which every request in hand has failed: others in the queue come in and probe.

use std::{collections::HashSet, time::Duration};

use serde_json::json;

use super::{
    checks::{assert_no_attempt_spent, failing_sessions},
    traffic::{Traffic, count_header, workflow_is},
};
use crate::support::{
    Answer, TestEnv, log_text,
    platform::{Call, success},
    wait_until,
};

/// The users of the session calls so far.
fn users_called_for(env: &TestEnv) -> HashSet<String> {
    let calls = env.platform.session_calls().into_iter();
    calls.map(|call| call.body["metadata"]["externalUserId"].to_string()).collect()
}

#[tokio::test]
async fn requests_that_failed_in_a_pause_let_those_in_the_queue_probe() {
    let mut env = TestEnv::builder().platform(failing_sessions).start().await;
    // None of them ends by its budget.
    env.set("CONCURRENCY", "3").set("RETRY_BUDGET", "30s").set("RETRY_DELAYS", "1s");
    let worker = env.start_worker().await;
    env.publish_requests(0..7).await;
    worker.wait_for_log(log_text::BREAKER_OPEN).await;
    // Others probe in turn, and those that made room for them return to the queue.
    wait_until("a fifth request has probed", async || users_called_for(&env).len() >= 5).await;
    assert_eq!(worker.log_lines(log_text::RESUMED).len(), 0);
    env.platform.set_script(success);
    env.expect_all_ready(7).await;
    worker.wait_for_finished(7).await;
    assert_no_attempt_spent(&env, &worker).await;
    assert_eq!(worker.log_lines(log_text::BREAKER_OPEN).len(), 1);
}

#[tokio::test]
async fn good_request_behind_slots_full_of_failed_ones_ends_the_pause() {
    let script = |call: &Call| {
        if workflow_is(call, "bad") { Answer::status(500) } else { success(call) }
    };
    let mut env = TestEnv::builder().platform(script).start().await;
    env.set("CONCURRENCY", "3").set("RETRY_BUDGET", "30s").set("RETRY_DELAYS", "1s");
    env.declare_topology().await;
    let mut traffic = Traffic::default();
    for n in 0..4 {
        traffic.publish(&env, &format!("bad-{n}"), json!({ "workflowId": "bad" })).await;
    }
    let worker = env.start_worker().await;
    worker.wait_for_log(log_text::BREAKER_OPEN).await;
    let more = |traffic: &Traffic| traffic.waits("good").is_empty();
    let done = |traffic: &Traffic| traffic.have_ended("good");
    traffic.run(&mut env, json!({}), Duration::from_secs(20), more, done).await;
    // Two failed requests make room, one for the fourth bad one and one for the good one.
    traffic.assert_served_within(Duration::from_secs(15));
    worker.wait_for_log(log_text::RESUMED).await;
    assert_no_attempt_spent(&env, &worker).await;
    worker.stop().await;
    let mut copies = 0;
    for _ in 0..4 {
        let message = env.rabbitmq.take(&env.rabbitmq.queue.clone()).await;
        assert_eq!(message.json()["workflowId"], "bad");
        assert_eq!(count_header(&message, "x-handoff-attempt"), 0);
        assert!(count_header(&message, "x-delivery-count") <= 1, "{:?}", message.properties);
        copies += usize::from(message.header("x-handoff-request-id").is_some());
    }
    assert!(copies >= 2, "{copies} copies");
}
