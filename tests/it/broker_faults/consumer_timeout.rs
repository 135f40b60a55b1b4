//! RabbitMQ's `consumer_timeout` is shorter than the worker holds requests in a pause.

use std::time::Duration;

use crate::support::{Answer, Node, TestEnv, log_text, platform::Call};

/// Limits the whole node, so this test has its own.
#[tokio::test]
async fn requests_held_beyond_the_consumer_timeout_are_served() {
    let node = Node::rabbitmq().await;
    let version = node.ctl(&["version"]).await;
    let mut numbers = version.trim().split('.').map(|part| part.parse::<u32>().unwrap());
    let takes_argument = (numbers.next().unwrap(), numbers.next().unwrap()) >= (3, 12);
    // Half of it is for what a busy machine adds to a round through the queue.
    for setting in ["consumer_timeout, 8000", "channel_tick_interval, 500"] {
        node.ctl(&["eval", &format!("application:set_env(rabbit, {setting}).")]).await;
    }
    let refuse = |_: &Call| Answer::status(403);
    let mut env = TestEnv::builder().platform(refuse).rabbitmq(&node).start().await;
    env.set("CONCURRENCY", "3");
    let worker = env.start_worker().await;
    env.publish_requests(0..3).await;
    if takes_argument {
        // The worker asks for a longer time-out, which wins.
        tokio::time::sleep(Duration::from_secs(13)).await;
        assert_eq!(worker.log_lines(log_text::RABBITMQ_LOST).len(), 0);
    } else {
        // RabbitMQ closes the channel once. From then on, no request is held for so long.
        let lowered = worker.wait_for_log(log_text::HOLD_LIMIT_LOWERED).await;
        assert_eq!(lowered["consumer_timeout_s"], 8, "{lowered}");
        worker.wait_for_logs(log_text::HELD_TOO_LONG, 6).await;
        assert_eq!(worker.log_lines(log_text::RABBITMQ_LOST).len(), 1, "{}", worker.output());
    }
    env.platform.set_script(crate::support::platform::success);
    env.expect_all_ready(3).await;
    worker.stop().await;
}
