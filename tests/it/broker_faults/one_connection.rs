//! Only one of the worker's two connections breaks, or only the channel that it consumes on.

use std::time::Duration;

use serde_json::json;

use super::overfill_dead_queue;
use crate::support::{
    Answer, Latch, Node, RabbitMq, TestEnv, Worker, log_text,
    platform::{Call, hold_calls, success},
    proxy::{CONSUMER, PUBLISHER, Proxy},
    wait_until,
};

/// The sockets of a worker with two connections: lapin's and the worker's own handle on each.
const SESSION_SOCKETS: usize = 4;

/// Answers the first session call with this status once the latch is open, and all others well.
fn hold_first_session(status: u16) -> (Latch, impl Fn(&Call) -> Answer + Send + Sync) {
    let latch = Latch::closed();
    let held = latch.clone();
    let script = move |call: &Call| match call {
        call if call.is_token() || call.nth > 0 => success(call),
        _ => Answer::status(status).held_by(&held),
    };
    (latch, script)
}

/// A worker whose only request has made its session call, which the platform holds.
async fn start_with_held_request(env: &mut TestEnv) -> (Proxy, Worker) {
    let proxy = env.proxy("AMQP_URL").await;
    let worker = env.start_worker().await;
    worker.wait_for_log(log_text::WINDOW_GROWN).await;
    env.publish_request("r-0", "user-0").await;
    env.platform.wait_for_calls(2).await;
    (proxy, worker)
}

/// Asserts that the event of another request is the next one.
async fn assert_no_further_event(env: &mut TestEnv) {
    env.publish_request("r-last", "last").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["requestId"], "r-last");
}

#[tokio::test]
async fn delivery_waits_for_no_old_subscription_after_the_publishing_connection_broke() {
    let (latch, script) = hold_calls(|call| call.user_is("user-0"));
    let mut env = TestEnv::builder().platform(script).start().await;
    let (proxy, worker) = start_with_held_request(&mut env).await;
    proxy.close_connections_of(PUBLISHER);
    worker.wait_for_logs(log_text::CONSUMING, 2).await;
    // The old consumer would receive half of these, and nothing reads it while the call lasts.
    env.publish_requests(1..21).await;
    for event in env.rabbitmq.next_events(20).await {
        assert_ne!(event.data()["requestId"], "r-0");
    }
    latch.open();
    let event = env.rabbitmq.next_event().await;
    assert_eq!(event.data()["reused"], true, "{}", event.json());
    assert_eq!(env.platform.session_calls().len(), 21);
    worker.wait_for_sockets(SESSION_SOCKETS, proxy.addr).await;
}

#[tokio::test]
async fn requeued_delivery_publishes_no_failure_after_the_consuming_connection_broke() {
    let (latch, script) = hold_first_session(400);
    let mut env = TestEnv::builder().platform(script).start().await;
    let (proxy, worker) = start_with_held_request(&mut env).await;
    proxy.close_connections_of(CONSUMER);
    worker.wait_for_logs(log_text::CONSUMING, 2).await;
    latch.open();
    let event = env.rabbitmq.next_event().await;
    assert_eq!(event.routing_key, "handoff.ready", "{}", event.json());
    assert_no_further_event(&mut env).await;
    assert_eq!(env.dead_letters().await, 0);
}

#[tokio::test]
async fn requeued_delivery_publishes_no_retry_copy_after_the_channel_was_closed() {
    let (latch, script) = hold_first_session(500);
    let mut env = TestEnv::builder().platform(script).start().await;
    env.set("RETRY_BUDGET", "1ms").set("RETRY_DELAYS", "200ms");
    let (proxy, worker) = start_with_held_request(&mut env).await;
    proxy.close_consuming_channel();
    let lost = worker.wait_for_log(log_text::RABBITMQ_LOST).await;
    assert!(lost["error"].as_str().unwrap().contains("unknown delivery tag"), "{lost}");
    worker.wait_for_logs(log_text::CONSUMING, 2).await;
    latch.open();
    let event = env.rabbitmq.next_event().await;
    assert_eq!(event.routing_key, "handoff.ready", "{}", event.json());
    // A retry copy would bring the link a second time.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_no_further_event(&mut env).await;
}

#[tokio::test]
async fn closed_channel_is_noticed_while_all_slots_are_taken() {
    let (latch, script) = hold_calls(|call| call.user_is("user-0"));
    let mut env = TestEnv::builder().platform(script).start().await;
    env.set("CONCURRENCY", "1");
    let proxy = env.proxy("AMQP_URL").await;
    let worker = env.start_worker().await;
    env.publish_request("r-0", "user-0").await;
    env.platform.wait_for_calls(2).await;
    proxy.close_consuming_channel();
    worker.wait_for_logs(log_text::CONSUMING, 2).await;
    latch.open();
    // The call was finished and its link stored; the redelivery publishes it.
    let event = env.rabbitmq.next_event().await;
    assert_eq!(event.data()["reused"], true, "{}", event.json());
    assert_no_further_event(&mut env).await;
    assert_eq!(env.platform.session_calls().len(), 2);
}

