//! Hostile messages: each is settled, and none harms another request.

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldArray},
};
use serde_json::json;

use crate::support::{
    Answer, Message, Proxy, RabbitMq, TestEnv, log_text,
    platform::{Call, hold_calls, success},
    rabbitmq::{field_table, long_string},
    wait_until,
};

fn headers(entries: &[(&str, AMQPValue)]) -> BasicProperties {
    BasicProperties::default().with_message_id("r-1".into()).with_headers(field_table(entries))
}

#[tokio::test]
async fn headers_too_large_for_a_copy_are_dropped() {
    let mut env = TestEnv::start().await;
    let worker = env.start_worker().await;
    for (number, size) in [5_000, 7_900, 110_000, 130_000, 130_900, 131_000].into_iter().enumerate()
    {
        let large = [("large", long_string(&"x".repeat(size))), ("small", long_string("kept"))];
        env.rabbitmq.publish("not a request", headers(&large)).await;
        assert_eq!(env.rabbitmq.next_event().await.data()["reason"]["code"], "invalid_request");
        worker.wait_for_logs(log_text::REQUEST_FINISHED, number + 1).await;
        let dead = env.rabbitmq.take_dead_letter().await;
        assert_eq!(dead.text_header("small"), "kept");
        assert_eq!(dead.text_header("x-handoff-reason"), "invalid_request");
        assert_eq!(dead.header("large").is_some(), size < 118_000, "{size}");
        // Frames are 8 KiB at first. Headers above that break the connection once; the worker then
        // negotiates larger frames, and none breaks it again.
        let times = if size < 8_000 { 1 } else { 2 };
        assert_eq!(worker.log_lines(log_text::CONSUMING).len(), times, "{size}");
    }
    let lines = worker.log_lines(log_text::CONSUMING);
    assert!(lines.iter().all(|line| line[log_text::WINDOW] == log_text::WINDOW_FULL), "{lines:?}");
}

#[tokio::test]
async fn mistake_repeated_6000_times_is_reported_once() {
    let mut env = TestEnv::start().await;
    let worker = env.start_worker().await;
    // Reported each time, these mistakes would exceed the header size of a dead letter.
    let body = format!(r#"{{"userId":"ann",{}"renew":1}}"#, r#""renew":1,"#.repeat(6_000));
    env.rabbitmq.publish(body, headers(&[])).await;
    let reason = env.rabbitmq.next_event().await.data()["reason"]["message"].clone();
    assert_eq!(reason, log_text::REPEATED_MISTAKE_ONCE);
    assert_eq!(env.rabbitmq.take_dead_letter().await.text_header("x-handoff-detail"), reason);
    assert_eq!(worker.log_lines(log_text::CONSUMING).len(), 1, "the connection never broke");
}

#[tokio::test]
async fn cc_header_is_not_copied() {
    let mut env = TestEnv::start().await;
    let worker = env.start_worker().await;
    // The request exchange has no binding for this key, but a copy published to the default exchange
    // would also be routed back to the request queue.
    let to_itself = AMQPValue::FieldArray(FieldArray::from(vec![long_string(&env.rabbitmq.queue)]));
    env.rabbitmq.publish("not a request", headers(&[("CC", to_itself)])).await;
    assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.failed");
    worker.wait_for_log(log_text::REQUEST_FINISHED).await;
    env.publish_request("r-2", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["requestId"], "r-2");
    assert_eq!(env.dead_letters().await, 1);
}

#[tokio::test]
async fn dead_letter_moved_back_passes_the_retry_queues_again() {
    let script = |call: &Call| {
        if !call.is_token() && call.nth == 0 { Answer::status(500) } else { success(call) }
    };
    let mut env = TestEnv::builder().platform(script).start().await;
    env.set("RETRY_BUDGET", "0s").set("RETRY_DELAYS", "200ms");
    let _worker = env.start_worker().await;
    // RabbitMQ drops a dead-lettered message whose `x-death` header already names its next queue.
    let death = [
        ("queue", long_string(&env.rabbitmq.queue)),
        ("reason", long_string("delivery_limit")),
        ("count", AMQPValue::LongLongInt(1)),
    ];
    let death =
        AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::FieldTable(field_table(&death))]));
    let stale = [("x-death", death), ("x-handoff-reason", long_string("retries_exhausted"))];
    let message = Message {
        routing_key: String::new(),
        properties: headers(&stale),
        body: json!({ "userId": "ann" }).to_string().into_bytes(),
    };
    env.rabbitmq.publish_to_queue(&env.rabbitmq.queue, &message).await;
    assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.ready");
}

#[tokio::test]
async fn request_with_malformed_properties_is_served() {
    let mut env = TestEnv::start().await;
    let _worker = env.start_worker().await;
    let later = "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-\u{1}";
    let malformed = [
        ("traceparent", long_string(later)),
        ("tracestate", long_string("a=\nb")),
        ("x-handoff-attempt", long_string("7")),
        ("x-handoff-request-id", AMQPValue::LongInt(7)),
        ("void", AMQPValue::Void),
        (
            "array",
            AMQPValue::FieldArray(FieldArray::from(vec![
                AMQPValue::Boolean(true),
                long_string("x"),
            ])),
        ),
    ];
    let properties = headers(&malformed)
        .with_message_id("id\u{0}\n\"\u{1b}[31m".into())
        .with_correlation_id("\r\n".into())
        .with_timestamp(u64::MAX);
    env.rabbitmq.publish(json!({ "userId": "ann" }).to_string(), properties).await;
    let event = env.rabbitmq.next_event().await;
    assert_eq!(event.routing_key, "handoff.ready", "{}", event.json());
    assert_eq!(event.data()["requestId"], "id\u{0}\n\"\u{1b}[31m");
    assert_eq!(
        event.text_header("traceparent"),
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    );
}

