//! A platform that is reached but misbehaves, and a network to it that is broken.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{
    Bench, Flow, Platform, Proxy, log_text,
    rude::{Manner, Rude},
};

async fn request(bench: &Bench, user: &str) {
    bench.rabbit.request(user, json!({ "userId": user })).await;
}

#[tokio::test]
async fn bad_manners_of_any_kind_are_a_failed_call_and_pass() {
    let rude = Rude::new(Manner::Well).await;
    let mut bench = Bench::new().await;
    bench.set("IDV_URL", &rude.url).set("IDV_TIMEOUT", "700ms").set("RETRY_BUDGET", "20s");
    let worker = bench.worker().await;
    let manners = [
        (Manner::Silent, "timeout"),
        (Manner::Drips, "timeout"),
        (Manner::Endless, "broken_answer"),
        (Manner::EndlessHeaders, "connection_error"),
        (Manner::Breaks, "broken_answer"),
        (Manner::Resets, "connection_error"),
        (Manner::Babbles, "connection_error"),
        (Manner::Says(b"{\"authorization\":"), "broken_answer"),
        (Manner::Says(b"[]"), "broken_answer"),
        (Manner::Says(b"{\"authorization\":null,\"id\":{}}"), "broken_answer"),
        (Manner::Says(b"\xff\xfe"), "broken_answer"),
        (Manner::Says(b""), "broken_answer"),
    ];
    for (n, (manner, outcome)) in manners.into_iter().enumerate() {
        let series =
            format!("handoff_platform_calls_total{{call=\"token\",outcome=\"{outcome}\"}}");
        let before = worker.metric_or_zero(&series).await;
        rude.now(manner);
        let calls = rude.calls();
        request(&bench, &format!("user-{n}")).await;
        rude.called(calls + 2).await;
        rude.now(Manner::Well);
        let event = bench.rabbit.event().await;
        assert_eq!(event.routing_key, "handoff.ready", "{manner:?}");
        assert!(worker.metric_or_zero(&series).await > before, "{manner:?} is no {outcome}");
    }
    let log = worker.log();
    assert!(!log.contains("t0ken") && !log.contains("SSH-2.0"), "{log}");
}

#[tokio::test]
async fn a_network_that_swallows_what_goes_to_the_platform_heals() {
    let platform = Platform::well().await;
    let proxy = Proxy::to(&platform.url).await;
    let mut bench = Bench::with(platform).await;
    let url = proxy.url(&bench.platform.url);
    bench.set("IDV_URL", url.trim_end_matches('/'));
    let worker = bench.worker().await;
    for n in 0..64 {
        request(&bench, &format!("before-{n}")).await;
    }
    bench.rabbit.events(64).await;
    // The HTTP client keeps a connection for each call at a time, for a while.
    let before = worker.holdings(proxy.addr).and_sockets(64);
    proxy.both(Flow::Waits);
    let cut = Instant::now();
    for n in 0..100 {
        request(&bench, &format!("user-{n}")).await;
    }
    worker.logged(log_text::BREAKER_OPEN).await;
    // Long enough for what hangs to be given up; what comes after is held.
    tokio::time::sleep(Duration::from_secs(20).saturating_sub(cut.elapsed())).await;
    proxy.both(Flow::Passes);
    let healed = Instant::now();
    bench.rabbit.event().await;
    assert!(healed.elapsed() < Duration::from_secs(4), "{:?}", healed.elapsed());
    let events = bench.rabbit.events(99).await;
    assert!(events.iter().all(|event| event.routing_key == "handoff.ready"));
    assert_eq!(worker.metric("handoff_requests_total{outcome=\"retried\"}").await, 0.0);
    worker.holds_no_more_than(before, proxy.addr).await;
}