#[tokio::test]
async fn refused_copy_of_a_requeued_delivery_is_not_offered_again() {
    let node = Node::shared_rabbitmq();
    let mut env = TestEnv::start().await;
    let proxy = env.proxy("AMQP_URL").await;
    let worker = env.start_worker().await;
    let published = overfill_dead_queue(&node, &mut env, &worker).await;
    let mut refused = 0;
    wait_until("each copy is taken or refused", async || {
        refused = worker.metric("handoff_in_flight").await as u32;
        refused + env.dead_letters().await == published
    })
    .await;
    for cycle in 2..=4 {
        proxy.close_connections_of(CONSUMER);
        worker.wait_for_logs(log_text::CONSUMING, cycle).await;
        for event in env.rabbitmq.next_events(refused as usize).await {
            assert_eq!(event.routing_key, "handoff.failed");
        }
    }
    worker.wait_for_in_flight(refused as usize).await;
    worker.wait_for_sockets(SESSION_SOCKETS, proxy.addr).await;
    node.ctl(&["clear_policy", &env.name]).await;
    worker.wait_for_in_flight(0).await;
    assert_eq!(env.dead_letters().await, published);
}

#[tokio::test]
async fn connection_broken_by_a_message_returns_its_deliveries_at_once() {
    let (latch, script) = hold_calls(|call| call.user_is("user-0"));
    let mut env = TestEnv::builder().platform(script).start().await;
    let direct = env.setting("AMQP_URL").to_owned();
    let (proxy, worker) = start_with_held_request(&mut env).await;
    // lapin cannot decode this message, and leaves the socket open.
    let producer_proxy = Proxy::to(&direct).await;
    let producer = RabbitMq::connect(&producer_proxy.url(&direct), &env.name).await;
    producer_proxy.rewrite_requests(b"unreadable-id", b"unreadable\xff\xfe\xfd");
    producer.publish_request("unreadable-id", json!({ "userId": "x" })).await;
    worker.wait_for_logs(log_text::CONSUMING, 2).await;
    // The connections of the request in flight do not wait for its call.
    worker.wait_for_sockets(SESSION_SOCKETS, proxy.addr).await;
    latch.open();
    assert_eq!(env.rabbitmq.next_event().await.data()["reused"], true);
}

#[tokio::test]
async fn request_that_waits_for_its_next_try_ends_with_its_delivery() {
    let fail = |call: &Call| if call.is_token() { success(call) } else { Answer::status(500) };
    let mut env = TestEnv::builder().platform(fail).start().await;
    // Longer than the test waits.
    env.set("RETRY_BUDGET", "2m");
    let (proxy, worker) = start_with_held_request(&mut env).await;
    worker.wait_for_log(log_text::CALL_RETRIED).await;
    proxy.close_connections_of(CONSUMER);
    worker.wait_for_log(log_text::HANDED_BACK).await;
    env.platform.set_script(success);
    assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.ready");
    assert_no_further_event(&mut env).await;
}

#[tokio::test]
async fn request_that_waits_for_the_lease_of_another_worker_ends_with_its_delivery() {
    let (latch, script) = hold_calls(|call| call.user_is("user-0"));
    let mut env = TestEnv::builder().platform(script).start().await;
    let holder = env.start_worker().await;
    env.publish_request("r-0", "user-0").await;
    env.platform.wait_for_calls(2).await;
    let proxy = env.proxy("AMQP_URL").await;
    let worker = env.start_worker().await;
    worker.wait_for_log(log_text::WINDOW_GROWN).await;
    for n in 1..=4 {
        env.publish_request(&format!("r-{n}"), "user-0").await;
    }
    let mut waiting = 0.0;
    wait_until("both workers have some", async || {
        waiting = worker.metric("handoff_in_flight").await;
        waiting > 0.0 && waiting + holder.metric("handoff_in_flight").await == 5.0
    })
    .await;
    proxy.close_connections_of(CONSUMER);
    // Each of them: one asks for the lease, and the others wait for that one.
    worker.wait_for_logs(log_text::HANDED_BACK, waiting as usize).await;
    latch.open();
    let mut served: Vec<_> = env.rabbitmq.next_events(5).await;
    served.sort_by_key(|event| event.data()["requestId"].to_string());
    served.dedup_by_key(|event| event.data()["requestId"].to_string());
    assert_eq!(served.len(), 5);
    assert_eq!(env.platform.session_calls().len(), 1);
}
