//! A RabbitMQ node that is killed, stopped or frozen.

use std::time::Duration;

use serde_json::json;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{
    Node, TestEnv, Worker, log_text,
    platform::{Call, hold_calls},
    wait_until,
    worker::Resources,
};

#[tokio::test]
async fn rabbitmq_killed_under_300_requests_loses_none_and_doubles_no_session() {
    let node = Node::rabbitmq().await;
    // However fast the machine, calls from the 200th on are unfinished when RabbitMQ dies.
    let (latch, script) = hold_calls(|call| call.nth >= 200);
    let slow = move |call: &Call| script(call).after(Duration::from_millis(20));
    let mut env = TestEnv::builder().platform(slow).rabbitmq(&node).queue_events().start().await;
    env.set("CONCURRENCY", "16");
    let worker = env.start_worker().await;
    env.publish_requests(0..300).await;
    wait_until("60 requests are served", async || {
        worker.metric(r#"handoff_requests_total{outcome="ready"}"#).await >= 60.0
    })
    .await;
    node.kill().await;
    worker.wait_for_log(log_text::RABBITMQ_LOST).await;
    latch.open();
    worker.assert_alive().await;
    assert_eq!(worker.get("/readyz").await.0, 503);

    let (_, accepting_at) = tokio::join!(node.start(), wait_until_amqp_answers(&node.url));
    let consuming = worker.wait_for_logs(log_text::CONSUMING, 2).await;
    let gap = logged_at(&consuming) - accepting_at;
    println!("consuming {gap} after RabbitMQ answers");
    assert!(gap < Duration::from_secs(3), "{gap}");
    env.reconnect().await;
    env.expect_all_ready(300).await;
    assert_eq!(env.platform.session_calls().len(), 300);
    worker.assert_alive().await;
    worker.stop().await;
}

/// Waits until RabbitMQ answers a protocol header, and returns when it did.
async fn wait_until_amqp_answers(url: &str) -> OffsetDateTime {
    let url = url::Url::parse(url).unwrap();
    let address = (url.host_str().unwrap(), url.port().unwrap());
    loop {
        if let Ok(mut stream) = TcpStream::connect(address).await
            && stream.write_all(b"AMQP\0\0\x09\x01").await.is_ok()
            && let Ok(1) = stream.read_u8().await
        {
            return OffsetDateTime::now_utc();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn logged_at(line: &serde_json::Value) -> OffsetDateTime {
    OffsetDateTime::parse(line["timestamp"].as_str().unwrap(), &Rfc3339).unwrap()
}

#[tokio::test]
async fn worker_waits_for_rabbitmq_and_reuses_the_link_made_while_it_was_down() {
    let node = Node::rabbitmq().await;
    let (session, script) = hold_calls(|call| call.user_is("slow"));
    let mut env = TestEnv::builder().platform(script).rabbitmq(&node).start().await;
    node.stop().await;
    let worker = Worker::start(&env.settings);
    worker.wait_for_log(log_text::NOT_CONSUMING).await;
    assert_eq!(worker.get("/readyz").await.0, 503);
    node.start().await;
    worker.wait_for_log(log_text::CONSUMING).await;

    env.reconnect().await;
    env.publish_request("r-0", "quick").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["requestId"], "r-0");
    // RabbitMQ dies during the session call of this one.
    env.publish_request("r-1", "slow").await;
    env.platform.wait_for_calls(4).await;
    node.kill().await;
    worker.wait_for_log(log_text::RABBITMQ_LOST).await;
    assert_eq!(worker.metric("handoff_broker_connected").await, 0.0);
    session.open();
    wait_until("the link is cached", async || {
        let entries = env.redis_entries().await;
        entries.iter().filter(|entry| entry.key.ends_with(":link")).count() == 2
    })
    .await;
    node.start().await;
    env.reconnect().await;
    let event = env.rabbitmq.next_event().await.data();
    assert_eq!(event["requestId"], "r-1");
    assert_eq!(event["reused"], json!(true));
    assert_eq!(env.platform.session_calls().len(), 2);
    assert_eq!(worker.metric("handoff_broker_connected").await, 1.0);
}

#[tokio::test]
async fn frozen_rabbitmq_is_reconnected_once_it_thaws() {
    let node = Node::rabbitmq().await;
    let (mut env, worker, before) = worker_after_a_reconnect(&node).await;
    let failures = worker.log_lines(log_text::NOT_CONSUMING).len();
    node.freeze().await;
    worker.wait_for_logs(log_text::RABBITMQ_LOST, 2).await;
    worker.wait_for_logs(log_text::NOT_CONSUMING, failures + 1).await;
    worker.assert_alive().await;
    node.thaw().await;
    worker.wait_for_logs(log_text::CONSUMING, 3).await;
    env.publish_requests(0..11).await;
    env.expect_all_ready(11).await;
    assert_eq!(env.platform.session_calls().len(), 11);
    worker.assert_no_leak_since(before, node.address()).await;
    worker.stop().await;
}

#[tokio::test]
async fn rabbitmq_restarted_gracefully_is_reconnected() {
    let node = Node::rabbitmq().await;
    let (mut env, worker, before) = worker_after_a_reconnect(&node).await;
    node.stop().await;
    worker.wait_for_logs(log_text::RABBITMQ_LOST, 2).await;
    node.start().await;
    worker.wait_for_logs(log_text::CONSUMING, 3).await;
    env.reconnect().await;
    env.publish_requests(0..11).await;
    env.expect_all_ready(11).await;
    assert_eq!(env.platform.session_calls().len(), 11);
    worker.assert_no_leak_since(before, node.address()).await;
    worker.stop().await;
}

/// A worker that has served 10 requests and reconnected once, and the resources it holds then: the
/// first reconnect starts a thread that stays, later ones start none.
async fn worker_after_a_reconnect(node: &Node) -> (TestEnv, Worker, Resources) {
    let mut env = TestEnv::builder().rabbitmq(node).start().await;
    let url = format!("{}?heartbeat=2", env.setting("AMQP_URL"));
    env.set("AMQP_URL", &url);
    let worker = env.start_worker().await;
    env.publish_requests(0..10).await;
    env.expect_all_ready(10).await;
    node.ctl(&["close_all_user_connections", "guest", "maintenance"]).await;
    worker.wait_for_logs(log_text::CONSUMING, 2).await;
    env.reconnect().await;
    let before = worker.resources(node.address());
    (env, worker, before)
}
