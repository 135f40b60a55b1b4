//! Traces: one leads from the publisher through both platform calls to the event, and a faulty
//! collector harms no request.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use lapin::BasicProperties;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use serde_json::json;

use crate::support::{
    Answer, Authority, Collector, TestEnv, TlsProxy,
    collector::Span,
    log_text,
    platform::{Call, success},
    rabbitmq::{field_table, long_string},
    tls::tls_url,
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

fn traceparent(flags: &str) -> String {
    format!("00-{TRACE}-{PARENT}-{flags}")
}

/// An environment whose workers export their spans to a collector, at the latest when they exit.
async fn traced(
    script: impl Fn(&Call) -> Answer + Send + Sync + 'static,
    collector: &Collector,
) -> TestEnv {
    let mut env = TestEnv::builder().platform(script).start().await;
    for (name, value) in
        [("ENDPOINT", collector.url.as_str()), ("HEADERS", "x-tenant=h3ader-must-not-leak")]
    {
        env.settings.insert(format!("OTEL_EXPORTER_OTLP_{name}"), value.into());
    }
    env
}

async fn publish_request(env: &TestEnv, id: &str, user: &str, headers: &[(&str, &str)]) {
    let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, long_string(value))).collect();
    let properties = BasicProperties::default().with_message_id(id.into());
    let body = json!({ "userId": user, "workflowId": "workfl0w-must-not-leak" }).to_string();
    env.rabbitmq.publish(body, properties.with_headers(field_table(&headers))).await;
}

fn assert_attributes(span: &Span, expected: &[(&str, &str)]) {
    let expected: BTreeMap<_, _> =
        expected.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    assert_eq!(span.attributes, expected, "{}", span.name);
}

