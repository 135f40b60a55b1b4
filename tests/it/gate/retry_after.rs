//! `Retry-After`, for every call or again and again for one request.

use std::time::{Duration, Instant};

use lapin::{BasicProperties, types::AMQPValue};
use serde_json::json;

use super::{
    checks::assert_no_attempt_spent,
    readiness::ReadinessLog,
    traffic::{Traffic, count_header},
};
use crate::support::{
    Answer, TestEnv, log_text,
    platform::{Call, success},
    rabbitmq::field_table,
};

/// Answers the session calls of users `limited…` with this status and `Retry-After`.
fn limit_some_users(status: u16, seconds: u64) -> impl Fn(&Call) -> Answer + Send + Sync {
    move |call| {
        let user = call.body["metadata"]["externalUserId"].as_str();
        if user.is_some_and(|user| user.starts_with("limited")) {
            Answer::status(status).header("retry-after", seconds.to_string())
        } else {
            success(call)
        }
    }
}

/// When the session calls of this user arrived.
fn calls_of(env: &TestEnv, user: &str) -> Vec<Instant> {
    let calls = env.platform.session_calls().into_iter();
    calls.filter(|call| call.user_is(user)).map(|call| call.at).collect()
}

/// Asserts that each call came no earlier than a `Retry-After` of `seconds` allows.
fn assert_apart(calls: &[Instant], seconds: u64) {
    let gaps: Vec<_> = calls.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let least = Duration::from_millis(seconds * 1_000 - 100);
    assert!(gaps.iter().all(|gap| *gap >= least), "{gaps:.1?}");
}

/// Requests that are limited again and again, while a good one follows each second.
struct Limited {
    users: usize,
    concurrency: &'static str,
    /// The `Retry-After` of each of their session calls.
    seconds: u64,
}

impl Limited {
    /// Asserts that the good requests are served.
    async fn serve_others(&self, status: u16) {
        let script = limit_some_users(status, self.seconds);
        let mut env = TestEnv::builder().platform(script).start().await;
        env.set("CONCURRENCY", self.concurrency)
            .set("RETRY_BUDGET", "2s")
            .set("RETRY_DELAYS", "1s,2s");
        let worker = env.start_worker().await;
        let readiness = ReadinessLog::start(&worker).await;
        let mut traffic = Traffic::default();
        for n in 0..self.users {
            traffic.publish(&env, &format!("limited-{n}"), json!({})).await;
        }
        env.platform.wait_for_calls(2 * self.users).await;
        let count = usize::try_from(self.seconds).unwrap() + 4;
        let more = |traffic: &Traffic| traffic.waits("good").len() < count;
        let done = |traffic: &Traffic| traffic.have_ended("good");
        traffic.run(&mut env, json!({}), Duration::from_secs(18), more, done).await;

        for n in 0..self.users {
            assert_apart(&calls_of(&env, &format!("limited-{n}")), self.seconds);
        }
        let [first, repeat, ..] = calls_of(&env, "limited-0")[..] else {
            panic!("not called again\n{traffic}");
        };
        let held = Duration::from_millis(500)..Duration::from_millis(self.seconds * 1_000 - 100);
        let calls = env.platform.calls();
        let early = calls.iter().filter(|call| held.contains(&(call.at.max(first) - first)));
        assert_eq!(early.count(), 0, "the first Retry-After is honoured for every call");
        for wait in traffic.waits("good") {
            let latest = repeat.max(wait.published) + Duration::from_secs(5);
            let served = wait.ended.is_some_and(|ended| ended.at <= latest);
            assert!(served, "{}: late\n{traffic}", wait.id);
        }
        assert_no_attempt_spent(&env, &worker).await;
        assert!(worker.log_lines(log_text::BREAKER_OPEN).is_empty());
        readiness.assert_since(first, 200);
    }
}

#[tokio::test]
async fn repeated_retry_after_of_some_requests_delays_no_other() {
    let limited = Limited { users: 2, concurrency: "8", seconds: 7 };
    tokio::join!(limited.serve_others(429), limited.serve_others(503));
}

#[tokio::test]
async fn repeated_retry_after_in_the_only_slot_delays_no_other() {
    let limited = Limited { users: 1, concurrency: "1", seconds: 7 };
    tokio::join!(limited.serve_others(429), limited.serve_others(503));
}

