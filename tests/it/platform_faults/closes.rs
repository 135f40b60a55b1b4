//! Connections that the platform closes in the ordinary course.

use std::time::Duration;

use crate::support::{
    Authority, Flow, Proxy, TestEnv, Worker,
    http2_front::{FrontOptions, Http2Front},
    log_text,
    platform::{Call, success},
    raw_platform::{RawAnswer, RawPlatform},
    wait_until,
};

/// Asserts that no pause began and no delivery failed, and returns how many calls lost their connection.
async fn lost_calls(worker: &Worker) -> f64 {
    assert!(worker.log_lines(log_text::BREAKER_OPEN).is_empty(), "{}", worker.output());
    let retried = worker.metric_or_zero("handoff_requests_total{outcome=\"retried\"}").await;
    assert_eq!(retried, 0.0);
    let mut lost = 0.0;
    for call in ["token", "session"] {
        let series =
            format!("handoff_platform_calls_total{{call=\"{call}\",outcome=\"connection_error\"}}");
        lost += worker.metric_or_zero(&series).await;
    }
    lost
}

#[tokio::test]
async fn server_that_closes_after_each_answer_without_notice_is_no_outage() {
    let platform = RawPlatform::new(RawAnswer::ValidWithSilentClose).await;
    let mut env = TestEnv::start().await;
    env.set("IDV_URL", &platform.url);
    let worker = env.start_worker().await;
    env.publish_requests(0..200).await;
    env.expect_all_ready(200).await;
    let lost = lost_calls(&worker).await;
    assert!(lost > 0.0, "the server closed too early or too late to meet a call");
    // Each lost call is sent again at once, on a connection of its own.
    assert!(worker.log_lines(log_text::CALL_RETRIED).is_empty(), "{}", worker.output());
}

#[tokio::test]
async fn http2_server_that_says_goaway_after_100_calls_costs_no_call() {
    let authority = Authority::new();
    let mut env = TestEnv::start().await;
    let options = FrontOptions { calls_per_connection: 100, ..FrontOptions::default() };
    let front = Http2Front::to(&env.platform.url, &authority.issue(&["localhost"]), options).await;
    env.set("IDV_URL", &front.url).set("CONCURRENCY", "256").trust(&authority);
    let worker = env.start_worker().await;
    env.publish_requests(0..1000).await;
    env.expect_all_ready(1000).await;
    assert_eq!(lost_calls(&worker).await, 0.0);
    assert_eq!(env.platform.calls().len(), 2000);
    // Twenty at least. A connection takes 8 calls at once, and each of 256 requests is in one call.
    assert!(front.connections() < 20 + 256 / 8 + 10, "{}", front.connections());
}

#[tokio::test]
async fn http2_connections_that_end_under_their_calls_are_no_outage() {
    // Long enough for all calls to be in flight at once on a busy machine.
    let slow = |call: &Call| success(call).after(Duration::from_secs(2));
    let authority = Authority::new();
    let mut env = TestEnv::builder().platform(slow).start().await;
    let identity = authority.issue(&["localhost"]);
    let front = Http2Front::to(&env.platform.url, &identity, FrontOptions::default()).await;
    let proxy = Proxy::to(&front.url).await;
    env.set("IDV_URL", &proxy.url(&front.url)).trust(&authority);
    let worker = env.start_worker().await;
    env.publish_requests(0..32).await;
    env.expect_all_ready(32).await;
    env.publish_requests(32..64).await;
    // All 32 token calls are in flight.
    env.platform.wait_for_calls(32 * 2 + 32).await;
    proxy.close_connections();
    env.expect_all_ready(32).await;
    assert!(lost_calls(&worker).await >= 32.0);
    // Each lost call is sent again at once, on new connections.
    assert!(worker.log_lines(log_text::CALL_RETRIED).is_empty(), "{}", worker.output());
}

#[tokio::test]
async fn http2_calls_that_waited_for_the_connect_of_another_call_are_sent_again() {
    let mut env = TestEnv::start().await;
    let authority = Authority::new();
    let identity = authority.issue(&["localhost"]);
    let front = Http2Front::to(&env.platform.url, &identity, FrontOptions::default()).await;
    let proxy = Proxy::to(&front.url).await;
    env.set("IDV_URL", &proxy.url(&front.url)).trust(&authority);
    let worker = env.start_worker().await;
    env.publish_requests(0..1).await;
    env.expect_all_ready(1).await;
    // One call connects, and six wait for its connection.
    proxy.set_flow(Flow::Held);
    proxy.close_connections();
    proxy.take_sent();
    env.publish_requests(1..8).await;
    wait_until("a TLS handshake", async || !proxy.take_sent().is_empty()).await;
    wait_until("seven leases", async || {
        let entries = env.redis_entries().await;
        entries.iter().filter(|entry| entry.key.ends_with(":lease")).count() == 7
    })
    .await;
    proxy.close_connections();
    proxy.set_flow(Flow::Forwarded);
    env.expect_all_ready(7).await;
    assert_eq!(lost_calls(&worker).await, 1.0, "{}", worker.output());
    assert_eq!(worker.log_lines(log_text::CALL_RETRIED).len(), 1, "{}", worker.output());
    assert_eq!(env.platform.calls().len(), 2 * 8);
}
