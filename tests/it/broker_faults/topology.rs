//! Exchanges, bindings and queues that are deleted while a worker runs.

use lapin::BasicProperties;
use serde_json::json;

use crate::support::{Message, TestEnv, log_text, platform::hold_calls, wait_until};

#[tokio::test]
async fn deleted_request_exchange_and_binding_are_declared_again() {
    let mut env = TestEnv::start().await;
    let worker = env.start_worker().await;
    let request = json!({ "userId": "ann" });
    let published = async |env: &TestEnv, id: &str| {
        wait_until("it is routed", async || {
            env.rabbitmq.try_publish_request(id, request.clone()).await
        })
        .await;
    };
    // Bound once it is routed.
    let ended = async |env: &TestEnv| {
        env.rabbitmq.publish_ending(json!({ "sessionId": 7 }), BasicProperties::default()).await;
    };
    ended(&env).await;
    env.rabbitmq.delete_exchange(&env.rabbitmq.request_exchange).await;
    published(&env, "r-1").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["requestId"], "r-1");
    ended(&env).await;
    worker.wait_for_endings("unknown", 2).await;
    env.rabbitmq.unbind_request_queue().await;
    published(&env, "r-2").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["requestId"], "r-2");
    assert_eq!(worker.log_lines(log_text::CONSUMING).len(), 1);
}

#[tokio::test]
async fn deleted_exchange_is_logged_once_where_the_worker_declares_nothing() {
    let mut env = TestEnv::start().await;
    env.declare_topology().await;
    env.set("DECLARE_TOPOLOGY", "false");
    let worker = env.start_worker().await;
    let exchange = env.rabbitmq.request_exchange.clone();
    env.rabbitmq.delete_exchange(&exchange).await;
    let line = worker.wait_for_log(log_text::TOPOLOGY_DIFFERS).await;
    assert!(line["error"].as_str().unwrap().contains(&exchange), "{line}");
    // The worker still serves what reaches the queue.
    let request = Message {
        routing_key: env.rabbitmq.queue.clone(),
        properties: lapin::BasicProperties::default().with_message_id("r-1".into()),
        body: json!({ "userId": "ann" }).to_string().into(),
    };
    env.rabbitmq.publish_to_queue(&env.rabbitmq.queue, &request).await;
    assert_eq!(env.rabbitmq.next_event().await.data()["requestId"], "r-1");
    assert_eq!(worker.log_lines(log_text::CONSUMING).len(), 1);
    assert_eq!(worker.log_lines(log_text::TOPOLOGY_DIFFERS).len(), 1);
}

#[tokio::test]
async fn deleted_queues_are_declared_again() {
    let mut env = TestEnv::start().await;
    env.set("RETRY_DELAYS", "200ms");
    let worker = env.start_worker().await;
    env.rabbitmq.delete_queue(&env.rabbitmq.queue).await;
    worker.wait_for_logs(log_text::CONSUMING, 2).await;
    // A missing dead queue is declared when a dead letter is to be published.
    env.rabbitmq.delete_queue(&env.dead_queue()).await;
    env.rabbitmq.publish("not a request", Default::default()).await;
    assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.failed");
    worker.wait_for_finished(1).await;
    env.rabbitmq.take_dead_letter().await;
    env.publish_request("r-1", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.ready");
}

#[tokio::test]
async fn deleted_event_exchange_is_declared_again() {
    let mut env = TestEnv::builder().without_event_queue().start().await;
    env.set("RETRY_DELAYS", "200ms,5m");
    let worker = env.start_worker().await;
    env.rabbitmq.delete_exchange(&env.rabbitmq.event_exchange).await;
    env.publish_request("r-1", "ann").await;
    // The exchange exists again, but no queue is bound to it yet.
    assert_eq!(worker.wait_for_finished(1).await["outcome"], "retried");
    env.rabbitmq.assert_exchange_exists(&env.rabbitmq.event_exchange).await;
    env.rabbitmq.consume_events().await;
    assert_eq!(env.rabbitmq.next_event().await.data()["reused"], true);
}

#[tokio::test]
async fn requests_in_flight_when_the_queue_is_deleted_are_served() {
    let (latch, script) = hold_calls(|_| true);
    let mut env = TestEnv::builder().platform(script).start().await;
    let worker = env.start_worker().await;
    env.publish_requests(0..5).await;
    env.platform.wait_for_calls(5).await;
    env.rabbitmq.delete_queue(&env.rabbitmq.queue).await;
    worker.wait_for_logs(log_text::CONSUMING, 2).await;
    latch.open();
    let events = env.rabbitmq.next_events(5).await;
    assert!(events.iter().all(|event| event.routing_key == "handoff.ready"));
    env.publish_request("r-5", "user-0").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["reused"], true);
}
