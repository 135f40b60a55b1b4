//! What happens when: one test for each outcome of a request.

use std::time::Duration;

use lapin::{BasicProperties, types::AMQPValue};
use serde_json::json;

use crate::support::{
    Answer, TestEnv, Worker, log_text,
    platform::{API_KEY, Call, hold_calls, success},
    rabbitmq::{field_table, long_string},
};

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn decoded_once(component: &str) -> String {
    percent_encoding::percent_decode_str(component).decode_utf8().unwrap().into_owned()
}

#[tokio::test]
async fn a_request_becomes_a_link() {
    let mut env = TestEnv::start().await;
    let worker = env.start_worker().await;
    let properties = BasicProperties::default()
        .with_message_id("r-1".into())
        .with_correlation_id("c-1".into())
        .with_headers(field_table(&[
            ("traceparent", long_string(PARENT)),
            ("tracestate", long_string("vendor=1")),
        ]));
    let request = json!({
        "userId": "ann & bob", "workflowId": "w/1 ä", "locale": "de-AT",
        "metadata": { "n": 1, "externalUserId": "mallory" },
    });
    env.rabbitmq.publish(request.to_string(), properties).await;

    let event = env.rabbitmq.next_event().await;
    assert_eq!(event.routing_key, "handoff.ready");
    let json = event.json();
    assert_eq!(
        (&json["specversion"], &json["source"], &json["type"], &json["subject"]),
        (&json!("1.0"), &json!("/handoff"), &json!("handoff.ready"), &json!("ann & bob"))
    );
    assert_eq!(json["datacontenttype"], "application/json");
    let data = event.data();
    assert_eq!(data["requestId"], "r-1");
    assert_eq!((&data["userId"], &data["workflowId"]), (&json!("ann & bob"), &json!("w/1 ä")));
    assert_eq!((&data["sessionId"], &data["reused"]), (&json!("session-0"), &json!(false)));

    let url = data["url"].as_str().unwrap();
    let inner = url.strip_prefix(&format!("{}/capture?url=", env.platform.url)).unwrap();
    let inner = decoded_once(inner);
    let query = inner.strip_prefix(&format!("{}/mobile?authorization=", env.platform.url)).unwrap();
    let (token, session) = query.split_once("&sessionId=").unwrap();
    assert_eq!(decoded_once(token), "Token t0ken-that-nobody-may-see é/+=&%0");
    assert_eq!(session, "session-0");

    let properties = &event.properties;
    let property =
        |value: &Option<lapin::types::ShortString>| value.as_ref().map(ToString::to_string);
    assert_eq!(
        property(properties.content_type()).as_deref(),
        Some("application/cloudevents+json")
    );
    assert_eq!(property(properties.message_id()).as_deref(), json["id"].as_str());
    assert_eq!(property(properties.correlation_id()).as_deref(), Some("c-1"));
    assert_eq!(property(properties.kind()).as_deref(), Some("handoff.ready"));
    assert_eq!(property(properties.app_id()).as_deref(), Some("handoff"));
    assert_eq!(*properties.delivery_mode(), Some(2));
    assert!(properties.timestamp().is_some());
    assert_eq!(event.text_header("traceparent"), PARENT);

    let [token_call, session_call] = &env.platform.calls()[..] else { panic!("not two calls") };
    assert_eq!(token_call.path, "/api/device/ephemeral");
    assert_eq!(token_call.header("authorization"), API_KEY);
    assert_eq!(token_call.body, json!({ "ttl": 3600 }));
    assert_eq!(session_call.path, "/api/sessions");
    assert_eq!(session_call.query.as_deref(), Some("workflowId=w%2F1%20%C3%A4"));
    assert_eq!(session_call.header("authorization"), "Token t0ken-that-nobody-may-see é/+=&%0");
    assert_eq!(
        session_call.body,
        json!({ "metadata": { "n": 1, "externalUserId": "ann & bob" }, "locale": "de-AT" })
    );
    assert!(!session_call.header("idempotency-key").is_empty());
    for call in [token_call, session_call] {
        assert_eq!(call.header("content-type"), "application/json");
        assert_eq!(call.header("traceparent"), PARENT);
        assert_eq!(call.header("tracestate"), "vendor=1");
    }

    let line = worker.wait_for_finished(1).await;
    assert_eq!((&line["request_id"], &line["outcome"]), (&json!("r-1"), &json!("ready")));
    assert_eq!(line["attempt"], 1);
    assert!(line["duration_ms"].is_u64());
    assert_eq!(env.rabbitmq.depth(&env.rabbitmq.queue).await, 0);
    assert_eq!(worker.metric("handoff_requests_total{outcome=\"ready\"}").await, 1.0);
}