#[tokio::test]
async fn many_requests_of_one_limited_user_leave_their_slots_to_others() {
    let mut env = TestEnv::builder().platform(limit_some_users(429, 4)).start().await;
    env.set("CONCURRENCY", "4").set("RETRY_BUDGET", "2s").set("RETRY_DELAYS", "1s,2s");
    let worker = env.start_worker().await;
    let mut traffic = Traffic::default();
    for n in 0..10 {
        traffic.publish(&env, &format!("bad-{n}"), json!({ "userId": "limited" })).await;
    }
    let more = |traffic: &Traffic| traffic.waits("good").len() < 10;
    let done = |traffic: &Traffic| traffic.have_ended("good");
    traffic.run(&mut env, json!({}), Duration::from_secs(20), more, done).await;
    // Two waits for everyone at most, and those that follow leave three slots every second.
    traffic.assert_served_within(Duration::from_secs(12));
    assert_no_attempt_spent(&env, &worker).await;
}

#[tokio::test]
async fn copy_of_a_deferred_request_carries_how_often_it_was_deferred() {
    let mut env = TestEnv::builder().platform(limit_some_users(429, 2)).start().await;
    env.set("CONCURRENCY", "1").set("RETRY_DELAYS", "1s");
    env.declare_topology().await;
    let mut traffic = Traffic::default();
    traffic.publish(&env, "limited", json!({})).await;
    let worker = env.start_worker().await;
    let more = |traffic: &Traffic| traffic.waits("good").len() < 3;
    let done = |traffic: &Traffic| traffic.have_ended("good");
    // They can be served only after the deferred request has left the only slot.
    traffic.run(&mut env, json!({}), Duration::from_secs(20), more, done).await;
    traffic.assert_served_within(Duration::from_secs(10));
    assert_no_attempt_spent(&env, &worker).await;
    worker.stop().await;
    let copy = env.rabbitmq.take(&env.rabbitmq.queue.clone()).await;
    assert_eq!(copy.text_header("x-handoff-request-id"), "limited");
    let deferred = count_header(&copy, "x-handoff-deferred");
    assert!((1..10).contains(&deferred), "{:?}", copy.properties);
    assert_eq!(count_header(&copy, "x-handoff-attempt"), 0);
}

#[tokio::test]
async fn every_tenth_deferral_of_one_request_counts_as_an_attempt() {
    let mut env = TestEnv::builder().platform(limit_some_users(429, 1)).start().await;
    env.set("CONCURRENCY", "8").set("RETRY_DELAYS", "1s");
    let worker = env.start_worker().await;
    // Others are answered well between any two deferrals.
    let mut traffic = Traffic::every(Duration::from_millis(300));
    // Eight deferrals are already counted, so that the test ends sooner.
    let properties = BasicProperties::default()
        .with_headers(field_table(&[("x-handoff-deferred", AMQPValue::LongLongInt(8))]));
    traffic.publish_with(&env, "bad", json!({ "userId": "limited" }), properties).await;
    let more = |traffic: &Traffic| !traffic.have_ended("bad");
    let done = |traffic: &Traffic| traffic.have_ended("");
    traffic.run(&mut env, json!({}), Duration::from_secs(28), more, done).await;
    traffic.assert_exhausted(&env, 2).await;
    traffic.assert_served_within(Duration::from_secs(5));
    let limited = calls_of(&env, "limited");
    // Two deferrals and ten more; those before another request was answered well do not count.
    assert!((12..=16).contains(&limited.len()), "{} calls", limited.len());
    assert_apart(&limited, 1);
    let finished = worker.log_lines(log_text::REQUEST_FINISHED);
    let retried = finished.iter().filter(|line| line["outcome"] == "retried").count();
    assert_eq!(retried, 1);
}

/// Limits every call that `is_limited`, for longer than ten times the `Retry-After`.
async fn limit_everyone(is_limited: fn(&Call) -> bool) {
    let script = move |call: &Call| {
        if is_limited(call) {
            Answer::status(429).header("retry-after", "1")
        } else {
            success(call)
        }
    };
    let mut env = TestEnv::builder().platform(script).start().await;
    env.set("CONCURRENCY", "2").set("RETRY_BUDGET", "1s").set("RETRY_DELAYS", "1s");
    let worker = env.start_worker().await;
    env.publish_requests(0..2).await;
    // Longer than ten pauses.
    tokio::time::sleep(Duration::from_millis(12_500)).await;
    let calls = env.platform.calls().len();
    assert!(calls <= 2 + 2 * 13, "{calls} calls in 12 s");
    env.platform.set_script(success);
    env.expect_all_ready(2).await;
    assert_no_attempt_spent(&env, &worker).await;
    assert!(worker.log_lines(log_text::BREAKER_OPEN).is_empty());
}

#[tokio::test]
async fn retry_after_for_everyone_spends_no_attempt_however_often() {
    tokio::join!(limit_everyone(|_| true), limit_everyone(|call| !call.is_token()));
}
