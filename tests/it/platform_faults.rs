//! A platform that is reached but misbehaves, and a network to it that is broken.

use std::time::{Duration, Instant};

use crate::support::{
    Flow, Platform, Proxy, TestEnv, log_text,
    raw_platform::{RawAnswer, RawPlatform},
};

async fn request(env: &TestEnv, user: &str) {
    env.publish_request(user, user).await;
}

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
        (RawAnswer::EndlessHeaders, "connection_error"),
        (RawAnswer::TruncatedBody, "broken_answer"),
        (RawAnswer::Reset, "connection_error"),
        (RawAnswer::NotHttp, "connection_error"),
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
        request(&env, &format!("user-{n}")).await;
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
async fn a_network_that_swallows_what_goes_to_the_platform_heals() {
    let platform = Platform::healthy().await;
    let proxy = Proxy::to(&platform.url).await;
    let mut env = TestEnv::builder().platform(platform).start().await;
    let url = proxy.url(&env.platform.url);
    env.set("IDV_URL", url.trim_end_matches('/'));
    let worker = env.start_worker().await;
    for n in 0..64 {
        request(&env, &format!("before-{n}")).await;
    }
    env.rabbitmq.next_events(64).await;
    // The HTTP client keeps a connection for each call at a time, for a while.
    let before = worker.resources(proxy.addr).plus_sockets(64);
    proxy.set_flow(Flow::Held);
    let cut = Instant::now();
    for n in 0..100 {
        request(&env, &format!("user-{n}")).await;
    }
    worker.wait_for_log(log_text::BREAKER_OPEN).await;
    // Long enough for what hangs to be given up; what comes after is held.
    tokio::time::sleep(Duration::from_secs(20).saturating_sub(cut.elapsed())).await;
    proxy.set_flow(Flow::Forwarded);
    let healed = Instant::now();
    env.rabbitmq.next_event().await;
    assert!(healed.elapsed() < Duration::from_secs(4), "{:?}", healed.elapsed());
    let events = env.rabbitmq.next_events(99).await;
    assert!(events.iter().all(|event| event.routing_key == "handoff.ready"));
    assert_eq!(worker.metric("handoff_requests_total{outcome=\"retried\"}").await, 0.0);
    worker.assert_no_leak_since(before, proxy.addr).await;
}