#[tokio::test]
async fn a_request_may_be_a_cloud_event() {
    let mut env = TestEnv::start().await;
    let _worker = env.start_worker().await;
    let event = json!({
        "specversion": "1.0", "id": "ce-1", "source": "/app", "type": "verification.requested",
        "data": { "userId": "ann" },
    });
    let properties = BasicProperties::default().with_message_id("m-1".into());
    env.rabbitmq.publish(event.to_string(), properties).await;
    let event = env.rabbitmq.next_event().await;
    assert_eq!(event.data()["requestId"], "ce-1");
    assert_eq!(event.data()["workflowId"], "default-workflow");
    assert_eq!(event.properties.correlation_id().as_ref().unwrap().as_str(), "ce-1");
    assert_eq!(
        env.platform.session_calls()[0].body,
        json!({ "metadata": { "externalUserId": "ann" } })
    );
}

#[tokio::test]
async fn an_id_longer_than_amqp_allows_is_served_all_the_same() {
    let mut env = TestEnv::start().await;
    let _worker = env.start_worker().await;
    let id = "é".repeat(1_000);
    let event = json!({
        "specversion": "1.0", "id": id, "source": "/app", "type": "verification.requested",
        "data": { "userId": "ann" },
    });
    env.rabbitmq.publish(event.to_string(), BasicProperties::default()).await;
    let event = env.rabbitmq.next_event().await;
    assert_eq!(event.data()["requestId"], json!(id));
    assert_eq!(event.properties.correlation_id().as_ref().unwrap().as_str(), "é".repeat(127));
}

#[tokio::test]
async fn a_live_link_is_handed_out_again() {
    let mut env = TestEnv::start().await;
    let worker = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    let first = env.rabbitmq.next_event().await;
    env.publish_request("r-2", "ann").await;
    let second = env.rabbitmq.next_event().await;
    assert_eq!(second.data()["reused"], true);
    assert_eq!(second.data()["requestId"], "r-2");
    for key in ["url", "sessionId", "expiresAt"] {
        assert_eq!(first.data()[key], second.data()[key], "{key}");
    }
    assert_ne!(first.json()["id"], second.json()["id"]);
    assert_eq!(env.platform.calls().len(), 2);

    env.rabbitmq.publish_request("r-3", json!({ "userId": "ann", "workflowId": "other" })).await;
    assert_eq!(env.rabbitmq.next_event().await.data()["reused"], false);
    env.publish_request("r-4", "bob").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["reused"], false);
    let tokens = env.platform.token_calls().len();
    assert_eq!((tokens, env.platform.session_calls().len()), (3, 3), "a token serves one session");
    assert_eq!(worker.wait_for_finished(2).await["outcome"], "reused");
}

#[tokio::test]
async fn a_renewal_makes_a_new_session_once() {
    let mut env = TestEnv::start().await;
    let _worker = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    let first = env.rabbitmq.next_event().await;
    let renewal = json!({ "userId": "ann", "renew": true });
    env.rabbitmq.publish_request("r-2", renewal.clone()).await;
    let second = env.rabbitmq.next_event().await;
    assert_eq!(second.data()["reused"], false);
    assert_ne!(second.data()["sessionId"], first.data()["sessionId"]);
    // From here on the new link is the person's link.
    env.publish_request("r-3", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["sessionId"], second.data()["sessionId"]);
    // The same request again, as after a crash, finds what it made, and so it does after another's.
    env.rabbitmq.publish_request("r-4", renewal.clone()).await;
    let fourth = env.rabbitmq.next_event().await;
    for id in ["r-2", "r-4"] {
        env.rabbitmq.publish_request(id, renewal.clone()).await;
        let again = env.rabbitmq.next_event().await;
        assert_eq!(again.data()["reused"], true, "{id}");
        assert_eq!(again.data()["sessionId"], fourth.data()["sessionId"], "{id}");
    }
    assert_eq!(env.platform.session_calls().len(), 3);
}

#[tokio::test]
async fn a_renewal_takes_no_old_link_from_those_it_comes_together_with() {
    let mut env = TestEnv::start().await;
    let worker = env.start_worker().await;
    env.publish_request("r-0", "ann").await;
    env.rabbitmq.next_event().await;
    worker.stop().await;
    // All wait for the worker, and so are delivered at once.
    for n in 1..=10 {
        let data = json!({ "userId": "ann", "renew": n == 5 });
        env.rabbitmq.publish_request(&format!("r-{n}"), data).await;
    }
    let _worker = env.start_worker().await;
    let events = env.rabbitmq.next_events(10).await;
    let renewed = events.iter().find(|event| event.data()["requestId"] == "r-5").unwrap().data();
    assert_eq!((&renewed["reused"], &renewed["sessionId"]), (&json!(false), &json!("session-1")));
}

