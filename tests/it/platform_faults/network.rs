//! A platform that answers malformed HTTP, and a broken network to it.

use std::time::{Duration, Instant};

use crate::support::{
    Flow, TestEnv, log_text,
    raw_platform::{RawAnswer, RawPlatform},
};

#[tokio::test]
async fn malformed_answers_are_retried_as_failed_calls() {
    let platform = RawPlatform::new(RawAnswer::Valid).await;
    let mut env = TestEnv::start().await;
    env.set("IDV_URL", &platform.url).set("IDV_TIMEOUT", "700ms").set("RETRY_BUDGET", "20s");
    let worker = env.start_worker().await;
    let answers = [
        (RawAnswer::Silent, "timeout"),
        (RawAnswer::SlowBytes, "timeout"),
        (RawAnswer::EndlessBody, "broken_answer"),
        (RawAnswer::EndlessHeaders, "broken_answer"),
        (RawAnswer::TruncatedBody, "broken_answer"),
        (RawAnswer::Reset, "connection_error"),
        (RawAnswer::NotHttp, "broken_answer"),
        (RawAnswer::Body(b"{\"authorization\":"), "broken_answer"),
        (RawAnswer::Body(b"[]"), "broken_answer"),
        (RawAnswer::Body(b"{\"authorization\":null,\"id\":{}}"), "broken_answer"),
        (RawAnswer::Body(b"\xff\xfe"), "broken_answer"),
        (RawAnswer::Body(b""), "broken_answer"),
    ];
    for (n, (answer, outcome)) in answers.into_iter().enumerate() {
        let series =
            format!("handoff_platform_calls_total{{call=\"token\",outcome=\"{outcome}\"}}");
        let before = worker.metric_or_zero(&series).await;
        platform.set_answer(answer);
        let calls = platform.calls();
        env.publish_requests(n..n + 1).await;
        platform.wait_for_calls(calls + 2).await;
        platform.set_answer(RawAnswer::Valid);
        let event = env.rabbitmq.next_event().await;
        assert_eq!(event.routing_key, "handoff.ready", "{answer:?}");
        assert!(worker.metric_or_zero(&series).await > before, "{answer:?} is no {outcome}");
    }
    let log = worker.output();
    assert!(!log.contains("t0ken") && !log.contains("SSH-2.0"), "{log}");
}

#[tokio::test]
async fn network_silent_for_20_seconds_pauses_the_platform_and_spends_no_attempt() {
    let mut env = TestEnv::start().await;
    env.set("IDV_TIMEOUT", "10s");
    let proxy = env.proxy("IDV_URL").await;
    let worker = env.start_worker().await;
    env.publish_requests(0..64).await;
    env.rabbitmq.next_events(64).await;
    // The HTTP client keeps a connection for each concurrent call for a while.
    let before = worker.resources(proxy.addr).plus_sockets(64);
    proxy.set_flow(Flow::Held);
    let silent_since = Instant::now();
    env.publish_requests(64..164).await;
    worker.wait_for_log(log_text::BREAKER_OPEN).await;
    // Long enough for every pending call to time out; later ones are held.
    tokio::time::sleep(Duration::from_secs(20).saturating_sub(silent_since.elapsed())).await;
    proxy.set_flow(Flow::Forwarded);
    let forwarded_since = Instant::now();
    env.rabbitmq.next_event().await;
    assert!(forwarded_since.elapsed() < Duration::from_secs(4), "{:?}", forwarded_since.elapsed());
    let events = env.rabbitmq.next_events(99).await;
    assert!(events.iter().all(|event| event.routing_key == "handoff.ready"));
    assert_eq!(worker.metric("handoff_requests_total{outcome=\"retried\"}").await, 0.0);
    worker.assert_no_leak_since(before, proxy.addr).await;
}
