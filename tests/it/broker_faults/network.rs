//! Connections and channels that break while RabbitMQ itself is fine.

use std::time::{Duration, Instant};

use crate::support::{
    Flow, TestEnv, log_text,
    platform::{Call, hold_calls, success},
};

#[tokio::test]
async fn network_silent_for_20_seconds_loses_and_leaks_nothing() {
    let mut env = TestEnv::start().await;
    let proxy = env.amqp_proxy_with_heartbeat(2).await;
    let worker = env.start_worker().await;
    env.publish_requests(0..10).await;
    env.expect_all_ready(10).await;
    // The first reconnect starts a thread that stays; later ones start none.
    proxy.close_connections();
    worker.wait_for_logs(log_text::CONSUMING, 2).await;
    let before = worker.resources(proxy.addr);

    let (latch, script) = hold_calls(|call| call.user_is("user-10"));
    env.platform.set_script(script);
    env.publish_requests(0..11).await;
    env.platform.wait_for_calls(22).await;
    proxy.set_flow(Flow::Dropped);
    let silent_since = Instant::now();
    worker.wait_for_logs(log_text::RABBITMQ_LOST, 2).await;
    latch.open();
    env.publish_requests(0..30).await;
    while silent_since.elapsed() < Duration::from_secs(20) {
        worker.assert_alive().await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // Failed attempts to reconnect leak nothing either.
    worker.assert_no_leak_since(before, proxy.addr).await;
    proxy.set_flow(Flow::Forwarded);
    worker.wait_for_logs(log_text::CONSUMING, 3).await;
    env.expect_all_ready(30).await;
    assert_eq!(env.platform.session_calls().len(), 30);
    println!("before: {before:?}, after: {:?}", worker.resources(proxy.addr));
    worker.assert_no_leak_since(before, proxy.addr).await;
}

#[tokio::test]
async fn ten_broken_connections_leave_no_request_in_flight() {
    let slow = |call: &Call| success(call).after(Duration::from_millis(5));
    let mut env = TestEnv::builder().platform(slow).start().await;
    let proxy = env.proxy("AMQP_URL").await;
    env.set("CONCURRENCY", "16");
    let worker = env.start_worker().await;
    for round in 0..10 {
        let calls = env.platform.calls().len();
        let requests = env.publish_requests(round * 30..(round + 1) * 30);
        let breaking = async {
            env.platform.wait_for_calls(calls + 20).await;
            proxy.close_connections();
        };
        tokio::join!(requests, breaking);
        worker.wait_for_logs(log_text::CONSUMING, round + 2).await;
    }
    env.expect_all_ready(300).await;
    // A lost connection is no fault of the queue of endings.
    assert_eq!(worker.log_lines(log_text::ENDINGS_NOT_CONSUMED).len(), 0);
    // No delivery waits for the confirm of an ack that the end of its connection has swallowed.
    worker.wait_for_in_flight(0).await;
    worker.stop().await;
}

#[tokio::test]
async fn closed_channel_is_reopened_and_its_delivery_served_again() {
    let mut env = TestEnv::start().await;
    let proxy = env.proxy("AMQP_URL").await;
    let worker = env.start_worker().await;
    // Raising the prefetch replaces the consumer. If the channel closed meanwhile, that would hide why.
    worker.wait_for_log(log_text::WINDOW_GROWN).await;
    // Rewrites the `basic.ack` of delivery tag 1 to tag 99, which RabbitMQ has never delivered.
    proxy.rewrite_requests(b"\0\x3c\0\x50\0\0\0\0\0\0\0\x01", b"\0\x3c\0\x50\0\0\0\0\0\0\0\x63");
    env.publish_request("r-1", "ann").await;
    let lost = worker.wait_for_log(log_text::RABBITMQ_LOST).await;
    proxy.stop_rewriting();
    let cause = lost["error"].as_str().unwrap();
    assert!(cause.contains("PRECONDITION_FAILED: unknown delivery tag"), "{cause}");
    // The redelivered request has the same event, with the same id.
    let first = env.rabbitmq.next_event().await;
    let second = env.rabbitmq.next_event().await;
    assert_eq!(first.json()["id"], second.json()["id"]);
    assert_eq!(second.data()["reused"], true);
    worker.wait_for_in_flight(0).await;
    env.rabbitmq.wait_for_depth(0).await;
}
