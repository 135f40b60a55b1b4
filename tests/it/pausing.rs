//! The gate: what happens while calling the platform is of no use.

use std::{
    collections::HashSet,
    time::{Duration, Instant, SystemTime},
};

use lapin::{BasicProperties, types::AMQPValue};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::{
    Answer, Flow, Latch, TempFile, TestEnv, Worker, log_text,
    platform::{API_KEY, Call, hold_calls, success},
    rabbitmq::{field_table, long_string},
    wait_until,
};

const PAUSED: &str = "handoff_platform_paused";

fn away(_: &Call) -> Answer {
    Answer::status(503)
}

async fn publish(env: &TestEnv, from: usize, count: usize) {
    for n in from..from + count {
        env.publish_request(&format!("r-{n}"), &format!("user-{n}")).await;
    }
}

/// Asks for somebody who waits for so long.
async fn ask_until(env: &TestEnv, end: Duration) {
    let expires_at = handoff::message::format_date_time(SystemTime::now() + end);
    env.rabbitmq.publish_request("e", json!({ "userId": "e", "expiresAt": expires_at })).await;
}

/// The requests that so many events are about, each `handoff.ready`.
async fn served(env: &mut TestEnv, count: usize) -> HashSet<String> {
    let events = env.rabbitmq.next_events(count).await;
    assert!(events.iter().all(|event| event.routing_key == "handoff.ready"));
    events.iter().map(|event| event.data()["requestId"].to_string()).collect()
}

async fn readiness(worker: &Worker) -> (u16, Value) {
    let (status, page) = worker.get("/readyz").await;
    (status, serde_json::from_str::<Value>(&page).unwrap()["failing"].clone())
}

/// Nothing went to a retry queue or the dead queue.
async fn assert_unspent(env: &TestEnv, worker: &Worker) {
    for outcome in ["retried", "failed"] {
        let series = format!("handoff_requests_total{{outcome=\"{outcome}\"}}");
        assert_eq!(worker.metric(&series).await, 0.0, "{outcome}");
    }
    let dead = env.dead_queue();
    assert_eq!(env.rabbitmq.depth(&dead).await, 0);
    assert!(worker.log_lines(log_text::REQUEST_FINISHED).iter().all(|line| line["attempt"] == 1));
}

#[tokio::test]
async fn an_outage_costs_few_calls_no_attempt_and_no_time_once_it_is_over() {
    let mut env = TestEnv::builder().platform(away).start().await;
    env.set("RETRY_BUDGET", "2s");
    let workers = [env.start_worker().await, env.start_worker().await];
    let began = Instant::now();
    publish(&env, 0, 300).await;
    for worker in &workers {
        worker.wait_for_log(log_text::BREAKER_OPEN).await;
        assert_eq!(readiness(worker).await, (503, json!(["platform"])));
        assert_eq!(worker.metric(PAUSED).await, 1.0);
    }
    // Five calls open a breaker; then one probe after 0.75 s, one 1.5 s later, and one every 2.9 s.
    env.platform.wait_for_calls(2 * 8).await;
    let took = began.elapsed();
    assert!(took > Duration::from_secs(4), "{took:?}");
    env.platform.set_script(success);
    let back = Instant::now();
    env.rabbitmq.next_event().await;
    assert!(back.elapsed() < Duration::from_secs(4), "{:?}", back.elapsed());
    assert_eq!(served(&mut env, 299).await.len(), 299);
    assert_eq!(env.platform.session_calls().len(), 300);
    for worker in &workers {
        assert_unspent(&env, worker).await;
        assert_eq!(
            (
                worker.log_lines(log_text::BREAKER_OPEN).len(),
                worker.log_lines(log_text::RESUMED).len()
            ),
            (1, 1)
        );
        assert_eq!(readiness(worker).await, (200, Value::Null));
        assert_eq!(worker.metric(PAUSED).await, 0.0);
    }
}

#[tokio::test]
async fn an_outage_spends_no_attempt_even_where_there_is_no_budget() {
    let mut env = TestEnv::builder().platform(away).start().await;
    env.set("RETRY_BUDGET", "0s");
    env.declare_topology().await;
    publish(&env, 0, 20).await;
    let worker = env.start_worker().await;
    worker.wait_for_log(log_text::BREAKER_OPEN).await;
    env.platform.set_script(success);
    assert_eq!(served(&mut env, 20).await.len(), 20);
    assert_unspent(&env, &worker).await;
}

