//! HTTP/2 connections that stall, permit few streams, or are no longer offered.

use std::time::{Duration, Instant};

use crate::support::{
    Authority, Flow, Proxy, TestEnv, Worker,
    http2_front::{FrontOptions, Http2Front, Protocols},
    log_text,
    platform::{Call, success},
    wait_until,
};

/// How many calls timed out.
async fn timeouts(worker: &Worker) -> f64 {
    let mut count = 0.0;
    for call in ["token", "session"] {
        let series = format!("handoff_platform_calls_total{{call=\"{call}\",outcome=\"timeout\"}}");
        count += worker.metric_or_zero(&series).await;
    }
    count
}

/// Puts an HTTP/2 front before the platform, and a proxy before that.
async fn front_and_proxy(
    env: &mut TestEnv,
    options: FrontOptions,
) -> (Authority, Http2Front, Proxy) {
    let authority = Authority::new();
    let identity = authority.issue(&["localhost"]);
    let front = Http2Front::to(&env.platform.url, &identity, options).await;
    let proxy = Proxy::to(&front.url).await;
    env.set("IDV_URL", &proxy.url(&front.url)).trust(&authority);
    (authority, front, proxy)
}

#[tokio::test]
async fn http2_connection_that_swallows_everything_is_replaced_after_one_timeout() {
    let mut env = TestEnv::start().await;
    let (_authority, _front, proxy) = front_and_proxy(&mut env, FrontOptions::default()).await;
    env.set("IDV_TIMEOUT", "3s");
    let worker = env.start_worker().await;
    env.publish_requests(0..1).await;
    env.rabbitmq.next_event().await;
    let before = worker.resources(proxy.addr).plus_sockets(1);
    // Present connections lose everything from now on; new ones work.
    proxy.set_flow(Flow::Dropped);
    tokio::time::sleep(Duration::from_millis(50)).await;
    proxy.set_flow(Flow::Forwarded);
    let frozen = Instant::now();
    env.publish_requests(1..7).await;
    env.rabbitmq.next_events(6).await;
    let took = frozen.elapsed();
    assert!(took < Duration::from_secs(9), "{took:?}");
    assert!(timeouts(&worker).await > 0.0, "the connection was not used");
    // The client lets go of the connection that swallows everything.
    worker.assert_no_leak_since(before, proxy.addr).await;
}

#[tokio::test]
async fn http2_platform_that_is_merely_slow_does_not_collect_connections() {
    let slow = |call: &Call| success(call).after(Duration::from_secs(60));
    let mut env = TestEnv::builder().platform(slow).start().await;
    let (_authority, front, proxy) = front_and_proxy(&mut env, FrontOptions::default()).await;
    env.set("IDV_TIMEOUT", "1s").set("RETRY_BUDGET", "30s");
    let worker = env.start_worker().await;
    env.publish_requests(0..64).await;
    worker.wait_for_log(log_text::BREAKER_OPEN).await;
    let after_burst = front.connections();
    assert!(after_burst < 64, "{after_burst}");
    wait_until("three probes", async || timeouts(&worker).await >= 64.0 + 3.0).await;
    // At most one connection for each probe, and none that remains.
    assert!(front.connections() <= after_burst + 10, "{} {after_burst}", front.connections());
    worker.wait_for_sockets(2, proxy.addr).await;
}

/// Has 300 people served with 256 requests in flight and answers that take 0.5 s.
async fn assert_300_people_are_served_quickly(options: FrontOptions) {
    let slow = |call: &Call| success(call).after(Duration::from_millis(500));
    let mut env = TestEnv::builder().platform(slow).start().await;
    let (_authority, front, _proxy) = front_and_proxy(&mut env, options).await;
    // With one stream, 256 TLS handshakes are made, by a debug build on a busy machine.
    env.set("CONCURRENCY", "256").set("IDV_TIMEOUT", "10s");
    let worker = env.start_worker().await;
    let began = Instant::now();
    env.publish_requests(0..300).await;
    env.expect_all_ready(300).await;
    // As over HTTP/1.1, it takes 3 s. On one connection with ten streams it would be 30 s.
    assert!(began.elapsed() < Duration::from_secs(25), "{options:?}: {:?}", began.elapsed());
    assert_eq!(timeouts(&worker).await, 0.0, "{options:?}");
    assert!(worker.log_lines(log_text::BREAKER_OPEN).is_empty(), "{}", worker.output());
    assert_eq!(env.platform.calls().len(), 600, "no call arrived twice");
    // At most one for each call in flight, and a few that were not needed.
    assert!(front.connections() <= 300, "{options:?}: {}", front.connections());
}

#[tokio::test]
async fn more_calls_than_the_platform_permits_streams_are_served_as_fast_as_over_http1() {
    for max_streams in [100, 10, 1] {
        let max_streams = Some(max_streams);
        let options = FrontOptions { max_streams, ..FrontOptions::default() };
        assert_300_people_are_served_quickly(options).await;
    }
}

#[tokio::test]
async fn refused_streams_are_sent_on_another_connection() {
    let options = FrontOptions { refused_above: 3, ..FrontOptions::default() };
    assert_300_people_are_served_quickly(options).await;
}

#[tokio::test]
async fn platform_that_gives_http2_up_or_takes_it_up_is_served() {
    let mut env = TestEnv::start().await;
    let (_authority, front, _proxy) = front_and_proxy(&mut env, FrontOptions::default()).await;
    let worker = env.start_worker().await;
    let changes =
        [Protocols::Both, Protocols::Http1, Protocols::Both, Protocols::Unnamed, Protocols::Both];
    for (n, protocols) in changes.into_iter().enumerate() {
        front.set_protocols(protocols);
        env.publish_requests(20 * n..20 * (n + 1)).await;
        env.expect_all_ready(20).await;
    }
    let retried = worker.metric_or_zero("handoff_requests_total{outcome=\"retried\"}").await;
    assert_eq!(retried, 0.0, "no attempt is spent");
}
