//! Faults of RabbitMQ: whatever happens, no request is lost and no resource leaks.

mod consumer_timeout;
mod limits;
mod network;
mod nodes;
mod one_connection;
mod operations;
mod restarts;
mod suspects;
mod topology;

use lapin::BasicProperties;

use crate::support::{Node, TestEnv, Worker, log_text};

/// Has the dead queue refuse messages, by a policy with the name of the environment, and publishes invalid
/// requests until a dead letter is refused. Returns how many.
async fn overfill_dead_queue(node: &Node, env: &mut TestEnv, worker: &Worker) -> u32 {
    let pattern = format!("^{}$", env.dead_queue().replace('.', r"\."));
    let limit = r#"{"max-length":0,"overflow":"reject-publish"}"#;
    node.ctl(&["set_policy", &env.name, &pattern, limit]).await;
    let mut published = 0;
    // The queue accepts a few messages beyond its limit.
    while worker.log_lines(log_text::COPY_NOT_TAKEN).is_empty() {
        let id = format!("r-{published}");
        let properties = BasicProperties::default().with_message_id(id.into());
        env.rabbitmq.publish("not a request", properties).await;
        assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.failed");
        published += 1;
    }
    published
}