#[tokio::test]
async fn sixty_requests_at_once_over_three_workers_make_one_session() {
    let (latch, script) = hold_calls(|call| !call.is_token());
    let mut env = TestEnv::builder().platform(script).start().await;
    env.set("CONCURRENCY", "20");
    let workers = [env.start_worker().await, env.start_worker().await, env.start_worker().await];
    for worker in &workers {
        worker.wait_for_log(log_text::WINDOW_GROWN).await;
    }
    let requests = (0..60).map(|n| {
        let data = json!({ "userId": "ann", "renew": n % 2 == 1 });
        let rabbit = &env.rabbitmq;
        async move { rabbit.publish_request(&format!("r-{n}"), data).await }
    });
    futures_util::future::join_all(requests).await;
    // All are there before the session is: a renewal that came after it would make another.
    crate::support::wait_until("all are in flight", async || {
        let in_flight = workers.iter().map(|worker| worker.metric("handoff_in_flight"));
        futures_util::future::join_all(in_flight).await.iter().sum::<f64>() == 60.0
    })
    .await;
    latch.open();
    let events = env.rabbitmq.next_events(60).await;
    assert!(events.iter().all(|event| event.routing_key == "handoff.ready"));
    let made = events.iter().filter(|event| event.data()["reused"] == false).count();
    let urls: std::collections::HashSet<_> =
        events.iter().map(|event| event.data()["url"].to_string()).collect();
    assert_eq!((made, urls.len(), env.platform.session_calls().len()), (1, 1, 1));
    for worker in &workers {
        // An event is heard a little before its request is settled and counted.
        crate::support::wait_until("all three have had a part in it", async || {
            worker.metric("handoff_requests_total{outcome=\"reused\"}").await
                + worker.metric("handoff_requests_total{outcome=\"ready\"}").await
                > 0.0
        })
        .await;
    }
}

#[tokio::test]
async fn a_bad_request_is_buried_at_once_and_the_worker_goes_on() {
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
async fn a_dead_letter_keeps_what_the_request_was() {
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
    assert_eq!(dead.properties.user_id(), &None, "nobody may publish as somebody else");
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

#[tokio::test]
async fn an_expired_request_is_told_and_dropped() {
    let mut env = TestEnv::start().await;
    let worker = env.start_worker().await;
    env.rabbitmq
        .publish_request("r-1", json!({ "userId": "ann", "expiresAt": "2020-01-01T00:00:00Z" }))
        .await;
    let event = env.rabbitmq.next_event().await;
    assert_eq!(event.routing_key, "handoff.failed");
    assert_eq!(event.data()["reason"]["code"], "request_expired");
    assert_eq!(event.data()["userId"], "ann");
    worker.wait_for_finished(1).await;
    assert_eq!(env.dead_letters().await, 0);
    assert_eq!(env.platform.calls().len(), 0);
}

#[tokio::test]
async fn a_request_that_expires_while_it_is_tried_again_makes_no_session() {
    let script = |call: &_| match success(call) {
        answer if answer.body.starts_with(b"{\"authorization") => answer,
        _ => Answer::status(503),
    };
    let mut env = TestEnv::builder().platform(script).start().await;
    let _worker = env.start_worker().await;
    let soon = time::OffsetDateTime::now_utc() + Duration::from_secs(1);
    let expires_at = soon.format(&time::format_description::well_known::Rfc3339).unwrap();
    env.rabbitmq.publish_request("r-1", json!({ "userId": "ann", "expiresAt": expires_at })).await;
    let event = env.rabbitmq.next_event().await;
    assert_eq!(event.data()["reason"]["code"], "request_expired");
    assert!(time::OffsetDateTime::now_utc() < soon + Duration::from_secs(2), "nobody waits for it");
}

#[tokio::test]
async fn a_request_that_expires_between_the_calls_makes_no_session() {
    let (latch, script) = hold_calls(|_| true);
    let mut env = TestEnv::builder().platform(script).start().await;
    let _worker = env.start_worker().await;
    let end = time::OffsetDateTime::now_utc() + Duration::from_millis(1_500);
    let expires_at = end.format(&time::format_description::well_known::Rfc3339).unwrap();
    env.rabbitmq.publish_request("r-1", json!({ "userId": "ann", "expiresAt": expires_at })).await;
    env.platform.wait_for_calls(1).await;
    crate::support::wait_until("nobody waits", async || time::OffsetDateTime::now_utc() > end)
        .await;
    latch.open();
    assert_eq!(env.rabbitmq.next_event().await.data()["reason"]["code"], "request_expired");
    assert!(env.platform.session_calls().is_empty());
}

#[tokio::test]
async fn a_rejected_session_is_buried_without_a_retry() {
    for status in [400, 403, 404, 409, 422] {
        let script = move |call: &Call| match call.is_token() {
            true => success(call),
            false => Answer::status(status),
        };
        let mut env = TestEnv::builder().platform(script).start().await;
        let _worker = env.start_worker().await;
        env.publish_request("r-1", "ann").await;
        let event = env.rabbitmq.next_event().await;
        let data = event.data();
        assert_eq!(data["reason"]["code"], "platform_rejected", "{status}");
        let message = data["reason"]["message"].as_str().unwrap();
        assert!(message.contains(&status.to_string()) && !message.contains("b0dy"), "{message}");
        assert_eq!(
            env.rabbitmq.take_dead_letter().await.text_header("x-handoff-reason"),
            "platform_rejected"
        );
        assert_eq!(env.platform.session_calls().len(), 1, "{status}");
    }
}

#[tokio::test]
async fn a_refused_token_is_replaced_once() {
    let script = |call: &Call| match (call.is_token(), call.nth) {
        (false, 0) => Answer::status(401),
        _ => success(call),
    };
    let mut env = TestEnv::builder().platform(script).start().await;
    let _worker = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["sessionId"], "session-1");
    let sessions = env.platform.session_calls();
    assert_eq!((env.platform.token_calls().len(), sessions.len()), (2, 2));
    assert_ne!(sessions[0].header("authorization"), sessions[1].header("authorization"));
    assert_ne!(sessions[0].header("idempotency-key"), sessions[1].header("idempotency-key"));
}

#[tokio::test]
async fn a_token_that_was_used_by_a_call_whose_answer_was_lost_is_no_rejection() {
    let used = std::sync::Mutex::new(std::collections::HashSet::new());
    // A token serves one session, and three times the answer is lost behind a proxy.
    let script = move |call: &Call| {
        if call.is_token() {
            return success(call);
        }
        let mut used = used.lock().unwrap();
        match (used.insert(call.header("authorization")), used.len()) {
            (false, _) => Answer::status(401),
            (true, ..4) => Answer::status(503),
            (true, _) => success(call),
        }
    };
    let mut env = TestEnv::builder().platform(script).start().await;
    let _worker = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.ready");
    assert_eq!(env.platform.token_calls().len(), 4);
}

#[tokio::test]
async fn a_token_refused_twice_is_a_rejection() {
    let script = |call: &Call| match call.is_token() {
        true => success(call),
        false => Answer::status(401),
    };
    let mut env = TestEnv::builder().platform(script).start().await;
    let _worker = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["reason"]["code"], "platform_rejected");
    assert_eq!(env.platform.session_calls().len(), 2);
    // The token is to blame, so nobody shall use it again.
    assert!(env.redis_entries().await.is_empty(), "neither lease nor token is left");
}

