//! Messages as other stacks and protocols write them.

use lapin::{BasicProperties, types::AMQPValue};
use serde_json::json;

use crate::support::{
    TestEnv,
    rabbitmq::{field_table, long_string},
};

const REQUEST: &str = r#"{"userId":"q-7","workflowId":"w"}"#;

fn with_id(id: &str) -> BasicProperties {
    BasicProperties::default().with_message_id(id.into())
}

/// What .NET's `Encoding.Unicode` writes.
fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

#[tokio::test]
async fn request_after_a_byte_order_mark_is_served() {
    let mut env = TestEnv::start().await;
    let _worker = env.start_worker().await;
    let event = json!({ "specversion": "1.0", "id": "r-event", "source": "/s",
        "type": "verification.requested", "data": { "userId": "ann" } });
    env.rabbitmq.publish(format!("\u{feff}{event}"), BasicProperties::default()).await;
    assert_eq!(env.rabbitmq.next_event().await.data()["requestId"], "r-event");
    env.rabbitmq.publish(format!("\u{feff}{REQUEST}\r\n"), with_id("r-bare")).await;
    let ready = env.rabbitmq.next_event().await;
    assert_eq!(
        (ready.routing_key.as_str(), ready.data()["userId"].clone()),
        ("handoff.ready", json!("q-7"))
    );
}

#[tokio::test]
async fn unreadable_message_is_named_with_the_remedy() {
    let mut env = TestEnv::start().await;
    let worker = env.start_worker().await;
    let encoded = |encoding: &str| with_id("r").with_content_encoding(encoding.into());
    let binary_mode = with_id("r").with_headers(field_table(&[
        ("cloudEvents:id", long_string("e-1")),
        ("cloudEvents:type", long_string("verification.requested")),
    ]));
    let bad: Vec<(&str, Vec<u8>, BasicProperties, &str)> = vec![
        ("UTF-16", utf16(REQUEST), with_id("r"), "UTF-8"),
        ("gzip", b"\x1f\x8b\x08\x00".to_vec(), encoded("gzip"), "uncompressed"),
        ("brotli", b"\x8b\x00\x80".to_vec(), encoded("br"), "says brotli"),
        ("an unknown encoding", b"%%%".to_vec(), encoded("rot13"), "says an encoding"),
        ("JSON in JSON", json!(REQUEST).to_string().into(), with_id("r"), "encoded twice"),
        ("a CloudEvent in binary mode", b"{\"a\":1}".to_vec(), binary_mode, "structured mode"),
        ("JMS's TextMessage", b"\x00\x53\x77\xa1\x02{}".to_vec(), with_id("r"), "BytesMessage"),
        (
            "Java's serialization",
            b"\xac\xed\x00\x05t".to_vec(),
            with_id("r"),
            "JSON message converter",
        ),
        (".NET's spelling", br#"{"UserId":"q-7"}"#.to_vec(), with_id("r"), "`UserId`"),
    ];
    let count = bad.len();
    for (what, body, properties, words) in bad {
        env.rabbitmq.publish(&body, properties).await;
        let event = env.rabbitmq.next_event().await;
        let data = event.data();
        assert_eq!(data["reason"]["code"], "invalid_request", "{what}");
        let message = data["reason"]["message"].as_str().unwrap();
        assert!(message.contains(words) && !message.contains("q-7"), "{what}: {message}");
        let dead = env.rabbitmq.take_dead_letter().await;
        assert_eq!(dead.text_header("x-handoff-detail"), message, "{what}");
        assert_eq!(dead.body, body, "{what}");
    }
    worker.wait_for_finished(count).await;
    let failed = worker.metric("handoff_requests_total{outcome=\"failed\"}").await;
    assert_eq!(failed, count as f64);
}

#[tokio::test]
async fn odd_properties_of_a_good_request_do_no_harm() {
    let mut env = TestEnv::start().await;
    let worker = env.start_worker().await;
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let stamped = |timestamp: u64| with_id("r").with_timestamp(timestamp);
    let headers = |entries: &[(&str, AMQPValue)]| with_id("r").with_headers(field_table(entries));
    let good: Vec<(&str, BasicProperties)> = vec![
        ("milliseconds", stamped(u64::try_from(now.as_millis()).unwrap())),
        ("nanoseconds", stamped(u64::try_from(now.as_nanos()).unwrap())),
        ("no time", stamped(0)),
        ("a negative time", stamped(u64::MAX)),
        ("a traceparent of another type", headers(&[("traceparent", AMQPValue::LongLongInt(7))])),
        ("Spring's headers", headers(&[("__TypeId__", long_string("com.example.Request"))])),
        ("an attempt as text", headers(&[("x-handoff-attempt", long_string("4"))])),
        ("kombu's charset", with_id("r").with_content_encoding("utf-8".into())),
        ("MQTT's headers", headers(&[("x-mqtt-publish-qos", AMQPValue::ShortShortUInt(1))])),
        ("an id with control characters", with_id("a\u{1b}[2J\n\u{202e}b")),
    ];
    for (what, properties) in &good {
        env.rabbitmq.publish(REQUEST, properties.clone()).await;
        let event = env.rabbitmq.next_event().await;
        assert_eq!(event.routing_key, "handoff.ready", "{what}");
        let id = properties.message_id().as_ref().unwrap().as_str();
        assert_eq!(event.data()["requestId"], id, "{what}");
        let line = worker.wait_for_finished(1).await;
        assert_eq!(line["attempt"], 1, "{what}");
    }
    worker.wait_for_finished(good.len()).await;
    // None of these times is one of publication.
    let observed = worker.metric("handoff_end_to_end_seconds_count").await;
    assert_eq!(observed, 0.0);
}

#[tokio::test]
async fn blank_message_id_counts_as_missing() {
    let mut env = TestEnv::start().await;
    let _worker = env.start_worker().await;
    let mut ids = Vec::new();
    for blank in ["", " ", "\t "] {
        env.rabbitmq.publish(REQUEST, with_id(blank)).await;
        let event = env.rabbitmq.next_event().await;
        ids.push(event.json()["id"].to_string());
        let id = event.data()["requestId"].as_str().unwrap().to_owned();
        assert!(uuid::Uuid::parse_str(&id).is_ok(), "{id:?}");
    }
    ids.dedup();
    assert_eq!(ids.len(), 3, "consumers drop events with one id");
}

#[tokio::test]
async fn traceparent_in_a_byte_array_is_continued() {
    let mut env = TestEnv::start().await;
    let _worker = env.start_worker().await;
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let bytes = AMQPValue::ByteArray(parent.as_bytes().to_vec().into());
    let properties = with_id("r").with_headers(field_table(&[("traceparent", bytes)]));
    env.rabbitmq.publish(REQUEST, properties).await;
    assert_eq!(env.rabbitmq.next_event().await.text_header("traceparent"), parent);
}