#[tokio::test]
async fn trace_leads_from_the_publisher_through_both_calls_to_the_event() {
    let script = |call: &Call| {
        if !call.is_token() && call.nth == 0 { Answer::status(500) } else { success(call) }
    };
    let collector = Collector::start().await;
    let mut env = traced(script, &collector).await;
    let attributes = "deployment.environment.name=test,service.version=7";
    env.settings.insert("OTEL_RESOURCE_ATTRIBUTES".into(), attributes.into());
    let worker = env.start_worker().await;
    let parent = traceparent("01");
    let headers = [("traceparent", parent.as_str()), ("tracestate", "vendor=1")];
    publish_request(&env, "r-1", "us3r-must-not-leak", &headers).await;
    let event = env.rabbitmq.next_event().await;
    let line = worker.wait_for_finished(1).await;
    assert_eq!(line["trace_id"], TRACE);
    worker.stop().await;

    // Spans are exported in the order in which they ended.
    let spans = collector.spans();
    let kinds: Vec<_> = spans.iter().map(|span| (span.kind, span.name.as_str())).collect();
    let queue = &env.rabbitmq.queue;
    let exchange = &env.rabbitmq.event_exchange;
    let process = format!("process {queue}");
    let publish = format!("publish {exchange}:handoff.ready");
    assert_eq!(
        kinds,
        [
            (SpanKind::Client, "POST /api/device/ephemeral"),
            (SpanKind::Client, "POST /api/sessions"),
            (SpanKind::Client, "POST /api/sessions"),
            (SpanKind::Producer, publish.as_str()),
            (SpanKind::Consumer, process.as_str()),
        ]
    );
    let [token, failed, session, published, delivery] = &spans[..] else { unreachable!() };
    assert_eq!(delivery.parent_id, PARENT);
    for child in [token, failed, session, published] {
        assert_eq!(child.parent_id, delivery.span_id, "{}", child.name);
    }
    for span in &spans {
        assert_eq!(span.trace_id, TRACE);
        assert_eq!(span.tracestate, "vendor=1");
        assert_eq!(span.failed, span.span_id == failed.span_id, "{}", span.name);
        assert_eq!(span.resource["service.name"], "handoff");
        assert_eq!(span.resource["service.version"], "7");
        assert_eq!(span.resource["deployment.environment.name"], "test");
    }
    // Each span is the parent of the call or event that carries its id.
    let parent = |span: &Span| format!("00-{TRACE}-{}-01", span.span_id);
    for (call, span) in env.platform.calls().iter().zip([token, failed, session]) {
        assert_eq!(call.header("traceparent"), parent(span));
        assert_eq!(call.header("tracestate"), "vendor=1");
    }
    assert_eq!(event.text_header("traceparent"), parent(published));
    assert_eq!(event.text_header("tracestate"), "vendor=1");

    let port = env.platform.url.rsplit(':').next().unwrap();
    let call = |call, route, outcome: &[(&'static str, &'static str)]| {
        let common = [
            ("http.request.method", "POST"),
            ("url.template", route),
            ("server.address", "127.0.0.1"),
            ("server.port", port),
            ("handoff.call", call),
        ];
        [&common[..], outcome].concat()
    };
    let ok = [("http.response.status_code", "200")];
    let not_ok = [("http.response.status_code", "500"), ("error.type", "500")];
    assert_attributes(token, &call("token", "/api/device/ephemeral", &ok));
    assert_attributes(session, &call("session", "/api/sessions", &ok));
    assert_attributes(failed, &call("session", "/api/sessions", &not_ok));
    let destination = format!("{exchange}:handoff.ready");
    let id = event.json()["id"].as_str().unwrap().to_owned();
    let published_attributes = [
        ("messaging.system", "rabbitmq"),
        ("messaging.operation.type", "send"),
        ("messaging.operation.name", "publish"),
        ("messaging.destination.name", destination.as_str()),
        ("messaging.rabbitmq.destination.routing_key", "handoff.ready"),
        ("messaging.message.id", id.as_str()),
    ];
    assert_attributes(published, &published_attributes);
    let delivery_attributes = [
        ("messaging.system", "rabbitmq"),
        ("messaging.operation.type", "process"),
        ("messaging.operation.name", "process"),
        ("messaging.destination.name", queue.as_str()),
        ("messaging.message.id", "r-1"),
        ("handoff.attempt", "1"),
        ("handoff.outcome", "ready"),
    ];
    assert_attributes(delivery, &delivery_attributes);

    assert_eq!(collector.header("x-tenant"), "h3ader-must-not-leak");
    assert!(!format!("{spans:?}").contains("must-not-leak"), "{spans:?}");
}

#[tokio::test]
async fn publishers_sampling_is_kept_and_a_trace_starts_where_there_is_none() {
    let collector = Collector::start().await;
    let mut env = traced(success, &collector).await;
    env.settings.insert("OTEL_BSP_SCHEDULE_DELAY".into(), "50".into());
    env.settings.insert("OTEL_SERVICE_NAME".into(), "links".into());
    let worker = env.start_worker().await;
    publish_request(&env, "r-1", "ann", &[("traceparent", &traceparent("00"))]).await;
    let event = env.rabbitmq.next_event().await.text_header("traceparent");
    assert!(event.starts_with(&format!("00-{TRACE}-")) && event.ends_with("-00"), "{event}");
    assert!(!event.contains(PARENT), "{event}");

    env.rabbitmq.publish("not a request", BasicProperties::default()).await;
    let event = env.rabbitmq.next_event().await.text_header("traceparent");
    collector.wait_for_exports(1).await;
    worker.stop().await;
    let spans = collector.spans();
    let [published, delivery] = &spans[..] else { panic!("{spans:?}") };
    assert_eq!(event, format!("00-{}-{}-01", delivery.trace_id, published.span_id));
    assert_eq!(delivery.parent_id, "");
    assert_eq!(published.parent_id, delivery.span_id);
    assert_ne!(delivery.trace_id, TRACE);
    assert_eq!(delivery.attributes["error.type"], "invalid_request");
    assert!(delivery.failed);
    assert_eq!(delivery.resource["service.name"], "links");
}

