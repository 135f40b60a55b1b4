//! 409 to a session call: the platform may still be processing an earlier try with the same key.

use std::{
    collections::HashMap,
    sync::Mutex,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::support::{
    Answer, TestEnv,
    platform::{Call, success},
    wait_until,
};

/// Processes each session for `duration`, whether or not its caller still waits. Meanwhile, and for
/// ever if it takes an hour, other calls with the same `Idempotency-Key` are answered with 409; later
/// ones get the session.
fn slow_sessions(duration: Duration) -> impl Fn(&Call) -> Answer + Send + Sync {
    let sessions = Mutex::new(HashMap::<String, (Instant, Answer)>::new());
    move |call| {
        if call.is_token() {
            return success(call);
        }
        let mut sessions = sessions.lock().unwrap();
        match sessions.get(&call.header("idempotency-key")) {
            None => {
                let session = (Instant::now(), success(call));
                sessions.insert(call.header("idempotency-key"), session);
                success(call).after(duration)
            }
            Some((began, _)) if began.elapsed() < duration => Answer::status(409),
            Some((_, session)) => session.clone(),
        }
    }
}

const AN_HOUR: Duration = Duration::from_secs(3_600);

/// Asserts that all session calls used the same token and key, and returns how many there were.
fn assert_same_try(env: &TestEnv) -> usize {
    let calls = env.platform.session_calls();
    for header in ["authorization", "idempotency-key"] {
        assert!(calls.iter().all(|call| call.header(header) == calls[0].header(header)));
    }
    calls.len()
}

#[tokio::test]
async fn conflict_with_a_try_that_timed_out_is_retried_until_its_session_is_made() {
    let script = slow_sessions(Duration::from_secs(3));
    let mut env = TestEnv::builder().platform(script).start().await;
    env.set("IDV_TIMEOUT", "1s");
    let worker = env.start_worker().await;
    env.publish_requests(0..1).await;
    let event = env.rabbitmq.next_event().await;
    assert_eq!(event.routing_key, "handoff.ready", "{}", event.json());
    assert_eq!(event.data()["sessionId"], "session-0", "the session that the first try made");
    assert!(assert_same_try(&env) >= 3);
    assert_eq!(worker.wait_for_finished(1).await["attempt"], 1);
    worker.stop().await;
    assert_eq!(env.dead_letters().await, 0);
    env.rabbitmq.wait_for_depth(0).await;
}

#[tokio::test]
async fn conflict_of_a_first_try_is_a_rejection() {
    let script = |call: &Call| if call.is_token() { success(call) } else { Answer::status(409) };
    let mut env = TestEnv::builder().platform(script).start().await;
    let _worker = env.start_worker().await;
    let published = Instant::now();
    env.publish_requests(0..1).await;
    let event = env.rabbitmq.next_event().await;
    assert_eq!(event.data()["reason"]["code"], "platform_rejected");
    assert_eq!(event.data()["attempts"], 1);
    assert!(published.elapsed() < Duration::from_secs(3), "{:?}", published.elapsed());
    assert_eq!(env.platform.session_calls().len(), 1);
    let letter = env.rabbitmq.take_dead_letter().await;
    assert_eq!(letter.text_header("x-handoff-reason"), "platform_rejected");
}

#[tokio::test]
async fn conflict_of_the_first_try_with_a_token_is_a_rejection() {
    let earlier_failures: [fn(&Call) -> Answer; 2] = [
        // The key of the refused try is another one, since the token is.
        |call| if call.nth == 0 { Answer::status(401) } else { Answer::status(409) },
        |_| Answer::status(409),
    ];
    for (session, failing_tokens) in earlier_failures.into_iter().zip([0, 2]) {
        let script = move |call: &Call| match call.is_token() {
            true if call.nth < failing_tokens => Answer::status(500),
            true => success(call),
            false => session(call),
        };
        let mut env = TestEnv::builder().platform(script).start().await;
        let _worker = env.start_worker().await;
        env.publish_requests(0..1).await;
        let event = env.rabbitmq.next_event().await;
        assert_eq!(event.data()["reason"]["code"], "platform_rejected", "{}", event.json());
        assert_eq!(event.data()["attempts"], 1);
        let tries = env.platform.session_calls().len();
        assert_eq!(tries, if failing_tokens == 0 { 2 } else { 1 });
    }
}

#[tokio::test]
async fn conflict_with_a_try_of_a_killed_worker_is_retried_until_its_session_is_made() {
    // A lease outlives a killed worker by up to 6 s.
    let script = slow_sessions(Duration::from_secs(9));
    let mut env = TestEnv::builder().platform(script).start().await;
    let worker = env.start_worker().await;
    env.publish_requests(0..1).await;
    env.platform.wait_for_calls(2).await;
    wait_until("the token is stored", async || {
        env.redis_entries().await.iter().any(|entry| entry.key.ends_with(":token"))
    })
    .await;
    worker.kill().await;

    let successor = env.start_worker().await;
    let event = env.rabbitmq.next_event().await;
    assert_eq!(event.routing_key, "handoff.ready", "{}", event.json());
    assert_eq!(event.data()["sessionId"], "session-0", "the session of the killed worker's try");
    assert_eq!(env.platform.token_calls().len(), 1);
    assert!(assert_same_try(&env) >= 3);
    successor.stop().await;
    assert_eq!(env.dead_letters().await, 0);
}

#[tokio::test]
async fn conflict_that_never_ends_exhausts_the_retries() {
    let mut env = TestEnv::builder().platform(slow_sessions(AN_HOUR)).start().await;
    env.set("IDV_TIMEOUT", "500ms").set("RETRY_BUDGET", "1s").set("RETRY_DELAYS", "200ms,300ms");
    let _worker = env.start_worker().await;
    env.publish_requests(0..1).await;
    let event = env.rabbitmq.next_event().await;
    assert_eq!(event.data()["reason"]["code"], "retries_exhausted", "{}", event.json());
    assert_eq!(event.data()["attempts"], 3);
    assert!(assert_same_try(&env) >= 4);
    let letter = env.rabbitmq.take_dead_letter().await;
    assert_eq!(letter.text_header("x-handoff-reason"), "retries_exhausted");
    assert_eq!(letter.json(), json!({ "userId": "user-0" }));
}

#[tokio::test]
async fn conflict_after_a_failed_try_is_retried() {
    let script = |call: &Call| match (call.is_token(), call.nth) {
        (false, 0) => Answer::status(502),
        (false, 1..=3) => Answer::status(409),
        _ => success(call),
    };
    let mut env = TestEnv::builder().platform(script).start().await;
    let _worker = env.start_worker().await;
    env.publish_requests(0..1).await;
    let event = env.rabbitmq.next_event().await;
    assert_eq!(event.routing_key, "handoff.ready", "{}", event.json());
    assert_eq!(assert_same_try(&env), 5);
}