#[tokio::test]
async fn undecodable_message_harms_no_other_request() {
    let (latch, script) = hold_calls(Call::is_token);
    let mut env = TestEnv::builder().platform(script).start().await;
    let worker = env.start_worker().await;
    env.publish_requests(0..10).await;
    env.platform.wait_for_calls(10).await;
    // Ten requests are in a call when a message arrives whose id is not UTF-8, which AMQP allows.
    let proxy = Proxy::to(env.setting("AMQP_URL")).await;
    let producer = RabbitMq::connect(&proxy.url(env.setting("AMQP_URL")), &env.name).await;
    proxy.rewrite_requests(b"unreadable-id", b"unreadable\xff\xfe\xfd");
    producer.publish_request("unreadable-id", json!({ "userId": "x" })).await;
    worker.wait_for_log(log_text::RABBITMQ_LOST).await;
    latch.open();
    let events = env.rabbitmq.next_events(10).await;
    let served: std::collections::HashSet<_> =
        events.iter().map(|event| event.data()["userId"].to_string()).collect();
    assert!(events.iter().all(|event| event.routing_key == "handoff.ready"));
    assert_eq!(served.len(), 10);
    assert_eq!(env.platform.session_calls().len(), 10);
    // The worker consumes one at a time until the delivery limit makes RabbitMQ dead-letter it.
    worker
        .wait_for_log_with(log_text::CONSUMING, |line| {
            line[log_text::WINDOW] == log_text::WINDOW_ONE_AT_A_TIME
        })
        .await;
    let dead = env.dead_queue();
    wait_until("it is a dead letter", async || env.rabbitmq.depth(&dead).await == 1).await;
    wait_until("the prefetch window is full again", async || {
        worker
            .log_lines(log_text::CONSUMING)
            .last()
            .is_some_and(|line| line[log_text::WINDOW] == log_text::WINDOW_FULL)
    })
    .await;
}

/// More returns than make RabbitMQ's message a suspected poison message, and fewer than its limit.
const MANY_RETURNS: usize = 12;

#[tokio::test]
async fn connection_lost_while_a_suspect_waits_its_turn_is_survived() {
    let (latch, script) = hold_calls(|call| call.user_is("slow"));
    let mut env = TestEnv::builder().platform(script).start().await;
    env.declare_topology().await;
    env.publish_request("suspect", "suspect").await;
    let suspect = env.rabbitmq.hold_after_returns(MANY_RETURNS).await;
    let proxy = env.proxy("AMQP_URL").await;
    let worker = env.start_worker().await;
    worker.wait_for_log(log_text::WINDOW_GROWN).await;
    env.publish_request("slow", "slow").await;
    env.platform.wait_for_calls(2).await;
    suspect.give_back().await;
    worker.wait_for_log(log_text::SERVING_ALONE).await;
    proxy.close_connections();
    worker.wait_for_logs(log_text::CONSUMING, 2).await;
    latch.open();
    let events = env.rabbitmq.next_events(2).await;
    assert!(events.iter().all(|event| event.routing_key == "handoff.ready"));
    worker.stop().await;
}

#[tokio::test]
async fn suspect_served_alone_leaves_the_replica_ready() {
    let (latch, script) = hold_calls(|call| call.user_is("suspect"));
    let mut env = TestEnv::builder().platform(script).start().await;
    env.declare_topology().await;
    env.publish_request("suspect", "suspect").await;
    let suspect = env.rabbitmq.hold_after_returns(MANY_RETURNS).await;
    let worker = env.start_worker().await;
    worker.wait_for_log(log_text::WINDOW_GROWN).await;
    suspect.give_back().await;
    worker.wait_for_log(log_text::SERVING_ALONE).await;
    let assert_ready = async || {
        let (status, page) = worker.get("/readyz").await;
        assert_eq!(status, 200, "{page}");
    };
    assert_ready().await;
    latch.open();
    // The connection that served it ends, and another replaces it.
    wait_until("it consumes on a new connection", async || {
        assert_ready().await;
        worker.log_lines(log_text::CONSUMING).len() == 2
    })
    .await;
    assert_ready().await;
    assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.ready");
    worker.stop().await;
}

#[tokio::test]
async fn delivery_count_of_a_producer_is_ignored() {
    let mut env = TestEnv::start().await;
    let worker = env.start_worker().await;
    worker.wait_for_log(log_text::WINDOW_GROWN).await;
    // A shovel copies the header, and RabbitMQ passes it on with a first delivery.
    let copied = [("x-delivery-count", AMQPValue::LongLongInt(12))];
    for n in 0..20 {
        let body = json!({ "userId": format!("user-{n}") }).to_string();
        let properties = headers(&copied).with_message_id(format!("r-{n}").into());
        env.rabbitmq.publish(body, properties).await;
    }
    env.expect_all_ready(20).await;
    assert!(worker.log_lines(log_text::SERVING_ALONE).is_empty());
    assert_eq!(worker.log_lines(log_text::CONSUMING).len(), 1, "the connection was kept");
}

#[tokio::test]
async fn long_request_id_is_copied_whole() {
    let mut env = TestEnv::start().await;
    let worker = env.start_worker().await;
    let id = "é".repeat(500);
    let event = json!({
        "specversion": "1.0", "id": id, "source": "/app", "type": "verification.requested", "data": {},
    });
    env.rabbitmq.publish(event.to_string(), BasicProperties::default()).await;
    assert_eq!(env.rabbitmq.next_event().await.data()["requestId"], json!(id));
    worker.wait_for_log(log_text::REQUEST_FINISHED).await;
    assert_eq!(env.rabbitmq.take_dead_letter().await.text_header("x-handoff-request-id"), id);
}
