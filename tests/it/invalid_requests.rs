//! Requests that no retry can serve, and their dead letters.

use lapin::{BasicProperties, types::AMQPValue};
use serde_json::json;

use crate::support::{TestEnv, rabbitmq::field_table};

#[tokio::test]
async fn invalid_request_becomes_a_dead_letter_without_a_retry() {
    let mut env = TestEnv::start().await;
    env.settings.remove("HANDOFF_IDV_WORKFLOW_ID");
    let _worker = env.start_worker().await;
    let user = |value: &str| format!(r#"{{"userId":{value},"workflowId":"w"}}"#).into_bytes();
    let more = |rest: &str| format!(r#"{{"userId":"u","workflowId":"w",{rest}}}"#).into_bytes();
    let bad: Vec<(&str, Vec<u8>)> = vec![
        ("empty", vec![]),
        ("not UTF-8", b"{\"userId\":\"\xff\",\"workflowId\":\"w\"}".to_vec()),
        ("cut short", br#"{"userId":"u","workf"#.to_vec()),
        ("nested", "[".repeat(100_000).into_bytes()),
        ("nested, closed and small", (r#"{"userId":"u","workflowId":"w","x":"#.to_owned()
            + &"[".repeat(10_000) + &"]".repeat(10_000) + "}").into_bytes()),
        ("an array", b"[]".to_vec()),
        ("a wrong type", user("7")),
        ("no user", br#"{"workflowId":"w"}"#.to_vec()),
        ("no workflow anywhere", br#"{"userId":"u"}"#.to_vec()),
        ("a long user", user(&format!("\"{}\"", "u".repeat(257)))),
        ("a control character", user(r#""a\u0007b""#)),
        ("a C1 control character", user(r#""a\u0085b""#)),
        ("a user twice", more(r#""userId":"v""#)),
        ("large metadata", more(&format!(r#""metadata":{{"k":"{}"}}"#, "x".repeat(17 * 1024)))),
        ("metadata of a wrong type", more(r#""metadata":[]"#)),
        ("a bad date", more(r#""expiresAt":"tomorrow""#)),
        ("renew of a wrong type", more(r#""renew":"yes""#)),
        ("a body over the limit", more(&format!(r#""x":"{}""#, "x".repeat(65_536)))),
        ("a wrong CloudEvent type", br#"{"specversion":"1.0","id":"1","source":"/a","type":"other","data":{"userId":"u","workflowId":"w"}}"#.to_vec()),
    ];
    for (number, (what, body)) in bad.iter().enumerate() {
        let id = format!("bad-{number}");
        env.rabbitmq
            .publish(body, BasicProperties::default().with_message_id(id.as_str().into()))
            .await;
        let event = env.rabbitmq.next_event().await;
        assert_eq!(event.routing_key, "handoff.failed", "{what}");
        let data = event.data();
        assert_eq!(data["reason"]["code"], "invalid_request", "{what}");
        assert_eq!(data["attempts"], 1, "{what}");
        let dead = env.rabbitmq.take_dead_letter().await;
        assert_eq!(&dead.body, body, "{what}");
        assert_eq!(dead.text_header("x-handoff-reason"), "invalid_request", "{what}");
        assert_eq!(
            json!(dead.text_header("x-handoff-detail")),
            data["reason"]["message"],
            "{what}"
        );
    }
    env.rabbitmq.publish_request("good", json!({ "userId": "ann", "workflowId": "w" })).await;
    assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.ready");
}

#[tokio::test]
async fn dead_letter_keeps_body_headers_and_properties() {
    let mut env = TestEnv::start().await;
    let _worker = env.start_worker().await;
    let properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_content_encoding("identity".into())
        .with_message_id("r-1".into())
        .with_correlation_id("c-1".into())
        .with_reply_to("replies".into())
        .with_type("t".into())
        .with_app_id("app".into())
        .with_user_id("guest".into())
        .with_priority(3)
        .with_delivery_mode(2)
        .with_timestamp(1_700_000_000)
        .with_expiration("600000".into())
        .with_headers(field_table(&[
            ("mine", AMQPValue::LongInt(7)),
            ("flag", AMQPValue::Boolean(true)),
        ]));
    env.rabbitmq.publish(r#"{"userId": 7}"#, properties.clone()).await;
    env.rabbitmq.next_event().await;
    let dead = env.rabbitmq.take_dead_letter().await;
    assert_eq!(dead.body, br#"{"userId": 7}"#);
    assert_eq!(dead.header("mine"), Some(&AMQPValue::LongInt(7)));
    assert_eq!(dead.header("flag"), Some(&AMQPValue::Boolean(true)));
    assert_eq!(dead.text_header("x-handoff-request-id"), "r-1");
    assert_eq!(dead.header("x-handoff-attempt"), Some(&AMQPValue::LongLongInt(1)));
    assert!(dead.text_header("x-handoff-failed-at").ends_with('Z'));
    assert_eq!(dead.properties.expiration(), &None, "a dead letter does not expire");
    assert_eq!(dead.properties.user_id(), &None, "RabbitMQ would refuse another user's id");
    let same = |p: &BasicProperties| {
        (
            p.content_type().clone(),
            p.content_encoding().clone(),
            p.message_id().clone(),
            p.correlation_id().clone(),
            p.reply_to().clone(),
            p.kind().clone(),
            p.app_id().clone(),
            *p.priority(),
            *p.delivery_mode(),
            *p.timestamp(),
        )
    };
    assert_eq!(same(&dead.properties), same(&properties));
}
