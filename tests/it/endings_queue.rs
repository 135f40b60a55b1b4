//! The queue of endings: what its consumer and the dead queue do with them.

use std::time::Instant;

use lapin::{
    BasicProperties,
    options::{BasicGetOptions, BasicRejectOptions},
};
use serde_json::{Value, json};

use crate::support::{Flow, Node, TestEnv, Worker, log_text, wait_until, worker::run};

/// Fits into no worker's limit, so that it is dead-lettered.
fn large_ending() -> Value {
    json!({ "userId": "x".repeat(15 << 20) })
}

fn typed() -> BasicProperties {
    BasicProperties::default().with_type("verification.ended".into())
}

#[tokio::test]
async fn consumer_of_endings_fetches_many_again_after_large_ones() {
    let mut env = TestEnv::start().await;
    // So that no other consumer has a prefetch of 64.
    env.set("CONCURRENCY", "8");
    env.declare_topology().await;
    // More than have room in memory, all sent at once.
    for _ in 0..4 {
        env.rabbitmq.publish_ending(large_ending(), BasicProperties::default()).await;
    }
    let worker = env.start_worker().await;
    worker.wait_for_endings("invalid", 4).await;
    // Twice as many at a time, until there are 64.
    for n in 0..64 {
        let ending = json!({ "sessionId": n });
        env.rabbitmq.publish_ending(ending, BasicProperties::default()).await;
    }
    worker.wait_for_endings("unknown", 64).await;
    let sizes = worker.log_lines(log_text::WINDOW_GROWN);
    let sizes: Vec<_> = sizes.iter().map(|line| line["prefetch"].as_u64().unwrap()).collect();
    assert!(sizes.contains(&64), "{sizes:?}");
    worker.stop().await;
}

#[tokio::test]
async fn consumer_of_endings_that_rabbitmq_forgets_is_subscribed_again() {
    let node = Node::shared_rabbitmq();
    let env = TestEnv::start().await;
    let worker = env.start_worker().await;
    env.wait_for_consumer_of_endings().await;
    node.forget_consumer(&env.ended_queue()).await;
    env.rabbitmq.publish_ending(json!({ "sessionId": "s" }), BasicProperties::default()).await;
    let fault = worker.wait_for_log(log_text::ENDINGS_NOT_CONSUMED).await;
    assert_eq!(fault["error"], log_text::CONSUMER_OF_ENDINGS_FORGOTTEN);
    worker.wait_for_endings("unknown", 1).await;
    // Requests were consumed all the while.
    assert_eq!(worker.log_lines(log_text::CONSUMING).len(), 1);
    worker.stop().await;
}

#[tokio::test]
async fn ending_among_requests_keeps_no_slot_while_redis_is_unavailable() {
    let mut env = TestEnv::start().await;
    let proxy = env.proxy("REDIS_URL").await;
    env.set("CONCURRENCY", "1").set("REDIS_PATIENCE", "0s");
    let worker = env.start_worker().await;
    env.wait_for_consumer_of_endings().await;
    env.publish_request("r-1", "ann").await;
    let first = env.rabbitmq.next_event().await.data();
    worker.wait_for_finished(1).await;
    proxy.set_flow(Flow::Dropped);
    let started = Instant::now();
    let ending = json!({ "sessionId": first["sessionId"] });
    env.rabbitmq.publish(ending.to_string(), typed()).await;
    env.publish_request("r-2", "bob").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["requestId"], "r-2");
    let waited = started.elapsed();
    assert!(waited.as_millis() < 4_000, "{waited:?}");
    let queue = env.ended_queue();
    wait_until("it waits in its queue", async || env.rabbitmq.depth(&queue).await == 1).await;
    proxy.set_flow(Flow::Forwarded);
    worker.wait_for_endings("forgotten", 1).await;
    worker.stop().await;
}

