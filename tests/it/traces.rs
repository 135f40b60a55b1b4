//! Traces: one from the publisher through both calls to the event, where there is a collector; and no
//! harm done by a collector that is not well.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use lapin::BasicProperties;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use serde_json::json;

use crate::support::{
    Answer, Authority, Collector, Platform, TestEnv, TlsProxy,
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

/// A env whose worker sends its spans there, at its end if not before.
async fn traced(platform: Platform, collector: &Collector) -> TestEnv {
    let mut env = TestEnv::builder().platform(platform).start().await;
    for (name, value) in
        [("ENDPOINT", collector.url.as_str()), ("HEADERS", "x-tenant=h3ader-that-nobody-may-see")]
    {
        env.settings.insert(format!("OTEL_EXPORTER_OTLP_{name}"), value.into());
    }
    env
}

async fn request(env: &TestEnv, id: &str, user: &str, headers: &[(&str, &str)]) {
    let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, long_string(value))).collect();
    let properties = BasicProperties::default().with_message_id(id.into());
    let body = json!({ "userId": user, "workflowId": "workfl0w-that-nobody-may-see" }).to_string();
    env.rabbitmq.publish(body, properties.with_headers(field_table(&headers))).await;
}

fn has(span: &Span, expected: &[(&str, &str)]) {
    let expected: BTreeMap<_, _> =
        expected.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    assert_eq!(span.attributes, expected, "{}", span.name);
}

#[tokio::test]
async fn one_trace_leads_from_the_publisher_through_both_calls_to_the_event() {
    let script = |call: &Call| match (call.is_token(), call.nth) {
        (false, 0) => Answer::status(500),
        _ => success(call),
    };
    let collector = Collector::start().await;
    let mut env = traced(Platform::scripted(script).await, &collector).await;
    let attributes = "deployment.environment.name=test,service.version=7";
    env.settings.insert("OTEL_RESOURCE_ATTRIBUTES".into(), attributes.into());
    let worker = env.start_worker().await;
    let came = [("traceparent", traceparent("01")), ("tracestate", "vendor=1".to_owned())];
    let came = came.each_ref().map(|(name, value)| (*name, value.as_str()));
    request(&env, "r-1", "us3r-that-nobody-may-see", &came).await;
    let event = env.rabbitmq.next_event().await;
    let line = worker.wait_for_finished(1).await;
    assert_eq!(line["trace_id"], TRACE);
    worker.stop().await;

    // In the order they ended.
    let spans = collector.spans();
    let kinds: Vec<_> = spans.iter().map(|span| (span.kind, span.name.as_str())).collect();
    let (queue, exchange) = (&env.rabbitmq.queue, &env.rabbitmq.event_exchange);
    let (process, publish) =
        (format!("process {queue}"), format!("publish {exchange}:handoff.ready"));
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
        assert_eq!((span.trace_id.as_str(), span.tracestate.as_str()), (TRACE, "vendor=1"));
        assert_eq!(span.failed, span.span_id == failed.span_id, "{}", span.name);
        assert_eq!(span.resource["service.name"], "handoff");
        assert_eq!(span.resource["service.version"], "7");
        assert_eq!(span.resource["deployment.environment.name"], "test");
    }
    // Each is the parent of whatever comes of it elsewhere.
    let of = |span: &Span| format!("00-{TRACE}-{}-01", span.span_id);
    for (call, span) in env.platform.calls().iter().zip([token, failed, session]) {
        assert_eq!(call.header("traceparent"), of(span));
        assert_eq!(call.header("tracestate"), "vendor=1");
    }
    assert_eq!(event.text_header("traceparent"), of(published));
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
    has(token, &call("token", "/api/device/ephemeral", &ok));
    has(session, &call("session", "/api/sessions", &ok));
    has(failed, &call("session", "/api/sessions", &not_ok));
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
    has(published, &published_attributes);
    let delivery_attributes = [
        ("messaging.system", "rabbitmq"),
        ("messaging.operation.type", "process"),
        ("messaging.operation.name", "process"),
        ("messaging.destination.name", queue.as_str()),
        ("messaging.message.id", "r-1"),
        ("handoff.attempt", "1"),
        ("handoff.outcome", "ready"),
    ];
    has(delivery, &delivery_attributes);

    assert_eq!(collector.header("x-tenant"), "h3ader-that-nobody-may-see");
    assert!(!format!("{spans:?}").contains("nobody-may-see"), "{spans:?}");
}

