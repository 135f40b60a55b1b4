//! The worker's own look at its queues: their depths, without a plugin.

use std::time::{Duration, Instant};

use crate::support::{
    Flow, TestEnv, Worker, log_text, platform::hold_calls, rabbitmq::Message, wait_until,
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
    env.set("CONCURRENCY", "1").set("RETRY_DELAYS", "1h,2h");
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