#[tokio::test]
async fn sessions_that_fail_for_everyone_are_an_outage_and_keep_their_tokens() {
    let script = |call: &Call| if call.is_token() { success(call) } else { Answer::status(500) };
    let mut env = TestEnv::builder().platform(script).start().await;
    env.set("RETRY_BUDGET", "1s").set("CONCURRENCY", "8");
    let worker = env.start_worker().await;
    publish(&env, 0, 8).await;
    worker.wait_for_log(log_text::BREAKER_OPEN).await;
    env.platform.set_script(success);
    assert_eq!(served(&mut env, 8).await.len(), 8);
    assert_eq!(env.platform.token_calls().len(), 8);
    assert_unspent(&env, &worker).await;
}

#[tokio::test]
async fn one_request_that_always_fails_pauses_nobody() {
    let poison = |call: &Call| match call.user_is("poison") {
        true => Answer::status(500),
        false => success(call),
    };
    let mut env = TestEnv::builder().platform(poison).start().await;
    env.set("RETRY_BUDGET", "700ms").set("RETRY_DELAYS", "100ms,200ms");
    let worker = env.start_worker().await;
    env.publish_request("poison", "poison").await;
    let event = env.rabbitmq.next_event().await;
    assert_eq!(event.data()["reason"]["code"], "retries_exhausted");
    assert_eq!(event.data()["attempts"], 3);
    assert!(env.platform.session_calls().len() > 5, "more than a breaker wants");
    publish(&env, 0, 1).await;
    served(&mut env, 1).await;
    assert!(worker.log_lines(log_text::BREAKER_OPEN).is_empty());
}

#[tokio::test]
async fn a_wrong_key_holds_everything_until_the_file_has_the_right_one() {
    let guarded = |call: &Call| match call.is_token() && call.header("authorization") != API_KEY {
        true => Answer::status(401),
        false => success(call),
    };
    let mut env = TestEnv::builder().platform(guarded).start().await;
    let key = TempFile::new("wrong-k3y-that-nobody-may-see\n");
    env.settings.remove("HANDOFF_IDV_API_KEY");
    env.set("IDV_API_KEY_FILE", key.path()).set("RETRY_BUDGET", "0s");
    let worker = env.start_worker().await;
    publish(&env, 0, 100).await;
    let line = worker.wait_for_log(log_text::TOKEN_REFUSED).await;
    let error = line["error"].as_str().unwrap();
    assert!(error.contains("401") && error.contains("HANDOFF_IDV_API_KEY"), "{error}");
    assert_eq!(readiness(&worker).await, (503, json!(["platform"])));
    assert_eq!(worker.get("/livez").await.0, 200);
    // The first finds it out; the others that had gone by then hear the same; one probe follows.
    let early = env.platform.calls().len();
    env.platform.wait_for_calls(early + 1).await;
    // What is no key is not taken for one.
    std::fs::write(key.path(), "").unwrap();
    let line = worker.wait_for_log(log_text::API_KEY_FILE_INVALID).await;
    assert_eq!(line["error"], log_text::API_KEY_FILE_EMPTY);
    std::fs::write(key.path(), format!("{API_KEY}\n")).unwrap();
    assert_eq!(served(&mut env, 100).await.len(), 100);
    assert_unspent(&env, &worker).await;
    assert_eq!(
        (
            worker.log_lines(log_text::TOKEN_REFUSED).len(),
            worker.log_lines(log_text::RESUMED).len()
        ),
        (1, 1),
        "told once"
    );
    assert_eq!(readiness(&worker).await, (200, Value::Null));
    assert!(env.platform.token_calls().len() <= 100 + 8, "no herd");
}

#[tokio::test]
async fn a_wrong_host_pauses_too() {
    for answer in [
        Answer::status(302).header("location", "http://127.0.0.1:1/elsewhere"),
        Answer::status(404),
    ] {
        let script = move |_: &Call| answer.clone();
        let mut env = TestEnv::builder().platform(script).start().await;
        env.set("RETRY_BUDGET", "0s");
        let worker = env.start_worker().await;
        publish(&env, 0, 3).await;
        worker.wait_for_log(log_text::TOKEN_REFUSED).await;
        env.platform.set_script(success);
        served(&mut env, 3).await;
        assert_unspent(&env, &worker).await;
    }
}

