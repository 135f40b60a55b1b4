//! Sessions that the platform rejects, and tokens that it refuses.

use crate::support::{
    Answer, TestEnv,
    platform::{Call, success},
};

#[tokio::test]
async fn rejected_session_becomes_a_dead_letter_without_a_retry() {
    for status in [400, 403, 404, 409, 422] {
        let script = move |call: &Call| {
            if call.is_token() { success(call) } else { Answer::status(status) }
        };
        let mut env = TestEnv::builder().platform(script).start().await;
        let _worker = env.start_worker().await;
        env.publish_request("r-1", "ann").await;
        let event = env.rabbitmq.next_event().await;
        let data = event.data();
        assert_eq!(data["reason"]["code"], "platform_rejected", "{status}");
        let message = data["reason"]["message"].as_str().unwrap();
        assert!(message.contains(&status.to_string()) && !message.contains("b0dy"), "{message}");
        assert_eq!(
            env.rabbitmq.take_dead_letter().await.text_header("x-handoff-reason"),
            "platform_rejected"
        );
        assert_eq!(env.platform.session_calls().len(), 1, "{status}");
    }
}

#[tokio::test]
async fn refused_token_is_replaced_once() {
    let script = |call: &Call| {
        if !call.is_token() && call.nth == 0 { Answer::status(401) } else { success(call) }
    };
    let mut env = TestEnv::builder().platform(script).start().await;
    let _worker = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["sessionId"], "session-1");
    let sessions = env.platform.session_calls();
    assert_eq!(env.platform.token_calls().len(), 2);
    assert_eq!(sessions.len(), 2);
    assert_ne!(sessions[0].header("authorization"), sessions[1].header("authorization"));
    assert_ne!(sessions[0].header("idempotency-key"), sessions[1].header("idempotency-key"));
}

#[tokio::test]
async fn token_refused_after_a_failure_is_replaced_once() {
    let script = |call: &Call| {
        if call.is_token() {
            success(call)
        } else if call.nth == 0 {
            Answer::status(503)
        } else {
            Answer::status(401)
        }
    };
    let mut env = TestEnv::builder().platform(script).start().await;
    let _worker = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["reason"]["code"], "platform_rejected");
    assert_eq!(env.platform.token_calls().len(), 2);
    assert_eq!(env.platform.session_calls().len(), 3);
}

#[tokio::test]
async fn token_used_by_a_call_with_a_lost_answer_is_no_rejection() {
    let used = std::sync::Mutex::new(std::collections::HashSet::new());
    // A token serves one session, and a proxy loses the answers of the first three.
    let script = move |call: &Call| {
        if call.is_token() {
            return success(call);
        }
        let mut used = used.lock().unwrap();
        if !used.insert(call.header("authorization")) {
            Answer::status(401)
        } else if used.len() < 4 {
            Answer::status(503)
        } else {
            success(call)
        }
    };
    let mut env = TestEnv::builder().platform(script).start().await;
    let _worker = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.ready");
    assert_eq!(env.platform.token_calls().len(), 4);
}

#[tokio::test]
async fn second_refused_token_is_a_rejection() {
    let script = |call: &Call| if call.is_token() { success(call) } else { Answer::status(401) };
    let mut env = TestEnv::builder().platform(script).start().await;
    let _worker = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["reason"]["code"], "platform_rejected");
    assert_eq!(env.platform.session_calls().len(), 2);
    // Neither lease nor token is left: no other request may use the refused token.
    assert!(env.redis_entries().await.is_empty());
}
