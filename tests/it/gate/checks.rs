//! Platform scripts and assertions that the gate tests share.

use std::collections::HashSet;

use serde_json::Value;

use crate::support::{
    Answer, TestEnv, Worker, log_text,
    platform::{Call, success},
};

pub const PAUSED: &str = "handoff_platform_paused";

pub fn unavailable(_: &Call) -> Answer {
    Answer::status(503)
}

/// Answers token calls successfully and session calls with 500.
pub fn failing_sessions(call: &Call) -> Answer {
    if call.is_token() { success(call) } else { Answer::status(500) }
}

/// Receives `count` events, asserts that each is `handoff.ready`, and returns the request ids.
pub async fn expect_ready(env: &mut TestEnv, count: usize) -> HashSet<String> {
    let events = env.rabbitmq.next_events(count).await;
    assert!(events.iter().all(|event| event.routing_key == "handoff.ready"));
    events.iter().map(|event| event.data()["requestId"].to_string()).collect()
}

/// The status of `/readyz`, and what it reports as failing.
pub async fn readiness(worker: &Worker) -> (u16, Value) {
    let (status, page) = worker.readiness().await;
    (status, page["failing"].clone())
}

/// Asserts that no request went to a retry queue or to the dead queue.
pub async fn assert_no_attempt_spent(env: &TestEnv, worker: &Worker) {
    for outcome in ["retried", "failed"] {
        let series = format!("handoff_requests_total{{outcome=\"{outcome}\"}}");
        assert_eq!(worker.metric(&series).await, 0.0, "{outcome}");
    }
    assert_eq!(env.dead_letters().await, 0);
    assert!(worker.log_lines(log_text::REQUEST_FINISHED).iter().all(|line| line["attempt"] == 1));
}