#[tokio::test]
async fn a_platform_that_asks_to_be_left_alone_is_left_alone_by_all() {
    let script = |call: &Call| match (call.is_token(), call.nth) {
        (false, 0) => Answer::status(429).header("retry-after", "2"),
        _ => success(call),
    };
    let mut env = TestEnv::builder().platform(script).start().await;
    env.set("RETRY_BUDGET", "0s");
    let worker = env.start_worker().await;
    publish(&env, 0, 1).await;
    let line = worker.wait_for_log(log_text::RATE_LIMITED).await;
    assert_eq!(line[log_text::RETRY_AFTER], 2);
    let asked = Instant::now();
    let before = env.platform.calls().len();
    publish(&env, 1, 5).await;
    worker.wait_for_in_flight(6).await;
    assert_eq!(worker.metric(PAUSED).await, 1.0);
    assert_eq!(worker.get("/readyz").await.0, 200, "that is no fault");
    assert_eq!(env.platform.calls().len(), before);
    assert_eq!(served(&mut env, 6).await.len(), 6);
    assert!(asked.elapsed() >= Duration::from_millis(1_900), "{:?}", asked.elapsed());
    let first = &env.platform.calls()[before];
    assert!(first.at - asked >= Duration::from_millis(1_900));
    assert_unspent(&env, &worker).await;
    assert_eq!(worker.metric(PAUSED).await, 0.0);
}

#[tokio::test]
async fn what_is_held_gives_way_to_a_shutdown_and_heeds_its_end() {
    let mut env = TestEnv::builder().platform(away).start().await;
    let worker = env.start_worker().await;
    publish(&env, 0, 5).await;
    worker.wait_for_log(log_text::BREAKER_OPEN).await;
    ask_until(&env, Duration::from_secs(1)).await;
    let event = env.rabbitmq.next_event().await;
    assert_eq!(event.data()["reason"]["code"], "request_expired");
    let asked = Instant::now();
    worker.stop().await;
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    env.rabbitmq.wait_for_depth(5).await;
}

#[tokio::test]
async fn with_nobody_waiting_it_resumes_by_itself() {
    let mut env = TestEnv::builder().platform(|_| Answer::status(403)).start().await;
    let worker = env.start_worker().await;
    ask_until(&env, Duration::from_secs(2)).await;
    worker.wait_for_log(log_text::TOKEN_REFUSED).await;
    assert_eq!(env.rabbitmq.next_event().await.data()["reason"]["code"], "request_expired");
    env.platform.set_script(success);
    worker.wait_for_log(log_text::RESUMED).await;
    assert_eq!(readiness(&worker).await, (200, Value::Null));
    assert!(env.platform.session_calls().is_empty());
}

#[tokio::test]
async fn a_live_link_is_handed_out_while_calls_are_held() {
    let mut env = TestEnv::start().await;
    let worker = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    env.rabbitmq.next_event().await;
    env.platform.set_script(away);
    publish(&env, 0, 6).await;
    worker.wait_for_log(log_text::BREAKER_OPEN).await;
    env.publish_request("r-2", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["reused"], true);
}

/// A worker that keeps no request for longer than 300 ms. In this process, since how long that is cannot
/// be set from outside.
async fn keeping_nothing_long(env: &TestEnv) -> (JoinHandle<()>, CancellationToken) {
    let mut settings = env.parsed_settings();
    settings.worker.hold_limit = Duration::from_millis(300);
    let (listener, stop) =
        (tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap(), CancellationToken::new());
    let run = handoff::worker::run(settings, listener, stop.clone());
    (tokio::spawn(async { run.await.unwrap() }), stop)
}

#[tokio::test]
async fn who_is_held_too_long_goes_to_the_end_of_the_queue_with_nothing_spent() {
    let mut env = TestEnv::builder().platform(|_| Answer::status(401)).start().await;
    env.set("RETRY_DELAYS", "100ms");
    env.declare_topology().await;
    let (worker, stop) = keeping_nothing_long(&env).await;
    // It has been tried once before, and keeps that.
    let properties =
        BasicProperties::default().with_message_id("r-1".into()).with_headers(field_table(&[
            ("mine", long_string("kept")),
            ("x-handoff-attempt", AMQPValue::LongInt(1)),
        ]));
    env.rabbitmq.publish(json!({ "userId": "ann" }).to_string(), properties).await;
    env.platform.wait_for_calls(1).await;
    // Longer than it may be held: it comes back, and is held again.
    tokio::time::sleep(Duration::from_secs(1)).await;
    stop.cancel();
    worker.await.unwrap();
    let message = env.rabbitmq.take(&env.rabbitmq.queue.clone()).await;
    assert_eq!(message.text_header("mine"), "kept");
    assert_eq!(message.header("x-handoff-attempt"), Some(&AMQPValue::LongLongInt(1)));
    assert_eq!(message.text_header("x-handoff-request-id"), "r-1");
    // A copy: RabbitMQ's own count begins anew, and never comes near the delivery limit.
    let count = message.header("x-delivery-count").cloned();
    assert!(
        count.is_none_or(|count| count == AMQPValue::LongLongInt(1)),
        "handed back once, at the end"
    );
    assert_eq!(env.dead_letters().await, 0);
}

