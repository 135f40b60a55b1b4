//! Session calls that are accepted and not answered, where other workflows were served a moment before, or where
//! the platform answers a repeated call with 409.

use std::{
    collections::HashSet,
    sync::Mutex,
    time::{Duration, Instant},
};

use serde_json::json;

use super::{
    checks::{assert_no_attempt_spent, expect_ready},
    readiness::ReadinessLog,
};
use crate::support::{
    Answer, Latch, TestEnv, log_text,
    platform::{Call, success},
};

#[tokio::test]
async fn conflicts_with_unanswered_calls_are_part_of_the_outage() {
    let never = Latch::closed();
    let keys = Mutex::new(HashSet::new());
    let script = move |call: &Call| {
        if call.is_token() {
            success(call)
        } else if keys.lock().unwrap().insert(call.header("idempotency-key")) {
            success(call).held_by(&never)
        } else {
            Answer::status(409)
        }
    };
    let mut env = TestEnv::builder().platform(script).start().await;
    env.set("CONCURRENCY", "8").set("IDV_TIMEOUT", "1s");
    env.set("RETRY_BUDGET", "2s").set("RETRY_DELAYS", "1s,2s");
    let worker = env.start_worker().await;
    let readiness = ReadinessLog::start(&worker).await;
    env.publish_requests(0..12).await;
    worker.wait_for_log(log_text::BREAKER_OPEN).await;
    let opened = Instant::now();
    tokio::time::sleep(Duration::from_secs(8)).await;
    readiness.assert_since(opened, 503);
    env.platform.set_script(success);
    expect_ready(&mut env, 12).await;
    worker.wait_for_log(log_text::RESUMED).await;
    assert_no_attempt_spent(&env, &worker).await;
    assert_eq!(worker.log_lines(log_text::BREAKER_OPEN).len(), 1);
}

/// Serves these workflows, and then leaves their session calls unanswered under steady traffic.
async fn leave_served_workflows_unanswered(workflows: usize) {
    let mut env = TestEnv::start().await;
    env.set("CONCURRENCY", "8").set("IDV_TIMEOUT", "2s");
    env.set("RETRY_BUDGET", "1s").set("RETRY_DELAYS", "1s,2s");
    let worker = env.start_worker().await;
    let publish = async |env: &TestEnv, prefix: &str, n: usize| {
        let id = format!("{prefix}-{n}");
        let data = json!({ "userId": id, "workflowId": format!("w-{}", n % workflows) });
        env.rabbitmq.publish_request(&id, data).await;
    };
    for n in 0..workflows {
        publish(&env, "before", n).await;
    }
    expect_ready(&mut env, workflows).await;
    let never = Latch::closed();
    env.platform.set_script(move |call: &Call| {
        let answer = success(call);
        if call.is_token() { answer } else { answer.held_by(&never) }
    });
    let requests = 60;
    for n in 0..requests {
        publish(&env, "during", n).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    env.platform.set_script(success);
    expect_ready(&mut env, requests).await;
    worker.wait_for_log(log_text::RESUMED).await;
    assert_eq!(worker.log_lines(log_text::BREAKER_OPEN).len(), 1);
    assert_no_attempt_spent(&env, &worker).await;
}

#[tokio::test]
async fn unanswered_calls_of_workflows_served_before_spend_no_attempt() {
    tokio::join!(leave_served_workflows_unanswered(3), leave_served_workflows_unanswered(8));
}
