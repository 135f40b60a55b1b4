//! Retry queues that keep copies after their time.

use std::time::Duration;

use lapin::{BasicProperties, options::QueueDeclareOptions, types::FieldTable};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::support::{
    Message, TestEnv,
    rabbitmq::{field_table, long_string},
};

const RETRIES_STUCK: &str = "retry queue keeps messages after their time";
const RETRIES_MOVING: &str = "retry queue passes on messages again";
/// Two minutes, and the looks around them.
const LONGEST: Duration = Duration::from_secs(160);

fn copy(user: &str) -> Message {
    Message {
        routing_key: String::new(),
        properties: BasicProperties::default(),
        body: json!({ "userId": user }).to_string().into(),
    }
}

/// Polls every second: the condition takes minutes.
async fn wait_long(what: &str, mut condition: impl AsyncFnMut() -> bool) -> Duration {
    let since = Instant::now();
    while !condition().await {
        assert!(since.elapsed() < LONGEST, "{what}: not within {LONGEST:?}");
        sleep(Duration::from_secs(1)).await;
    }
    since.elapsed()
}

/// An operator has created a retry queue without its TTL.
#[tokio::test]
async fn copies_that_do_not_expire_are_reported() {
    let mut env = TestEnv::start().await;
    env.set("RETRY_DELAYS", "1s,2s");
    env.declare_topology().await;
    env.set("DECLARE_TOPOLOGY", "false");
    let queue = format!("{}.retry.2s", env.rabbitmq.queue);
    env.rabbitmq.delete_queue(&queue).await;
    let arguments: FieldTable = field_table(&[("x-queue-type", long_string("quorum"))]);
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    let channel = env.rabbitmq.open_channel().await;
    channel.queue_declare(queue.as_str().into(), options, arguments).await.unwrap();
    let worker = env.start_worker().await;
    env.rabbitmq.publish_to_queue(&queue, &copy("ann")).await;
    let stuck = async || !worker.log_lines(RETRIES_STUCK).is_empty();
    let after = wait_long("the report", stuck).await;
    assert!(after > Duration::from_secs(110), "{after:?}");
    let line = worker.wait_for_log(RETRIES_STUCK).await;
    assert_eq!((&line["queue"], &line["messages"]), (&json!(queue), &json!(1)));
    assert_eq!(worker.metric("handoff_retry_queues_stuck").await, 1.0);
    env.rabbitmq.take(&queue).await;
    worker.wait_for_log(RETRIES_MOVING).await;
    assert_eq!(worker.metric("handoff_retry_queues_stuck").await, 0.0);
    worker.stop().await;
}