/// As of a message that kills each worker that takes it.
#[tokio::test]
async fn ending_past_its_delivery_limit_is_listed_with_its_queue_and_replayed_there() {
    let mut env = TestEnv::start().await;
    let worker = env.start_worker().await;
    env.wait_for_consumer_of_endings().await;
    env.publish_request("r-1", "ann").await;
    let first = env.rabbitmq.next_event().await.data();
    worker.stop().await;
    let properties = BasicProperties::default().with_message_id("e-1".into());
    env.rabbitmq.publish_ending(json!({ "sessionId": first["sessionId"] }), properties).await;
    let channel = env.rabbitmq.open_channel().await;
    let queue = env.ended_queue();
    wait_until("RabbitMQ has dead-lettered it", async || {
        let got = channel.basic_get(queue.as_str().into(), BasicGetOptions::default()).await;
        if let Some(message) = got.unwrap() {
            let requeue = BasicRejectOptions { requeue: true };
            channel.basic_reject(message.delivery.delivery_tag, requeue).await.unwrap();
        }
        env.dead_letters().await == 1
    })
    .await;

    let settings = env.only(&["AMQP_URL", "QUEUE"]);
    let list = run(&["dead-letters", "list"], &settings).await;
    let row: Value = serde_json::from_slice(&list.stdout).unwrap();
    assert_eq!((&row["requestId"], &row["reason"]), (&json!("e-1"), &json!("delivery_limit")));
    assert_eq!(row["queue"], queue);
    let show = run(&["dead-letters", "show", "e-1"], &settings).await;
    let shown: Value = serde_json::from_slice(&show.stdout).unwrap();
    assert_eq!(shown["queue"], queue);
    let replay = run(&["dead-letters", "replay", "e-1"], &settings).await;
    assert!(replay.status.success(), "{}", String::from_utf8_lossy(&replay.stderr));
    assert_eq!((env.rabbitmq.depth(&queue).await, env.dead_letters().await), (1, 0));
    let worker = env.start_worker().await;
    worker.wait_for_endings("forgotten", 1).await;
    worker.stop().await;
}

/// As after an upgrade from release 0.1 without the right to declare the queue.
#[tokio::test]
async fn missing_queue_of_endings_stops_endings_alone_until_it_is_there() {
    let mut env = TestEnv::start().await;
    env.declare_topology().await;
    let queue = env.ended_queue();
    env.rabbitmq.delete_queue(&queue).await;
    env.set("DECLARE_TOPOLOGY", "false");
    let worker = env.start_worker().await;
    let fault = worker.wait_for_log(log_text::ENDINGS_NOT_CONSUMED).await;
    assert!(fault["error"].as_str().unwrap().contains(&queue), "{fault}");
    env.publish_request("r-1", "ann").await;
    let first = env.rabbitmq.next_event().await.data();
    worker.wait_for_finished(1).await;
    assert_eq!(worker.readiness().await.0, 200);
    let doctor = run(&["doctor", "--json"], &env.settings).await;
    let report = String::from_utf8_lossy(&doctor.stdout);
    let finding = report.lines().find(|line| line.contains(&queue));
    assert!(finding.is_some_and(|line| line.contains("finding")), "{report}");
    assert_eq!(doctor.status.code(), Some(1));

    // An ending in the request queue needs no other queue.
    let ending = json!({ "sessionId": first["sessionId"] });
    env.rabbitmq.publish(ending.to_string(), typed()).await;
    worker.wait_for_endings("forgotten", 1).await;

    let mut declaring = env.settings.clone();
    declaring.insert("HANDOFF_DECLARE_TOPOLOGY".into(), "true".into());
    let other = Worker::start(&declaring);
    env.wait_for_consumer_of_endings().await;
    other.stop().await;
    // The first one looks again every 10 s.
    env.wait_for_consumer_of_endings().await;
    env.rabbitmq.publish_ending(json!({ "sessionId": "s" }), BasicProperties::default()).await;
    worker.wait_for_endings("unknown", 1).await;
    assert_eq!(worker.log_lines(log_text::ENDINGS_NOT_CONSUMED).len(), 1);
    worker.stop().await;
}
