//! The `Idempotency-Key` of the one call.

use handoff::sandbox::{Options, Sandbox};
use tokio::net::TcpListener;

use super::start;
use crate::support::{
    Answer, TestEnv, Worker,
    platform::{API_KEY, Call, hold_calls, success},
};

fn keys(env: &TestEnv) -> Vec<String> {
    env.platform.deeplink_calls().iter().map(|call| call.header("idempotency-key")).collect()
}

#[tokio::test]
async fn key_is_the_same_after_a_crash_and_another_once_the_link_was_forgotten() {
    let (latch, script) = hold_calls(|call| call.nth == 0);
    let mut env = start(script).await;
    let killed = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    env.platform.wait_for_calls(1).await;
    killed.kill().await;
    latch.open();
    let _worker = env.start_worker().await;
    assert_eq!(env.rabbitmq.next_event().await.data()["reused"], false);
    assert_eq!(
        keys(&env)[0],
        keys(&env)[1],
        "the platform may have made a session at the first call"
    );

    // The same request comes again, as a replayed dead letter does. Its link has been forgotten.
    for forgotten in 1..3 {
        env.publish_request("r-1", "ann").await;
        assert_eq!(env.rabbitmq.next_event().await.data()["reused"], true);
        forget(&env).await;
        env.publish_request("r-1", "ann").await;
        assert_eq!(env.rabbitmq.next_event().await.data()["reused"], false);
        let keys = keys(&env);
        assert_eq!(keys.len(), 2 + forgotten);
        assert!(!keys[..=forgotten].contains(&keys[1 + forgotten]), "it asks for another session");
    }
    forget(&env).await;
    env.publish_request("r-2", "ann").await;
    env.rabbitmq.next_event().await;
    assert!(!keys(&env)[..4].contains(&keys(&env)[4]), "another request");
}

/// Removes the link alone, as its end or an ending does.
async fn forget(env: &TestEnv) {
    for entry in env.redis_entries().await {
        if entry.key.ends_with(":deeplink") {
            env.delete_redis_value(&entry.key).await;
        }
    }
}

#[tokio::test]
async fn killed_call_costs_no_session_where_the_platform_honours_the_key() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let options = Options {
        api_key: API_KEY.to_owned(),
        honour_idempotency_key: true,
        latency: std::time::Duration::from_secs(1),
        ..Options::default()
    };
    let sandbox = Sandbox::start(listener, options).unwrap();
    let mut env = TestEnv::start().await;
    env.set("IDV_URL", &sandbox.url()).set("IDV_FLOW", "deeplink");
    let killed: Worker = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    // The sandbox makes the session when the call arrives, and answers a second later.
    crate::support::wait_until("the session is made", async || sandbox.stats().sessions_made == 1)
        .await;
    killed.kill().await;
    let _worker = env.start_worker().await;
    let event = env.rabbitmq.next_event().await;
    assert_eq!(event.routing_key, "handoff.ready");
    assert_eq!(sandbox.stats().deeplink_calls.total, 2);
    assert_eq!(sandbox.stats().sessions_made, 1);
}

#[tokio::test]
async fn conflict_is_a_rejection_unless_an_earlier_try_may_have_arrived() {
    // The first call times out; the platform answers the second while it processes the first.
    let script = |call: &Call| match (call.user_is("bob"), call.nth) {
        (true, _) => Answer::status(409),
        (false, 0) => success(call).after(std::time::Duration::from_secs(60)),
        (false, 1) => Answer::status(409),
        (false, _) => success(call),
    };
    let mut env = start(script).await;
    env.set("IDV_TIMEOUT", "1s");
    let worker = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    let event = env.rabbitmq.next_event().await;
    assert_eq!(event.routing_key, "handoff.ready", "{}", event.json());
    assert_eq!(worker.wait_for_finished(1).await["attempt"], 1);
    let ann = keys(&env);
    assert!(ann.len() == 3 && ann.iter().all(|key| *key == ann[0]));

    env.publish_request("r-2", "bob").await;
    let event = env.rabbitmq.next_event().await;
    assert_eq!(event.data()["reason"]["code"], "platform_rejected");
    assert_eq!(env.platform.deeplink_calls().len(), 4);
}
