//! Messages that no honest producer would send: each ends somewhere, and takes nobody with it.

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldArray},
};
use serde_json::json;

use crate::support::{
    Answer, Message, Platform, Proxy, RabbitMq, TestEnv, log_text,
    platform::{Call, hold_calls, success},
    rabbitmq::{field_table, long_string},
};

fn headers(entries: &[(&str, AMQPValue)]) -> BasicProperties {
    BasicProperties::default().with_message_id("r-1".into()).with_headers(field_table(entries))
}

#[tokio::test]
async fn headers_that_leave_no_room_for_ours_stay_behind() {
    let mut env = TestEnv::start().await;
    let worker = env.start_worker().await;
    for (number, size) in [5_000, 7_900, 110_000, 130_000, 130_900, 131_000].into_iter().enumerate()
    {
        let large = [("large", long_string(&"x".repeat(size))), ("small", long_string("kept"))];
        env.rabbitmq.publish("not a request", headers(&large)).await;
        assert_eq!(env.rabbitmq.next_event().await.data()["reason"]["code"], "invalid_request");
        worker.wait_for_logs(log_text::REQUEST_FINISHED, number + 1).await;
        let dead = env.rabbitmq.take_dead_letter().await;
        assert_eq!(
            (dead.text_header("small"), dead.text_header("x-handoff-reason")),
            ("kept".into(), "invalid_request".into())
        );
        assert_eq!(dead.header("large").is_some(), size < 118_000, "{size}");
        // One does not fit into what is usually enough; after that, nothing breaks any more.
        let times = if size < 8_000 { 1 } else { 2 };
        assert_eq!(worker.log_lines(log_text::CONSUMING).len(), times, "{size}");
    }
    let lines = worker.log_lines(log_text::CONSUMING);
    assert!(lines.iter().all(|line| line[log_text::WINDOW] == log_text::WINDOW_FULL), "{lines:?}");
}

#[tokio::test]
async fn a_mistake_made_a_thousand_times_is_told_once() {
    let mut env = TestEnv::start().await;
    let worker = env.start_worker().await;
    // Told each time, this alone would be more than fits into the headers of a dead letter.
    let body = format!(r#"{{"userId":"ann",{}"renew":1}}"#, r#""renew":1,"#.repeat(6_000));
    env.rabbitmq.publish(body, headers(&[])).await;
    let reason = env.rabbitmq.next_event().await.data()["reason"]["message"].clone();
    assert_eq!(reason, log_text::REPEATED_MISTAKE_ONCE);
    assert_eq!(env.rabbitmq.take_dead_letter().await.text_header("x-handoff-detail"), reason);
    assert_eq!(worker.log_lines(log_text::CONSUMING).len(), 1, "the connection never broke");
}

#[tokio::test]
async fn where_else_a_message_went_its_copies_do_not_go() {
    let mut env = TestEnv::start().await;
    let worker = env.start_worker().await;
    // On the exchange of requests this leads nowhere; on the way to the dead queue it would lead back.
    let to_itself = AMQPValue::FieldArray(FieldArray::from(vec![long_string(&env.rabbitmq.queue)]));
    env.rabbitmq.publish("not a request", headers(&[("CC", to_itself)])).await;
    assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.failed");
    worker.wait_for_log(log_text::REQUEST_FINISHED).await;
    env.publish_request("r-2", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["requestId"], "r-2");
    assert_eq!(env.dead_letters().await, 1);
}

#[tokio::test]
async fn a_dead_letter_that_is_moved_back_goes_through_the_retry_queues_again() {
    let script = |call: &Call| match (call.is_token(), call.nth) {
        (false, 0) => Answer::status(500),
        _ => success(call),
    };
    let mut env = TestEnv::builder().platform(Platform::scripted(script).await).start().await;
    env.set("RETRY_BUDGET", "0s").set("RETRY_DELAYS", "200ms");
    let _worker = env.start_worker().await;
    // RabbitMQ drops a message on its way to a queue that `x-death` says it has been in.
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
async fn odd_properties_are_served() {
    let mut env = TestEnv::start().await;
    let _worker = env.start_worker().await;
    let later = "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-\u{1}";
    let odd = [
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
    let properties = headers(&odd)
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
async fn a_message_that_cannot_be_read_takes_nobody_with_it() {
    let (latch, script) = hold_calls(Call::is_token);
    let mut env = TestEnv::builder().platform(Platform::scripted(script).await).start().await;
    let worker = env.start_worker().await;
    for n in 0..10 {
        env.publish_request(&format!("r-{n}"), &format!("user-{n}")).await;
    }
    env.platform.wait_for_calls(10).await;
    // Ten are in the middle of a call when it comes: an id that is not UTF-8, which AMQP allows.
    let proxy = Proxy::to(env.setting("AMQP_URL")).await;
    let strange = RabbitMq::connect(&proxy.url(env.setting("AMQP_URL")), &env.name).await;
    proxy.rewrite_requests(b"unreadable-id", b"unreadable\xff\xfe\xfd");
    strange.publish_request("unreadable-id", json!({ "userId": "x" })).await;
    worker.wait_for_log(log_text::RABBITMQ_LOST).await;
    latch.open();
    let events = env.rabbitmq.next_events(10).await;
    let served: std::collections::HashSet<_> =
        events.iter().map(|event| event.data()["userId"].to_string()).collect();
    assert!(events.iter().all(|event| event.routing_key == "handoff.ready"));
    assert_eq!((served.len(), env.platform.session_calls().len()), (10, 10));
    // RabbitMQ itself has moved it, and the worker is back at full pace.
    worker
        .wait_for_log_with(log_text::CONSUMING, |line| {
            line[log_text::WINDOW] == log_text::WINDOW_ONE_AT_A_TIME
        })
        .await;
    let dead = env.dead_queue();
    crate::support::wait_until("it is dead", async || env.rabbitmq.depth(&dead).await == 1).await;
    crate::support::wait_until("all is calm", async || {
        worker
            .log_lines(log_text::CONSUMING)
            .last()
            .is_some_and(|line| line[log_text::WINDOW] == log_text::WINDOW_FULL)
    })
    .await;
}

#[tokio::test]
async fn an_id_of_any_length_stays_whole_on_copies() {
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