#[tokio::test]
async fn without_an_exporter_the_publishers_context_is_passed_on() {
    let collector = Collector::start().await;
    let mut disabled = traced(success, &collector).await;
    disabled.settings.insert("OTEL_SDK_DISABLED".into(), "true".into());
    let mut none = traced(success, &collector).await;
    none.settings.insert("OTEL_TRACES_EXPORTER".into(), "none".into());
    let mut wrong = traced(success, &collector).await;
    wrong.settings.insert("OTEL_EXPORTER_OTLP_PROTOCOL".into(), "grpc".into());
    for (env, is_wrong) in [(&mut disabled, false), (&mut none, false), (&mut wrong, true)] {
        let worker = env.start_worker().await;
        publish_request(env, "r-1", "ann", &[("traceparent", &traceparent("01"))]).await;
        assert_eq!(env.rabbitmq.next_event().await.text_header("traceparent"), traceparent("01"));
        for call in env.platform.calls() {
            assert_eq!(call.header("traceparent"), traceparent("01"));
        }
        assert_eq!(worker.wait_for_finished(1).await["trace_id"], json!(null));
        assert_eq!(worker.log_lines(log_text::TRACES_DISABLED).len(), usize::from(is_wrong));
        worker.stop().await;
    }
    assert_eq!(collector.exports(), 0);
}

#[tokio::test]
async fn faulty_collector_delays_no_request_and_no_exit() {
    let hanging = Collector::start_hanging().await;
    let refusing = Collector::start().await;
    refusing.set_status(Some(400));
    let dead = "http://127.0.0.1:1".to_owned();
    for url in [dead, hanging.url.clone(), refusing.url.clone()] {
        let mut env = traced(success, &refusing).await;
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str()),
            // Frequent exports and a short queue, so that the queue overflows.
            ("OTEL_BSP_SCHEDULE_DELAY", "10"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "8"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4"),
        ] {
            env.settings.insert(name.into(), value.into());
        }
        let worker = env.start_worker().await;
        env.publish_requests(0..100).await;
        env.expect_all_ready(100).await;
        let lines = worker.log_lines(log_text::REQUEST_FINISHED);
        let slowest = lines.iter().filter_map(|line| line["duration_ms"].as_u64()).max().unwrap();
        assert!(slowest < 2_000, "{slowest} ms at {url}");
        if url != hanging.url {
            worker.wait_for_log(log_text::SPANS_DROPPED).await;
        }
        let stopping = Instant::now();
        let printed = worker.stop_and_output().await;
        assert!(stopping.elapsed() < Duration::from_secs(4), "{:?}", stopping.elapsed());
        assert!(printed.contains(&format!("\"{}\"", log_text::STOPPED)), "{printed}");
        assert!(printed.matches(log_text::SPANS_DROPPED).count() <= 1, "{printed}");
        assert!(!printed.contains("must-not-leak"), "{printed}");
    }
    assert!(hanging.exports() > 0);
}

#[tokio::test]
async fn collector_certificate_is_checked_against_the_configured_authority() {
    let collector = Collector::start().await;
    let authority = Authority::new();
    let front = TlsProxy::to(&collector.url, &authority.issue(&["127.0.0.1"])).await;
    let mut env = traced(success, &collector).await;
    let url = tls_url(&collector.url, front.port());
    env.settings.insert("OTEL_EXPORTER_OTLP_ENDPOINT".into(), url);
    env.settings.insert("OTEL_BSP_SCHEDULE_DELAY".into(), "50".into());
    let untrusting = env.start_worker().await;
    publish_request(&env, "r-1", "ann", &[]).await;
    env.rabbitmq.next_event().await;
    untrusting.wait_for_log(log_text::SPANS_DROPPED).await;
    untrusting.stop().await;
    assert_eq!(collector.exports(), 0);

    env.settings.insert("OTEL_EXPORTER_OTLP_CERTIFICATE".into(), authority.certificate_file());
    let worker = env.start_worker().await;
    publish_request(&env, "r-2", "bob", &[]).await;
    env.rabbitmq.next_event().await;
    collector.wait_for_exports(1).await;
    worker.stop().await;
    assert_eq!(collector.spans().len(), 4);
}
