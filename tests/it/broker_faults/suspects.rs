//! Requests that RabbitMQ has redelivered so often that one more return would make them dead letters.

use lapin::{
    Channel,
    message::BasicGetMessage,
    options::{BasicGetOptions, BasicRejectOptions},
};

use crate::support::{TestEnv, log_text, platform::hold_calls, wait_until};

/// The delivery limit of the request queue.
const DELIVERY_LIMIT: usize = 20;

/// Takes all requests in the queue.
async fn take_all(env: &TestEnv, channel: &Channel, requests: usize) -> Vec<BasicGetMessage> {
    let mut taken = Vec::new();
    wait_until("all requests are taken", async || {
        let queue = env.rabbitmq.queue.as_str().into();
        taken.extend(channel.basic_get(queue, BasicGetOptions::default()).await.unwrap());
        taken.len() == requests
    })
    .await;
    taken
}

/// Takes and rejects the requests in the queue `times` times.
async fn reject_all(env: &TestEnv, channel: &Channel, requests: usize, times: usize) {
    for _ in 0..times {
        for got in take_all(env, channel, requests).await {
            got.acker.reject(BasicRejectOptions { requeue: true }).await.unwrap();
        }
    }
}

#[tokio::test]
async fn suspects_handed_back_before_their_turn_reach_no_delivery_limit() {
    let mut env = TestEnv::start().await;
    env.declare_topology().await;
    env.publish_requests(1..6).await;
    let channel = env.rabbitmq.open_channel().await;
    reject_all(&env, &channel, 5, DELIVERY_LIMIT - 1).await;
    let _taken = take_all(&env, &channel, 5).await;
    // A harmless request opens the prefetch window, so that all suspects are delivered at once.
    env.publish_request("r-0", "user-0").await;
    let worker = env.start_worker().await;
    assert_eq!(env.rabbitmq.next_event().await.data()["requestId"], "r-0");
    worker.wait_for_log(log_text::WINDOW_GROWN).await;
    channel.close(200, "".into()).await.unwrap();
    env.expect_all_ready(5).await;
    assert_eq!(env.platform.session_calls().len(), 6);
    worker.stop().await;
}

#[tokio::test]
async fn suspect_in_a_long_platform_call_is_replaced_by_a_copy() {
    let (latch, script) = hold_calls(|call| !call.is_token());
    let mut env = TestEnv::builder().platform(script).start().await;
    env.declare_topology().await;
    env.publish_requests(0..1).await;
    let channel = env.rabbitmq.open_channel().await;
    reject_all(&env, &channel, 1, DELIVERY_LIMIT).await;
    let proxy = env.proxy("AMQP_URL").await;
    let worker = env.start_worker().await;
    // The copy waits for the call that the suspect began, and a copy's count starts at zero.
    worker.wait_for_in_flight(2).await;
    for life in 2..=3 {
        proxy.close_connections();
        worker.wait_for_logs(log_text::CONSUMING, life).await;
        worker.wait_for_in_flight(2).await;
    }
    latch.open();
    env.expect_all_ready(1).await;
    assert_eq!(env.platform.session_calls().len(), 1);
    worker.wait_for_in_flight(0).await;
    worker.stop().await;
}
