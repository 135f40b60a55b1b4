//! A pause outlasts connections and workers, and RabbitMQ counts each redelivery towards its limit.

use std::time::Duration;

use lapin::options::BasicRejectOptions;

use super::checks::{assert_no_attempt_spent, expect_ready};
use crate::support::{
    Answer, TestEnv, Worker, log_text,
    platform::{Call, success},
    proxy::PUBLISHER,
    wait_until,
};

/// Receives and rejects the request `times` times, as workers do that do not live long.
async fn reject_request(env: &TestEnv, times: usize) {
    let channel = env.rabbitmq.open_channel().await;
    let mut rejected = 0;
    wait_until("the request is rejected", async || {
        let queue = env.rabbitmq.queue.as_str().into();
        if let Some(got) = channel.basic_get(queue, Default::default()).await.unwrap() {
            got.acker.reject(BasicRejectOptions { requeue: true }).await.unwrap();
            rejected += 1;
        }
        rejected == times
    })
    .await;
    channel.close(200, "".into()).await.unwrap();
}

/// Waits until the request has been held for a while, and is not dead.
async fn hold_request(env: &TestEnv, worker: &Worker, life: usize) {
    let held = async || {
        assert_eq!(env.dead_letters().await, 0, "in life {life}");
        worker.metric("handoff_in_flight").await > 0.0
    };
    wait_until("the request is held", held).await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
}

/// A paused platform, and a request that has been redelivered almost too often: the limit is 20.
async fn start_near_the_limit() -> TestEnv {
    let refuse = |_: &Call| Answer::status(403);
    let env = TestEnv::builder().platform(refuse).start().await;
    env.declare_topology().await;
    env.publish_requests(0..1).await;
    reject_request(&env, 16).await;
    env
}

#[tokio::test]
async fn pause_that_outlasts_connections_reaches_no_delivery_limit() {
    let mut env = start_near_the_limit().await;
    let proxy = env.proxy("AMQP_URL").await;
    let worker = env.start_worker().await;
    for life in 1..=7 {
        worker.wait_for_logs(log_text::CONSUMING, life).await;
        hold_request(&env, &worker, life).await;
        proxy.close_connections();
    }
    env.platform.set_script(success);
    expect_ready(&mut env, 1).await;
    assert_no_attempt_spent(&env, &worker).await;
}

#[tokio::test]
async fn pause_that_outlasts_workers_reaches_no_delivery_limit() {
    let mut env = start_near_the_limit().await;
    for life in 1..=7 {
        let worker = env.start_worker().await;
        hold_request(&env, &worker, life).await;
        worker.kill().await;
    }
    env.platform.set_script(success);
    let worker = env.start_worker().await;
    expect_ready(&mut env, 1).await;
    assert_no_attempt_spent(&env, &worker).await;
}

#[tokio::test]
async fn pause_that_outlasts_publishing_connections_reaches_no_delivery_limit() {
    let refuse = |_: &Call| Answer::status(403);
    let mut env = TestEnv::builder().platform(refuse).start().await;
    env.set("CONCURRENCY", "3");
    let proxy = env.proxy("AMQP_URL").await;
    let worker = env.start_worker().await;
    env.publish_requests(0..6).await;
    for life in 1..=5 {
        worker.wait_for_logs(log_text::CONSUMING, life).await;
        hold_request(&env, &worker, life).await;
        // What is requeued at once would come back to the old consumer at once, many times.
        proxy.close_connections_of(PUBLISHER);
    }
    worker.wait_for_logs(log_text::CONSUMING, 6).await;
    env.platform.set_script(success);
    expect_ready(&mut env, 6).await;
    assert_no_attempt_spent(&env, &worker).await;
}