#[tokio::test]
async fn a_budget_longer_than_a_request_may_be_kept_is_spent_all_the_same() {
    let script = |call: &Call| if call.is_token() { success(call) } else { Answer::status(500) };
    let mut env = TestEnv::builder().platform(script).start().await;
    env.set("RETRY_DELAYS", "100ms").set("RETRY_BUDGET", "1h");
    env.declare_topology().await;
    let (worker, stop) = keeping_nothing_long(&env).await;
    env.publish_request("r-1", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["reason"]["code"], "retries_exhausted");
    stop.cancel();
    worker.await.unwrap();
}

#[tokio::test]
async fn what_is_held_is_let_go_when_rabbitmq_is_lost() {
    let mut env = TestEnv::builder().platform(away).start().await;
    let proxy = env.amqp_proxy_with_heartbeat(1).await;
    env.set("CONCURRENCY", "3");
    let worker = env.start_worker().await;
    publish(&env, 0, 3).await;
    worker.wait_for_log(log_text::BREAKER_OPEN).await;
    proxy.set_flow(Flow::Held);
    worker.wait_for_log(log_text::RABBITMQ_LOST).await;
    proxy.set_flow(Flow::Forwarded);
    // Nobody waits in a place that RabbitMQ has given away: whoever comes next needs it.
    wait_until("they are let go", async || worker.log_lines(log_text::HANDED_BACK).len() == 3)
        .await;
    env.platform.set_script(success);
    served(&mut env, 3).await;
}

#[tokio::test]
async fn a_token_that_has_waited_too_long_is_replaced() {
    let script = |call: &Call| if call.is_token() { success(call) } else { Answer::status(500) };
    let mut env = TestEnv::builder().platform(script).start().await;
    env.set("IDV_TOKEN_TTL", "5s").set("LINK_MIN_LIFE", "2s").set("CONCURRENCY", "4");
    let worker = env.start_worker().await;
    publish(&env, 0, 4).await;
    worker.wait_for_log(log_text::BREAKER_OPEN).await;
    // Probes use the tokens up to their last good moment; then new ones are asked for.
    env.platform.wait_for_calls(4 + 5 + 3).await;
    env.platform.set_script(success);
    let events = env.rabbitmq.next_events(4).await;
    for event in events {
        // Both are RFC 3339 in UTC.
        let (event, data) = (event.json(), event.data());
        assert!(data["expiresAt"].as_str() > event["time"].as_str(), "{event}");
    }
    assert_unspent(&env, &worker).await;
}

#[tokio::test]
async fn a_slow_platform_is_called_by_all_at_once() {
    let (latch, script) = hold_calls(|_| true);
    let mut env = TestEnv::builder().platform(script).start().await;
    let _worker = env.start_worker().await;
    publish(&env, 0, 64).await;
    env.platform.wait_for_calls(64).await;
    latch.open();
    assert_eq!(served(&mut env, 64).await.len(), 64);
}

#[tokio::test]
async fn a_probe_that_hangs_until_others_have_found_the_platform_well_spends_nothing() {
    let never = Latch::closed();
    let silent = move |call: &Call| success(call).held_by(&never);
    let mut env = TestEnv::builder().platform(silent).start().await;
    // A probe hangs for longer than until the next begins.
    env.set("IDV_TIMEOUT", "4s").set("RETRY_BUDGET", "2s").set("CONCURRENCY", "8");
    let worker = env.start_worker().await;
    publish(&env, 0, 16).await;
    worker.wait_for_log(log_text::BREAKER_OPEN).await;
    let before = env.platform.calls().len();
    // The third is under way, which begins 2.9 s before the fourth.
    env.platform.wait_for_calls(before + 3).await;
    env.platform.set_script(success);
    assert_eq!(served(&mut env, 16).await.len(), 16);
    worker.wait_for_finished(16).await;
    assert_unspent(&env, &worker).await;
}

#[tokio::test]
async fn a_connection_that_breaks_twice_in_a_pause_holds_up_nobody_who_needs_no_call() {
    let mut env = TestEnv::start().await;
    let proxy = env.proxy("AMQP_URL").await;
    let worker = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    env.rabbitmq.next_event().await;
    env.platform.set_script(|_| Answer::status(403));
    publish(&env, 0, 3).await;
    worker.wait_for_in_flight(3).await;
    // The second comes at once, with a request in hand: that may be what breaks it.
    proxy.close_connections();
    worker.wait_for_logs(log_text::CONSUMING, 2).await;
    wait_until("one is taken again", async || worker.metric("handoff_in_flight").await > 0.0).await;
    proxy.close_connections();
    worker
        .wait_for_log_with(log_text::CONSUMING, |line| {
            line[log_text::WINDOW] == log_text::WINDOW_ONE_AT_A_TIME
        })
        .await;
    env.publish_request("r-2", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["reused"], true);
}
