//! Large messages: RabbitMQ delivers each whole, and a full prefetch window of them at once.

use std::{collections::BTreeSet, ops::RangeInclusive};

use lapin::BasicProperties;
use serde_json::json;

use crate::support::{
    TestEnv, log_text,
    platform::{Answer, Call, hold_calls},
    wait::wait_until,
};

const MIB: usize = 1024 * 1024;
/// Near the limit of RabbitMQ 4, which is 16 MiB.
const BODY: usize = 15 * MIB;
/// Together more than the limit below.
const COUNT: usize = 14;
/// Below the memory limit that deploy/ sets, which is 256 MiB.
const MAX_PEAK_MIB: usize = 200;

#[tokio::test]
async fn large_messages_fit_into_the_memory_limit() {
    let (latch, script) = hold_calls(|call| !call.is_token() && !call.user_is("user-0"));
    let script = move |call: &Call| {
        let answer = script(call);
        if answer.latch.is_some() { Answer { status: 422, ..answer } } else { answer }
    };
    let mut env = TestEnv::builder().platform(script).start().await;
    env.set("MAX_MESSAGE_BYTES", "16777216");
    env.declare_topology().await;
    // A small message opens the prefetch window, so that RabbitMQ sends all others at once.
    env.publish_requests(0..1).await;
    publish_padded(&env, 1..=COUNT, BODY).await;
    let worker = env.start_worker().await;
    assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.ready");
    // Each message in hand stays in memory until the platform answers.
    wait_until("as many in hand as there will be", async || {
        let in_hand = worker.metric("handoff_in_flight").await as usize;
        let is_full = !worker.log_lines(log_text::NO_MEMORY).is_empty();
        in_hand == COUNT || in_hand == 2 && is_full
    })
    .await;
    latch.open();
    let mut failed = BTreeSet::new();
    for event in env.rabbitmq.next_events(COUNT).await {
        assert_eq!(event.data()["reason"]["code"], "platform_rejected");
        failed.insert(event.data()["requestId"].as_str().unwrap().to_owned());
    }
    assert_eq!(failed, (1..=COUNT).map(|n| format!("r-{n}")).collect(), "one event for each");
    worker.wait_for_finished(1 + COUNT).await;
    let peak = worker.peak_memory_mib();
    assert!(peak <= MAX_PEAK_MIB, "{peak} MiB");
    assert_eq!(env.dead_letters().await, COUNT as u32);
    assert!(env.rabbitmq.take_dead_letter().await.body.len() > BODY);
    assert_eq!(worker.log_lines(log_text::CONSUMING).len(), 1, "the connection was kept");
    worker.stop().await;
}

#[tokio::test]
async fn large_messages_without_room_are_fetched_again() {
    let (latch, script) = hold_calls(|call| !call.is_token() && !call.user_is("user-0"));
    let mut env = TestEnv::builder().platform(script).start().await;
    env.set("MAX_MESSAGE_BYTES", "16777216");
    env.declare_topology().await;
    env.publish_requests(0..1).await;
    publish_padded(&env, 1..=COUNT, BODY).await;
    let worker = env.start_worker().await;
    worker.wait_for_log(log_text::NO_MEMORY).await;
    // Two of them have room.
    worker.wait_for_in_flight(2).await;
    latch.open();
    env.expect_all_ready(1 + COUNT).await;
    assert_eq!(env.platform.session_calls().len(), 1 + COUNT);
    worker.wait_for_finished(1 + COUNT).await;
    assert_eq!(worker.log_lines(log_text::CONSUMING).len(), 1, "the connection was kept");
    let peak = worker.peak_memory_mib();
    assert!(peak <= MAX_PEAK_MIB, "{peak} MiB");
    worker.stop().await;
}

#[tokio::test]
async fn small_requests_are_served_while_large_messages_have_no_room() {
    let (latch, script) = hold_calls(|call| call.user_is("user-1") || call.user_is("user-2"));
    let mut env = TestEnv::builder().platform(script).start().await;
    env.set("MAX_MESSAGE_BYTES", "16777216");
    env.declare_topology().await;
    env.publish_requests(0..1).await;
    publish_padded(&env, 1..=3, 14 * MIB).await;
    // Fetched before the worker stops to fetch.
    env.publish_requests(4..20).await;
    let worker = env.start_worker().await;
    for event in env.rabbitmq.next_events(17).await {
        assert_eq!(event.routing_key, "handoff.ready");
        assert!(!["r-1", "r-2", "r-3"].contains(&event.data()["requestId"].as_str().unwrap()));
    }
    latch.open();
    env.expect_all_ready(3).await;
    worker.stop().await;
}

#[tokio::test]
async fn large_endings_without_room_are_fetched_again() {
    let mut env = TestEnv::start().await;
    env.set("MAX_MESSAGE_BYTES", "16777216");
    env.declare_topology().await;
    let padding = "x".repeat(12 * MIB);
    for _ in 0..7 {
        let ending = json!({ "padding": padding });
        env.rabbitmq.publish_ending(ending, BasicProperties::default()).await;
    }
    let worker = env.start_worker().await;
    worker.wait_for_log(log_text::NO_MEMORY).await;
    worker.wait_for_endings("invalid", 7).await;
    wait_until("all are there", async || env.dead_letters().await == 7).await;
    worker.stop().await;
}

/// Publishes request `r-1` for `user-1`, and so on, each with a body of this size.
async fn publish_padded(env: &TestEnv, numbers: RangeInclusive<usize>, size: usize) {
    let padding = "x".repeat(size);
    for n in numbers {
        let id = BasicProperties::default().with_message_id(format!("r-{n}").into());
        let body = format!(r#"{{"userId":"user-{n}","padding":"{padding}"}}"#);
        env.rabbitmq.publish(body, id).await;
    }
}
