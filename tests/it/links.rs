//! Links: how a request becomes one, and when it is reused or renewed.

use std::time::Duration;

use lapin::BasicProperties;
use serde_json::json;

use crate::support::{
    TempFile, TestEnv, Worker, log_text,
    platform::{API_KEY, hold_calls},
    rabbitmq::{field_table, long_string},
    wait_until,
};

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// Decodes a query component once, as a browser does.
fn percent_decoded(component: &str) -> String {
    percent_encoding::percent_decode_str(component).decode_utf8().unwrap().into_owned()
}

#[tokio::test]
async fn request_becomes_a_link() {
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
    assert_eq!(json["specversion"], "1.0");
    assert_eq!(json["source"], "/handoff");
    assert_eq!(json["type"], "handoff.ready");
    assert_eq!(json["subject"], "ann & bob");
    assert_eq!(json["datacontenttype"], "application/json");
    let data = event.data();
    assert_eq!(data["requestId"], "r-1");
    assert_eq!(data["userId"], "ann & bob");
    assert_eq!(data["workflowId"], "w/1 ä");
    assert_eq!(data["sessionId"], "session-0");
    assert_eq!(data["reused"], false);

    let url = data["url"].as_str().unwrap();
    let inner = url.strip_prefix(&format!("{}/capture?url=", env.platform.url)).unwrap();
    let inner = percent_decoded(inner);
    let query = inner.strip_prefix(&format!("{}/mobile?authorization=", env.platform.url)).unwrap();
    let (token, session) = query.split_once("&sessionId=").unwrap();
    assert_eq!(percent_decoded(token), "Token t0ken-must-not-leak é/+=&%0");
    assert_eq!(session, "session-0");
    assert_eq!(data["mobileUrl"], inner);

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
    assert_eq!(session_call.header("authorization"), "Token t0ken-must-not-leak é/+=&%0");
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
    assert_eq!(line["request_id"], "r-1");
    assert_eq!(line["outcome"], "ready");
    assert_eq!(line["attempt"], 1);
    assert!(line["duration_ms"].is_u64());
    assert_eq!(env.rabbitmq.depth(&env.rabbitmq.queue).await, 0);
    assert_eq!(worker.metric("handoff_requests_total{outcome=\"ready\"}").await, 1.0);
}

#[tokio::test]
async fn cloud_event_request_is_served_under_its_own_id() {
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
async fn id_too_long_for_amqp_is_truncated_in_the_correlation_id_alone() {
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
async fn valid_link_is_reused() {
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
    // A token serves one session.
    assert_eq!(env.platform.token_calls().len(), 3);
    assert_eq!(env.platform.session_calls().len(), 3);
    assert_eq!(worker.wait_for_finished(2).await["outcome"], "reused");
}

#[tokio::test]
async fn renewal_makes_one_new_session() {
    let mut env = TestEnv::start().await;
    let _worker = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    let first = env.rabbitmq.next_event().await;
    let renewal = json!({ "userId": "ann", "renew": true });
    env.rabbitmq.publish_request("r-2", renewal.clone()).await;
    let second = env.rabbitmq.next_event().await;
    assert_eq!(second.data()["reused"], false);
    assert_ne!(second.data()["sessionId"], first.data()["sessionId"]);
    // The new link is now the user's link.
    env.publish_request("r-3", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["sessionId"], second.data()["sessionId"]);
    // A renewal repeated after a crash reuses the session it made, also after a later renewal.
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
async fn renewal_adopts_no_old_link_from_concurrent_requests() {
    let mut env = TestEnv::start().await;
    let worker = env.start_worker().await;
    env.publish_request("r-0", "ann").await;
    env.rabbitmq.next_event().await;
    worker.stop().await;
    // Queued before the worker starts, so that all are delivered together.
    for n in 1..=10 {
        let data = json!({ "userId": "ann", "renew": n == 5 });
        env.rabbitmq.publish_request(&format!("r-{n}"), data).await;
    }
    let _worker = env.start_worker().await;
    let events = env.rabbitmq.next_events(10).await;
    let renewed = events.iter().find(|event| event.data()["requestId"] == "r-5").unwrap().data();
    assert_eq!(renewed["reused"], false);
    assert_eq!(renewed["sessionId"], "session-1");
}

#[tokio::test]
async fn renewals_share_the_session_that_another_worker_is_making() {
    const PEOPLE: usize = 5;
    let (latch, script) = hold_calls(|call| !call.is_token());
    let mut env = TestEnv::builder().platform(script).start().await;
    let publish = async |env: &TestEnv, what: &str, renew: bool| {
        for n in 0..PEOPLE {
            let data = json!({ "userId": format!("user-{n}"), "renew": renew });
            env.rabbitmq.publish_request(&format!("{what}-{n}"), data).await;
        }
    };
    // The first worker has no place for more.
    env.set("CONCURRENCY", &PEOPLE.to_string());
    let first = env.start_worker().await;
    first.wait_for_log(log_text::WINDOW_GROWN).await;
    publish(&env, "first", false).await;
    env.platform.wait_for_calls(2 * PEOPLE).await;
    env.set("CONCURRENCY", "64");
    let second = env.start_worker().await;
    second.wait_for_log(log_text::WINDOW_GROWN).await;
    publish(&env, "second", false).await;
    second.wait_for_in_flight(PEOPLE).await;
    // After a second, a request asks Redis every 250 ms whether the other worker has finished.
    tokio::time::sleep(Duration::from_secs(1)).await;
    publish(&env, "renewal", true).await;
    second.wait_for_in_flight(2 * PEOPLE).await;
    latch.open();
    let events = env.rabbitmq.next_events(3 * PEOPLE).await;
    assert!(events.iter().all(|event| event.routing_key == "handoff.ready"));
    assert_eq!(env.platform.session_calls().len(), PEOPLE);
}

#[tokio::test]
async fn sixty_concurrent_requests_on_three_workers_share_one_session() {
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
    // A renewal delivered after the session was made would make another.
    wait_until("all are in flight", async || {
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
    assert_eq!(made, 1);
    assert_eq!(urls.len(), 1);
    assert_eq!(env.platform.session_calls().len(), 1);
    for worker in &workers {
        // A request is settled and counted shortly after its event.
        wait_until("each worker has served one", async || {
            worker.metric("handoff_requests_total{outcome=\"reused\"}").await
                + worker.metric("handoff_requests_total{outcome=\"ready\"}").await
                > 0.0
        })
        .await;
    }
}

#[tokio::test]
async fn settings_are_read_from_files_and_flags() {
    let mut env = TestEnv::start().await;
    let key = TempFile::new(&format!("{API_KEY}\n"));
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