#[tokio::test]
async fn a_trace_begins_here_unless_the_publisher_has_one_and_its_sampling_is_kept() {
    let collector = Collector::start().await;
    let mut env = traced(Platform::healthy().await, &collector).await;
    env.settings.insert("OTEL_BSP_SCHEDULE_DELAY".into(), "50".into());
    env.settings.insert("OTEL_SERVICE_NAME".into(), "links".into());
    let worker = env.start_worker().await;
    request(&env, "r-1", "ann", &[("traceparent", &traceparent("00"))]).await;
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
    assert_eq!((delivery.parent_id.as_str(), &published.parent_id), ("", &delivery.span_id));
    assert_ne!(delivery.trace_id, TRACE);
    assert_eq!((&*delivery.attributes["error.type"], delivery.failed), ("invalid_request", true));
    assert_eq!(delivery.resource["service.name"], "links");
}

#[tokio::test]
async fn without_a_collector_no_span_is_made_and_what_came_is_passed_on() {
    let collector = Collector::start().await;
    let mut disabled = traced(Platform::healthy().await, &collector).await;
    disabled.settings.insert("OTEL_SDK_DISABLED".into(), "true".into());
    let mut none = traced(Platform::healthy().await, &collector).await;
    none.settings.insert("OTEL_TRACES_EXPORTER".into(), "none".into());
    let mut wrong = traced(Platform::healthy().await, &collector).await;
    wrong.settings.insert("OTEL_EXPORTER_OTLP_PROTOCOL".into(), "grpc".into());
    for (env, is_wrong) in [(&mut disabled, false), (&mut none, false), (&mut wrong, true)] {
        let worker = env.start_worker().await;
        request(env, "r-1", "ann", &[("traceparent", &traceparent("01"))]).await;
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
async fn a_collector_that_is_dead_hangs_or_refuses_slows_and_stops_nobody() {
    let (hanging, refusing) = (Collector::start_hanging().await, Collector::start().await);
    refusing.set_status(Some(400));
    let dead = "http://127.0.0.1:1".to_owned();
    for url in [dead, hanging.url.clone(), refusing.url.clone()] {
        let mut env = traced(Platform::healthy().await, &refusing).await;
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str()),
            // Everything at once, so that whatever may fill up does.
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
        assert!(!printed.contains("nobody-may-see"), "{printed}");
    }
    assert!(hanging.exports() > 0);
}

#[tokio::test]
async fn a_collector_behind_tls_is_trusted_as_the_environment_says() {
    let collector = Collector::start().await;
    let authority = Authority::new();
    let front = TlsProxy::to(&collector.url, &authority.issue(&["127.0.0.1"])).await;
    let mut env = traced(Platform::healthy().await, &collector).await;
    let url = tls_url(&collector.url, front.port());
    env.settings.insert("OTEL_EXPORTER_OTLP_ENDPOINT".into(), url);
    env.settings.insert("OTEL_BSP_SCHEDULE_DELAY".into(), "50".into());
    let stranger = env.start_worker().await;
    request(&env, "r-1", "ann", &[]).await;
    env.rabbitmq.next_event().await;
    stranger.wait_for_log(log_text::SPANS_DROPPED).await;
    stranger.stop().await;
    assert_eq!(collector.exports(), 0);

    env.settings.insert("OTEL_EXPORTER_OTLP_CERTIFICATE".into(), authority.certificate_file());
    let worker = env.start_worker().await;
    request(&env, "r-2", "bob", &[]).await;
    env.rabbitmq.next_event().await;
    collector.wait_for_exports(1).await;
    worker.stop().await;
    assert_eq!(collector.spans().len(), 4);
}
