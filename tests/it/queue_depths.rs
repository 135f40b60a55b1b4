//! The worker's own look at its queues: their depths, without a plugin.

use std::time::{Duration, Instant};

use lapin::{BasicProperties, types::AMQPValue};

use crate::support::{
    Answer, Flow, TestEnv, Worker, log_text,
    platform::{Call, hold_calls, success},
    rabbitmq::{Message, field_table},
    wait_until,
};

const CONSUMERS: &str = "handoff_queue_consumers{queue=\"request\"}";

fn messages(queue: &str) -> String {
    format!("handoff_queue_messages{{queue=\"{queue}\"}}")
}

/// Waits until the worker reports these depths, at most for the 15 s that are documented.
async fn assert_follows(worker: &Worker, request: f64, retry: f64, dead: f64) {
    let since = Instant::now();
    let expected = [("request", request), ("retry", retry), ("dead", dead)];
    wait_until("the depths", async || {
        for (queue, value) in expected {
            let series = messages(queue);
            if !worker.has_metric(&series).await || worker.metric(&series).await != value {
                return false;
            }
        }
        true
    })
    .await;
    assert!(since.elapsed() < Duration::from_secs(15), "{:?}", since.elapsed());
}

#[tokio::test]
async fn depths_follow_the_queues_and_vanish_while_not_connected() {
    let (release, script) = hold_calls(|_| true);
    let mut env = TestEnv::builder().platform(script).start().await;
    let proxy = env.proxy("AMQP_URL").await;
    // A held call must not time out and become a retry copy before the depths are seen.
    env.set("CONCURRENCY", "1").set("RETRY_DELAYS", "1h,2h").set("IDV_TIMEOUT", "1m");
    let worker = env.start_worker().await;
    assert_follows(&worker, 0.0, 0.0, 0.0).await;
    assert_eq!(worker.metric(CONSUMERS).await, 1.0);

    // One request is in flight, three are ready.
    env.publish_requests(0..4).await;
    let queue = &env.rabbitmq.queue;
    let to = |suffix: &str| format!("{queue}.{suffix}");
    let waiting =
        Message { routing_key: String::new(), properties: Default::default(), body: b"{}".into() };
    for queue in [to("retry.1h"), to("retry.2h"), to("retry.2h"), to("dead")] {
        env.rabbitmq.publish_to_queue(&queue, &waiting).await;
    }
    assert_follows(&worker, 3.0, 3.0, 1.0).await;

    proxy.set_flow(Flow::Held);
    proxy.close_connections();
    worker.wait_for_log(log_text::RABBITMQ_LOST).await;
    for series in [messages("request"), messages("retry"), messages("dead"), CONSUMERS.to_owned()] {
        assert!(!worker.has_metric(&series).await, "{series}");
    }
    proxy.set_flow(Flow::Forwarded);
    worker.wait_for_logs(log_text::CONSUMING, 2).await;
    release.open();
    assert_follows(&worker, 0.0, 3.0, 1.0).await;
}

/// Fails the first session call; the retry budget ends with it.
fn fail_first(call: &Call) -> Answer {
    if !call.is_token() && call.nth == 0 { Answer::status(503) } else { success(call) }
}

#[tokio::test]
async fn late_copy_is_measured_and_an_old_copy_without_its_due_time_is_not() {
    let mut env = TestEnv::builder().platform(fail_first).start().await;
    env.set("RETRY_BUDGET", "100ms").set("RETRY_DELAYS", "1s");
    let worker = env.start_worker().await;
    env.publish_request("late", "ann").await;
    assert_eq!(worker.wait_for_finished(1).await["outcome"], "retried");
    worker.stop().await;
    // The copy is due after 1 s, and no worker takes it for another 2 s.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let worker = env.start_worker().await;
    env.rabbitmq.next_event().await;
    assert_eq!(worker.metric("handoff_retry_late_seconds_count").await, 1.0);
    let late = worker.metric("handoff_retry_late_seconds_sum").await;
    assert!((1.0..20.0).contains(&late), "{late}");

    // Copies of release 0.1: without the header, or with that of the delivery that they are a copy of, which it
    // keeps like any other header. It puts those that it held for long into the request queue.
    let retry_queue = format!("{}.retry.1s", env.rabbitmq.queue);
    let number = |name, value| (name, AMQPValue::LongLongInt(value));
    let stale = [number("x-handoff-due", 1_000), number("x-handoff-due-attempt", 1)];
    for (queue, attempt, due) in [
        (&retry_queue, 1, &stale[..0]),
        (&retry_queue, 2, &stale[..]),
        (&retry_queue, 1, &stale[..1]),
        (&env.rabbitmq.queue, 1, &stale[..]),
    ] {
        let headers = [&[number("x-handoff-attempt", attempt)], due].concat();
        let old = Message {
            routing_key: String::new(),
            properties: BasicProperties::default().with_headers(field_table(&headers)),
            body: br#"{"userId":"ben"}"#.to_vec(),
        };
        env.rabbitmq.publish_to_queue(queue, &old).await;
    }
    for event in env.rabbitmq.next_events(4).await {
        assert_eq!(event.routing_key, "handoff.ready");
    }
    assert_eq!(worker.metric("handoff_retry_late_seconds_count").await, 1.0);
}
