//! Pauses that the platform asks for: refused tokens and `Retry-After`.

use std::time::Duration;

use serde_json::{Value, json};

use super::checks::{PAUSED, assert_no_attempt_spent, expect_ready, readiness};
use crate::support::{
    Answer, TempFile, TestEnv, log_text,
    platform::{API_KEY, Call, success},
};

#[tokio::test]
async fn wrong_api_key_holds_all_requests_until_its_file_is_corrected() {
    let check_key = |call: &Call| {
        if call.is_token() && call.header("authorization") != API_KEY {
            Answer::status(401)
        } else {
            success(call)
        }
    };
    let mut env = TestEnv::builder().platform(check_key).start().await;
    let key = TempFile::new("wrong-k3y-must-not-leak\n");
    env.settings.remove("HANDOFF_IDV_API_KEY");
    env.set("IDV_API_KEY_FILE", key.path()).set("RETRY_BUDGET", "0s");
    let worker = env.start_worker().await;
    env.publish_requests(0..100).await;
    let line = worker.wait_for_log(log_text::TOKEN_REFUSED).await;
    let error = line["error"].as_str().unwrap();
    assert!(error.contains("401") && error.contains("HANDOFF_IDV_API_KEY"), "{error}");
    assert_eq!(readiness(&worker).await, (503, json!(["platform"])));
    assert_eq!(worker.get("/livez").await.0, 200);
    // Calls begun before the first refusal are refused too. Then only a probe follows.
    let early = env.platform.calls().len();
    env.platform.wait_for_calls(early + 1).await;
    // An empty file does not replace the key.
    std::fs::write(key.path(), "").unwrap();
    let line = worker.wait_for_log(log_text::SECRET_FILE_INVALID).await;
    assert_eq!(line["error"], log_text::API_KEY_FILE_EMPTY);
    std::fs::write(key.path(), format!("{API_KEY}\n")).unwrap();
    assert_eq!(expect_ready(&mut env, 100).await.len(), 100);
    assert_no_attempt_spent(&env, &worker).await;
    assert_eq!(worker.log_lines(log_text::TOKEN_REFUSED).len(), 1);
    assert_eq!(worker.log_lines(log_text::RESUMED).len(), 1);
    assert_eq!(readiness(&worker).await, (200, Value::Null));
    assert!(env.platform.token_calls().len() <= 100 + 8, "no stampede");
}

#[tokio::test]
async fn replaced_api_key_is_used_without_a_pause() {
    const NEW_KEY: &str = "new-k3y-must-not-leak";
    let accepts = |key: &'static str| {
        move |call: &Call| {
            let is_right = !call.is_token() || call.header("authorization") == key;
            if is_right { success(call) } else { Answer::status(401) }
        }
    };
    let mut env = TestEnv::builder().platform(accepts(API_KEY)).start().await;
    let key = TempFile::new(API_KEY);
    env.settings.remove("HANDOFF_IDV_API_KEY");
    env.set("IDV_API_KEY_FILE", key.path()).set("RETRY_BUDGET", "0s");
    let worker = env.start_worker().await;
    env.publish_requests(0..1).await;
    expect_ready(&mut env, 1).await;
    std::fs::write(key.path(), NEW_KEY).unwrap();
    env.platform.set_script(accepts(NEW_KEY));
    env.publish_requests(1..20).await;
    assert_eq!(expect_ready(&mut env, 19).await.len(), 19);
    assert_no_attempt_spent(&env, &worker).await;
    assert_eq!(worker.log_lines(log_text::TOKEN_REFUSED).len(), 0, "{}", worker.output());
    assert_eq!(worker.log_lines(log_text::SECRET_FILE_CHANGED).len(), 1);
    // Those that were sent before the file had been read, and one good call for each person.
    assert!(env.platform.token_calls().len() <= 20 + 19);
}

#[tokio::test]
async fn wrong_host_pauses_the_platform() {
    for answer in [
        Answer::status(302).header("location", "http://127.0.0.1:1/elsewhere"),
        Answer::status(404),
    ] {
        let script = move |_: &Call| answer.clone();
        let mut env = TestEnv::builder().platform(script).start().await;
        env.set("RETRY_BUDGET", "0s");
        let worker = env.start_worker().await;
        env.publish_requests(0..3).await;
        worker.wait_for_log(log_text::TOKEN_REFUSED).await;
        env.platform.set_script(success);
        expect_ready(&mut env, 3).await;
        assert_no_attempt_spent(&env, &worker).await;
    }
}

#[tokio::test]
async fn retry_after_pauses_all_calls_of_the_worker() {
    let script = |call: &Call| {
        if !call.is_token() && call.nth == 0 {
            Answer::status(429).header("retry-after", "5")
        } else {
            success(call)
        }
    };
    let mut env = TestEnv::builder().platform(script).start().await;
    env.set("RETRY_BUDGET", "0s");
    let worker = env.start_worker().await;
    env.publish_requests(0..1).await;
    let line = worker.wait_for_log(log_text::RATE_LIMITED).await;
    assert_eq!(line[log_text::RETRY_AFTER], 5);
    let before = env.platform.calls().len();
    let paused = env.platform.calls()[before - 1].at;
    env.publish_requests(1..6).await;
    worker.wait_for_in_flight(6).await;
    assert_eq!(worker.metric(PAUSED).await, 1.0);
    assert_eq!(worker.get("/readyz").await.0, 200, "a rate limit is no fault");
    assert_eq!(env.platform.calls().len(), before);
    assert_eq!(expect_ready(&mut env, 6).await.len(), 6);
    assert!(paused.elapsed() >= Duration::from_millis(4_900), "{:?}", paused.elapsed());
    let first = &env.platform.calls()[before];
    assert!(first.at - paused >= Duration::from_millis(4_900));
    assert_no_attempt_spent(&env, &worker).await;
    assert_eq!(worker.metric(PAUSED).await, 0.0);
}