#[tokio::test]
async fn settings_come_from_files_and_flags_too() {
    let mut env = TestEnv::start().await;
    let key = crate::support::TempFile::new(&format!("{API_KEY}\n"));
    env.settings.remove("HANDOFF_IDV_API_KEY");
    env.set("IDV_API_KEY_FILE", key.path());
    env.set("IDV_WORKFLOW_ID", "not this one").set("IDV_PUBLIC_URL", "https://people.example/idv/");
    let worker = Worker::start_with(&["--idv-workflow-id", "this one"], &env.settings);
    worker.wait_for_log(log_text::CONSUMING).await;
    env.publish_request("r-1", "ann").await;
    let event = env.rabbitmq.next_event().await;
    assert_eq!(event.data()["workflowId"], "this one");
    let url = event.data()["url"].to_string();
    assert!(
        url.starts_with("\"https://people.example/idv/capture?url=https%3A%2F%2Fpeople.example%2Fidv%2Fmobile%3F"),
        "{url}"
    );
    assert_eq!(env.platform.calls()[0].header("authorization"), API_KEY);
}

#[tokio::test]
async fn an_expired_request_of_which_nobody_hears_leaves_a_dead_letter() {
    let env = TestEnv::builder().without_event_queue().start().await;
    let _worker = env.start_worker().await;
    let data = json!({ "userId": "ann", "expiresAt": "2020-01-31T12:00:00Z" });
    env.rabbitmq.publish_request("r-1", data).await;
    let dead = env.rabbitmq.take_dead_letter().await;
    assert_eq!(dead.text_header("x-handoff-reason"), "request_expired");
    assert!(env.platform.calls().is_empty());
}

#[tokio::test]
async fn a_token_refused_after_a_failure_is_replaced_once_as_any_other() {
    let script = |call: &Call| match (call.is_token(), call.nth) {
        (true, _) => success(call),
        (false, 0) => Answer::status(503),
        (false, _) => Answer::status(401),
    };
    let mut env = TestEnv::builder().platform(script).start().await;
    let _worker = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["reason"]["code"], "platform_rejected");
    let (tokens, sessions) = (env.platform.token_calls().len(), env.platform.session_calls().len());
    assert_eq!((tokens, sessions), (2, 3));
}
