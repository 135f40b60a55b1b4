//! Expired copies that RabbitMQ cannot pass on to the request queue (rabbitmq-server#12625).

use std::time::Duration;

use crate::support::{
    Answer, Node, TestEnv,
    platform::{Call, success},
    wait_until,
};

/// How long RabbitMQ waits until it publishes a rejected dead letter again: three minutes by default.
const REPUBLISH_MS: usize = 2_000;
const LATE: Duration = Duration::from_secs(1);

/// Fails the first session call; the retry budget ends with it.
fn fail_first(call: &Call) -> Answer {
    if !call.is_token() && call.nth == 0 { Answer::status(503) } else { success(call) }
}

#[tokio::test]
async fn copy_that_a_full_request_queue_rejects_is_shown_by_doctors_command_and_comes_back_late() {
    let node = Node::rabbitmq().await;
    // Read when the queue is declared.
    let set = format!(
        "application:set_env(rabbit, dead_letter_worker_publisher_confirm_timeout, {REPUBLISH_MS})."
    );
    node.ctl(&["eval", &set]).await;
    let mut env = TestEnv::builder().platform(fail_first).rabbitmq(&node).start().await;
    env.set("RETRY_BUDGET", "100ms").set("RETRY_DELAYS", "3s");
    let pattern = format!("^{}$", env.rabbitmq.queue);
    let full = r#"{"max-length":1}"#;
    node.ctl(&["set_policy", &env.name, &pattern, full, "--apply-to", "queues"]).await;
    let worker = env.start_worker().await;
    env.publish_request("late", "ann").await;
    assert_eq!(worker.wait_for_finished(1).await["outcome"], "retried");
    worker.stop().await;
    // The second one is beyond the limit: from then on, the queue rejects.
    env.publish_requests(0..2).await;

    // The doctor prints this command.
    let list = ["--quiet", "list_queues", "name", "messages", "messages_ready"];
    let stuck = format!("{}.retry.3s\t1\t0", env.rabbitmq.queue);
    wait_until("one message that is not ready", async || {
        node.ctl(&list).await.lines().any(|line| line == stuck)
    })
    .await;
    assert_eq!(env.rabbitmq.depth(&env.rabbitmq.queue).await, 2, "only the other requests");

    // Makes room.
    let worker = env.start_worker().await;
    let mut ids = Vec::new();
    for event in env.rabbitmq.next_events(3).await {
        assert_eq!(event.routing_key, "handoff.ready");
        ids.push(event.data()["requestId"].clone());
    }
    assert!(ids.contains(&"late".into()), "{ids:?}");
    assert_eq!(worker.metric("handoff_retry_late_seconds_count").await, 1.0);
    let late = worker.metric("handoff_retry_late_seconds_sum").await;
    assert!(late > LATE.as_secs_f64(), "{late}");
    worker.stop().await;
}
