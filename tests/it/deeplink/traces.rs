//! The one call in traces, and no secret of it in what a worker prints or serves.

use lapin::BasicProperties;
use serde_json::json;

use super::start;
use crate::support::{
    Collector,
    platform::success,
    rabbitmq::{field_table, long_string},
};

#[tokio::test]
async fn trace_leads_through_the_one_call_and_holds_no_secret() {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    let collector = Collector::start().await;
    let mut env = start(success).await;
    env.settings.insert("OTEL_EXPORTER_OTLP_ENDPOINT".into(), collector.url.clone());
    env.set("LOG", "trace");
    let worker = env.start_worker().await;
    let parent = long_string(&format!("00-{TRACE}-00f067aa0ba902b7-01"));
    let properties = BasicProperties::default().with_message_id("r-1".into());
    let properties = properties.with_headers(field_table(&[("traceparent", parent)]));
    let request = json!({ "userId": "us3r-must-not-leak", "workflowId": "w-must-not-leak" });
    env.rabbitmq.publish(request.to_string(), properties).await;
    assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.ready");
    worker.wait_for_finished(1).await;
    let served = worker.get("/metrics").await.1 + &worker.get("/readyz").await.1;
    let printed = worker.stop_and_output().await;

    let spans = collector.spans();
    let call = spans.iter().find(|span| span.name == "POST /api/v1/deeplink").unwrap();
    assert_eq!(call.attributes["handoff.call"], "deeplink");
    assert_eq!(call.attributes["http.response.status_code"], "200");
    let sent = env.platform.deeplink_calls()[0].header("traceparent");
    assert!(sent.contains(TRACE), "{sent}");
    let exported = format!("{spans:?}");
    for (what, text) in [("output", &printed), ("pages", &served), ("spans", &exported)] {
        assert!(!text.contains("must-not-leak"), "{what}: {text}");
        assert!(!text.contains("session-0"), "{what}: {text}");
    }
}
