//! A call that is repeated after a crash: a platform that honours its `Idempotency-Key` returns the session of the
//! first try, which may have ended meanwhile.

use std::{
    collections::{HashMap, HashSet},
    sync::Mutex,
};

use futures_util::future::join_all;
use lapin::BasicProperties;
use serde_json::json;

use crate::support::{
    Answer, Flow, Latch, TestEnv, Worker, log_text,
    platform::{Call, success},
    rabbitmq::HeldMessage,
    redis::commands,
    wait_until,
};

/// The length of the value by which the script of an index entry is recognised.
const INDEX_ENTRY_LEN: usize = 43;

const FLOWS: [&str; 2] = ["token", "deeplink"];

/// Answers each session call as the first with its `Idempotency-Key`. The first of all waits for the latch.
fn replay_answers(latch: &Latch) -> impl Fn(&Call) -> Answer + Send + Sync + use<> {
    let latch = latch.clone();
    let answers = Mutex::new(HashMap::new());
    move |call| {
        if call.is_token() {
            return success(call);
        }
        let mut answers = answers.lock().unwrap();
        let answer = answers.entry(call.header("idempotency-key")).or_insert_with(|| success(call));
        if call.nth == 0 { answer.clone().held_by(&latch) } else { answer.clone() }
    }
}

fn session_calls(env: &TestEnv) -> Vec<Call> {
    let calls = env.platform.calls();
    calls.into_iter().filter(|call| !call.is_token()).collect()
}

/// Kills a worker after the platform has made its session, and takes the request out of the queue.
async fn kill_before_the_link_is_stored(env: &TestEnv) -> HeldMessage {
    let worker = env.start_worker().await;
    env.wait_for_consumer_of_endings().await;
    env.publish_request("r-1", "ann").await;
    wait_until("the session is made", async || session_calls(env).len() == 1).await;
    let has = async |kind| {
        let entries = env.redis_entries().await;
        entries.into_iter().find(|entry| entry.key.ends_with(kind))
    };
    if env.settings["HANDOFF_IDV_FLOW"] == "token" {
        wait_until("the token is saved", async || has(":token").await.is_some()).await;
    }
    worker.kill().await;
    let request = env.rabbitmq.hold_after_returns(0).await;
    // Instead of waiting until the lease expires.
    env.delete_redis_value(&has(":lease").await.unwrap().key).await;
    request
}

async fn start(flow: &str, script: impl Fn(&Call) -> Answer + Send + Sync + 'static) -> TestEnv {
    let mut env = TestEnv::builder().platform(script).start().await;
    env.set("IDV_FLOW", flow);
    env
}

/// Publishes the end of a session, and waits until it is acked.
async fn end_unknown(env: &TestEnv, worker: &Worker, ending: serde_json::Value) {
    env.rabbitmq.publish_ending(ending, BasicProperties::default()).await;
    worker.wait_for_endings("unknown", 1).await;
}

#[tokio::test]
async fn session_that_ended_before_its_call_is_repeated_is_not_handed_out() {
    join_all(FLOWS.map(|flow| async move {
        let latch = Latch::closed();
        let mut env = start(flow, replay_answers(&latch)).await;
        let request = kill_before_the_link_is_stored(&env).await;
        latch.open();
        let worker = env.start_worker().await;
        end_unknown(&env, &worker, json!({ "sessionId": "session-0" })).await;
        request.give_back().await;

        let made = env.rabbitmq.next_event().await.data();
        // The second call is answered like the first; the third is another.
        assert_eq!((&made["requestId"], &made["reused"]), (&json!("r-1"), &json!(false)));
        assert_eq!(made["sessionId"], "session-2", "{flow}");
        let calls = session_calls(&env);
        let keys: Vec<_> = calls.iter().map(|call| call.header("idempotency-key")).collect();
        assert!(keys.len() == 3 && keys[0] == keys[1] && keys[1] != keys[2], "{flow}: {keys:?}");
        // The new link stays.
        env.publish_request("r-2", "ann").await;
        assert_eq!(env.rabbitmq.next_event().await.data()["sessionId"], "session-2");
    }))
    .await;
}

/// Nothing but the platform's calls is slow here, so that each command is sent as soon as it can be.
#[tokio::test]
async fn repeated_call_waits_for_two_round_trips() {
    join_all(FLOWS.map(|flow| async move {
        let latch = Latch::closed();
        let mut env = start(flow, replay_answers(&latch)).await;
        let proxy = env.proxy("REDIS_URL").await;
        let request = kill_before_the_link_is_stored(&env).await;
        let answer = Latch::closed();
        env.platform.set_script({
            let answer = answer.clone();
            move |call| success(call).held_by(&answer)
        });
        let worker = env.start_worker().await;
        proxy.take_sent();
        request.give_back().await;
        wait_until("the call is repeated", async || session_calls(&env).len() == 2).await;
        // From here, nothing that waits for an answer of Redis is sent.
        proxy.set_replies(Flow::Held);
        answer.open();
        let mut sent = Vec::new();
        // The claim before the call; the link and the index entry after it.
        wait_until("the link and its index entry are sent", async || {
            sent.extend(commands(&proxy.take_sent()));
            // But for saving the token again and extending the lease, alongside the call.
            let waited_for = |script: &&Vec<Vec<u8>>| match script[2].as_slice() {
                b"1" => script[4].len() == INDEX_ENTRY_LEN,
                keys => keys == b"4",
            };
            let scripts = sent.iter().filter(|command| command[0] == b"EVALSHA");
            let keys: Vec<_> = scripts.filter(waited_for).map(|script| &script[2]).collect();
            keys == [b"4", b"4", b"1"]
        })
        .await;
        let timed_out = worker.log_lines(log_text::REDIS_CONNECTION_DISCARDED);
        assert!(timed_out.is_empty(), "{flow}: sent after a time-out: {timed_out:?}");
        proxy.set_replies(Flow::Forwarded);
        assert_eq!(env.rabbitmq.next_event().await.data()["requestId"], "r-1");
    }))
    .await;
}

/// As of a platform that makes one session for each person, whatever the key.
#[tokio::test]
async fn attempt_fails_where_the_platform_returns_only_ended_sessions() {
    join_all(FLOWS.map(|flow| async move {
        let latch = Latch::closed();
        let script = {
            let latch = latch.clone();
            move |call: &Call| {
                if call.is_token() {
                    return success(call);
                }
                let answer = success(&Call { nth: 0, ..call.clone() });
                if call.nth == 0 { answer.held_by(&latch) } else { answer }
            }
        };
        let env = start(flow, script).await;
        let request = kill_before_the_link_is_stored(&env).await;
        let worker = env.start_worker().await;
        end_unknown(&env, &worker, json!({ "sessionId": "session-0" })).await;
        request.give_back().await;
        assert_eq!(worker.wait_for_finished(1).await["outcome"], "retried", "{flow}");
        let calls = session_calls(&env);
        let keys: HashSet<_> = calls.iter().map(|call| call.header("idempotency-key")).collect();
        assert_eq!((calls.len(), keys.len()), (1 + 4, 4), "{flow}");
    }))
    .await;
}
