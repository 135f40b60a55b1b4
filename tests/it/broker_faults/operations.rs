//! What operators and limits do to a RabbitMQ that keeps running.
//!
//! Most of it concerns one user or one queue, so these tests use the RabbitMQ that all share.

use super::overfill_dead_queue;
use crate::support::{Node, TestEnv, Worker, log_text, platform::hold_calls, wait_until};

const PASSWORD: &str = "s3cret-must-not-leak";

#[tokio::test]
async fn wrong_password_is_retried_until_it_is_right() {
    let node = Node::shared_rabbitmq();
    let mut env = TestEnv::start().await;
    let user = env.name.clone();
    node.add_user(&user, "another").await;
    env.set("AMQP_URL", &node.url_as(&user, PASSWORD));
    let worker = Worker::start(&env.settings);
    let line = worker.wait_for_log(log_text::NOT_CONSUMING).await;
    assert!(line["error"].as_str().unwrap().contains("ACCESS_REFUSED"), "{line}");
    worker.assert_alive().await;
    node.ctl(&["change_password", &user, PASSWORD]).await;
    worker.wait_for_log(log_text::CONSUMING).await;
    assert!(!worker.output().contains("s3cret"));
    env.publish_requests(0..10).await;
    env.expect_all_ready(10).await;
    worker.stop().await;
    node.ctl(&["delete_user", &user]).await;
}

#[tokio::test]
async fn connections_closed_by_rabbitmq_are_reopened() {
    let node = Node::shared_rabbitmq();
    let mut env = TestEnv::start().await;
    let user = env.name.clone();
    let url = node.add_user(&user, PASSWORD).await;
    env.set("AMQP_URL", &url);
    let worker = env.start_worker().await;
    env.publish_requests(0..10).await;
    env.expect_all_ready(10).await;
    node.ctl(&["close_all_user_connections", &user, "maintenance"]).await;
    let lost = worker.wait_for_log(log_text::RABBITMQ_LOST).await;
    let cause = lost["error"].as_str().unwrap();
    // The operator's own words may contain anything.
    assert!(cause.contains("CONNECTION_FORCED") && !cause.contains("maintenance"), "{lost}");
    worker.wait_for_logs(log_text::CONSUMING, 2).await;
    env.publish_requests(0..20).await;
    env.expect_all_ready(20).await;
    assert_eq!(env.platform.session_calls().len(), 20);
    worker.stop().await;
    node.ctl(&["delete_user", &user]).await;
}

#[tokio::test]
async fn consumer_that_rabbitmq_forgets_is_subscribed_again() {
    let node = Node::shared_rabbitmq();
    let mut env = TestEnv::start().await;
    let worker = env.start_worker().await;
    node.forget_consumer(&env.rabbitmq.queue).await;
    env.publish_requests(0..20).await;
    let lost = worker.wait_for_log(log_text::RABBITMQ_LOST).await;
    assert_eq!(lost["error"], log_text::CONSUMER_FORGOTTEN);
    env.expect_all_ready(20).await;
    assert_eq!(env.platform.session_calls().len(), 20);
    worker.stop().await;
}

/// An alarm blocks every publisher of a node, so this test has its own.
#[tokio::test]
async fn memory_alarm_delays_events_and_is_no_fault() {
    let node = Node::rabbitmq().await;
    let (latch, script) = hold_calls(|call| call.user_is("user-20"));
    let mut env = TestEnv::builder().platform(script).rabbitmq(&node).start().await;
    let url = format!("{}?heartbeat=2", env.setting("AMQP_URL"));
    // Longer than `rabbitmqctl` takes on a busy machine: a call that times out is repeated.
    env.set("AMQP_URL", &url).set("IDV_TIMEOUT", "1m");
    let worker = env.start_worker().await;
    env.publish_requests(0..21).await;
    env.platform.wait_for_calls(42).await;
    node.ctl(&["set_vm_memory_high_watermark", "0.00001"]).await;
    latch.open();
    worker.wait_for_log(log_text::PUBLISHING_BLOCKED).await;
    assert_eq!(worker.get("/readyz").await.0, 200);
    worker.assert_alive().await;
    node.ctl(&["set_vm_memory_high_watermark", "0.9"]).await;
    worker.wait_for_log(log_text::PUBLISHING_UNBLOCKED).await;
    env.expect_all_ready(21).await;
    assert_eq!(worker.log_lines(log_text::CONSUMING).len(), 1);
    assert_eq!(env.platform.session_calls().len(), 21);
    worker.stop().await;
}

#[tokio::test]
async fn dead_letter_that_a_full_quorum_queue_rejects_is_published_again() {
    let node = Node::shared_rabbitmq();
    let mut env = TestEnv::start().await;
    let worker = env.start_worker().await;
    let published = overfill_dead_queue(&node, &mut env, &worker).await;
    node.ctl(&["clear_policy", &env.name]).await;
    wait_until("all are accepted", async || env.dead_letters().await == published).await;
    worker.stop().await;
}
