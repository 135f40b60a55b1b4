//! Retry queues that keep copies after their time.

use std::time::{Duration, SystemTime};

use lapin::{
    BasicProperties,
    options::QueueDeclareOptions,
    types::{AMQPValue, FieldTable},
};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::support::{
    Message, Node, TestEnv,
    platform::hold_calls,
    rabbitmq::{field_table, long_string},
};

const RETRIES_STUCK: &str = "retry queue keeps messages after their time";
const RETRIES_MOVING: &str = "retry queue passes on messages again";
/// RabbitMQ tries again after 180 s to pass on a message that its target refused.
const LONGEST: Duration = Duration::from_secs(240);

/// A copy that is due in a second.
fn copy(user: &str) -> Message {
    let due = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() + 1_000;
    let headers = field_table(&[
        ("x-handoff-attempt", AMQPValue::LongLongInt(1)),
        ("x-handoff-due", AMQPValue::LongLongInt(due.try_into().unwrap())),
        ("x-handoff-due-attempt", AMQPValue::LongLongInt(1)),
    ]);
    Message {
        routing_key: String::new(),
        properties: BasicProperties::default().with_headers(headers),
        body: json!({ "userId": user }).to_string().into(),
    }
}

/// Polls every second: each condition here takes minutes.
async fn wait_long(what: &str, mut condition: impl AsyncFnMut() -> bool) -> Duration {
    let since = Instant::now();
    while !condition().await {
        assert!(since.elapsed() < LONGEST, "{what}: not within {LONGEST:?}");
        sleep(Duration::from_secs(1)).await;
    }
    since.elapsed()
}

#[tokio::test]
async fn retries_that_rabbitmq_keeps_are_noticed() {
    // Together, since each takes minutes.
    tokio::join!(copies_of_a_full_queue_are_late(), copies_that_do_not_expire_are_reported());
}

/// Expired copies that the request queue refuses wait in the retry queue's dead-letter buffer.
async fn copies_of_a_full_queue_are_late() {
    let node = Node::shared_rabbitmq();
    let (release, script) = hold_calls(|_| true);
    let mut env = TestEnv::builder().platform(script).start().await;
    env.set("CONCURRENCY", "1").set("RETRY_DELAYS", "1s");
    let worker = env.start_worker().await;
    let queue = env.rabbitmq.queue.clone();
    let retry_queue = format!("{queue}.retry.1s");
    let limit = r#"{"max-length": 2}"#;
    let pattern = format!("^{queue}$");
    node.ctl(&["set_policy", &env.name, &pattern, limit, "--apply-to", "queues"]).await;
    let mut published = 0;
    wait_long("the queue is full", async || {
        let user = json!({ "userId": format!("user-{published}") });
        published += 1;
        !env.rabbitmq.try_publish_request(&format!("r-{published}"), user).await
    })
    .await;
    // As many as fit into an empty queue: others would wait for another 180 s.
    for number in 0..2 {
        env.rabbitmq.publish_to_queue(&retry_queue, &copy(&format!("late-{number}"))).await;
    }
    let counts = async || {
        let list =
            node.ctl(&["--quiet", "list_queues", "name", "messages", "messages_ready"]).await;
        let line = list.lines().find_map(|line| line.strip_prefix(&retry_queue));
        line.unwrap().trim().to_owned()
    };
    // What HandoffRetriesStuck and the doctor's advice compare: total and ready.
    wait_long("the copies have expired", async || counts().await == "2\t0").await;
    release.open();
    let late = "handoff_retry_late_seconds_count";
    let after = wait_long("they are back", async || worker.metric(late).await == 2.0).await;
    println!("RabbitMQ passed them on {after:?} after there was room");
    assert!(worker.metric("handoff_retry_late_seconds_sum").await > 2.0);
    assert_eq!(counts().await, "0\t0");
    worker.stop().await;
    node.ctl(&["clear_policy", &env.name]).await;
}

/// An operator has created the retry queues without their TTL.
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
