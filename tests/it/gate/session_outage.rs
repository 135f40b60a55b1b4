//! The session endpoint is out while the token endpoint works.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{
    checks::{assert_no_attempt_spent, expect_ready, failing_sessions},
    readiness::ReadinessLog,
    traffic::{Traffic, workflow_is},
};
use crate::support::{
    Answer, Latch, TestEnv, Worker, log_text,
    platform::{Call, success},
    wait_until,
};

/// Publishes request `<prefix>-0` for a user of its own and workflow `w-0`, and so on.
async fn publish_for_workflows(env: &TestEnv, prefix: &str, count: usize, workflows: usize) {
    for n in 0..count {
        let id = format!("{prefix}-{n}");
        let workflow = format!("w-{}", n % workflows);
        env.rabbitmq.publish_request(&id, json!({ "userId": id, "workflowId": workflow })).await;
    }
}

/// Asserts that the breaker opens and stays open for `duration`; then repairs the platform, and asserts
/// that all requests are served promptly and that the outage was one pause and spent no attempt.
async fn sit_out(env: &mut TestEnv, worker: &Worker, duration: Duration, requests: usize) {
    let readiness = ReadinessLog::start(worker).await;
    worker.wait_for_log(log_text::BREAKER_OPEN).await;
    let opened = Instant::now();
    tokio::time::sleep(duration).await;
    readiness.assert_since(opened, 503);
    env.platform.set_script(success);
    let repaired = Instant::now();
    assert_eq!(expect_ready(env, requests).await.len(), requests);
    let took = repaired.elapsed();
    // The next probe is at most 3 s away, and one that hangs ends after 2 s.
    assert!(took < Duration::from_secs(8), "{took:?}");
    worker.wait_for_log(log_text::RESUMED).await;
    assert_no_attempt_spent(env, worker).await;
    assert_eq!(worker.log_lines(log_text::BREAKER_OPEN).len(), 1);
    assert_eq!(worker.log_lines(log_text::RESUMED).len(), 1);
}

/// Never answers a session call, while three requests are held.
async fn leave_session_calls_unanswered(timeout: &str, duration: Duration) {
    let never = Latch::closed();
    let script = move |call: &Call| {
        let answer = success(call);
        if call.is_token() { answer } else { answer.held_by(&never) }
    };
    let mut env = TestEnv::builder().platform(script).start().await;
    env.set("IDV_TIMEOUT", timeout).set("RETRY_BUDGET", timeout).set("RETRY_DELAYS", "1s,2s");
    let worker = env.start_worker().await;
    env.publish_requests(0..3).await;
    sit_out(&mut env, &worker, duration, 3).await;
}

#[tokio::test]
async fn unanswered_session_calls_of_few_requests_are_one_pause() {
    leave_session_calls_unanswered("2s", Duration::from_secs(12)).await;
}

#[tokio::test]
async fn unanswered_session_calls_of_requests_that_all_probe_are_one_pause() {
    // A call lasts longer than two intervals between probes, so that no request waits.
    leave_session_calls_unanswered("6s", Duration::from_secs(12)).await;
}

/// Serves one request for each of as many workflows as there are slots, and then fails all session calls.
async fn fail_sessions_of_served_workflows(slots: usize, requests: usize) {
    let mut env = TestEnv::start().await;
    env.set("CONCURRENCY", &slots.to_string());
    env.set("RETRY_BUDGET", "2s").set("RETRY_DELAYS", "1s,2s");
    let worker = env.start_worker().await;
    publish_for_workflows(&env, "before", slots, slots).await;
    expect_ready(&mut env, slots).await;
    worker.wait_for_finished(slots).await;
    env.platform.set_script(failing_sessions);
    publish_for_workflows(&env, "during", requests, slots).await;
    sit_out(&mut env, &worker, Duration::from_secs(8), requests).await;
}

#[tokio::test]
async fn failing_sessions_of_workflows_served_before_are_one_pause_for_few_slots() {
    tokio::join!(
        fail_sessions_of_served_workflows(2, 2),
        fail_sessions_of_served_workflows(2, 5),
        fail_sessions_of_served_workflows(3, 5),
    );
}

#[tokio::test]
async fn failing_sessions_of_two_workflows_served_a_moment_before_are_one_pause() {
    let mut env = TestEnv::start().await;
    env.set("CONCURRENCY", "8").set("RETRY_BUDGET", "2s").set("RETRY_DELAYS", "1s,2s");
    let worker = env.start_worker().await;
    publish_for_workflows(&env, "before", 8, 2).await;
    expect_ready(&mut env, 8).await;
    env.platform.set_script(
        |call| {
            if call.is_token() { success(call) } else { Answer::status(503) }
        },
    );
    publish_for_workflows(&env, "during", 20, 2).await;
    sit_out(&mut env, &worker, Duration::from_secs(6), 20).await;
    assert_eq!(worker.metric("handoff_requests_total{outcome=\"ready\"}").await, 28.0);
}

#[tokio::test]
async fn outage_that_follows_a_failing_workflow_spends_no_attempt_of_others() {
    let bad_fails = |call: &Call| {
        if workflow_is(call, "bad") { Answer::status(500) } else { success(call) }
    };
    let mut env = TestEnv::builder().platform(bad_fails).start().await;
    env.set("CONCURRENCY", "8").set("RETRY_BUDGET", "2s").set("RETRY_DELAYS", "1s,2s,3s,4s");
    let worker = env.start_worker().await;
    let mut traffic = Traffic::default();
    for n in 0..4 {
        traffic.publish(&env, &format!("bad-{n}"), json!({ "workflowId": "bad" })).await;
    }
    let more = |traffic: &Traffic| traffic.waits("good").len() < 3;
    let done = |traffic: &Traffic| traffic.have_ended("good");
    traffic.run(&mut env, json!({}), Duration::from_secs(15), more, done).await;
    traffic.assert_served_within(Duration::from_secs(8));
    let before = worker.log_lines(log_text::BREAKER_OPEN).len();

    env.platform.set_script(failing_sessions);
    for n in 0..8 {
        traffic.publish(&env, &format!("later-{n}"), json!({})).await;
    }
    worker.wait_for_logs(log_text::BREAKER_OPEN, before + 1).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    env.platform.set_script(success);
    let [nothing, all] = [|_: &Traffic| false, |traffic: &Traffic| traffic.have_ended("")];
    traffic.run(&mut env, json!({}), Duration::from_secs(15), nothing, all).await;
    for wait in traffic.waits("") {
        assert!(wait.ended.is_some_and(|ended| ended.key == "handoff.ready"), "{traffic}");
    }
    let others = || -> Vec<_> {
        let bad = |line: &Value| line["request_id"].as_str().unwrap().starts_with("bad");
        let finished = worker.log_lines(log_text::REQUEST_FINISHED);
        finished.into_iter().filter(|line| !bad(line)).collect()
    };
    wait_until("the others have finished", async || others().len() >= 3 + 8).await;
    assert!(others().iter().all(|line| line["attempt"] == 1 && line["outcome"] == "ready"));
}
