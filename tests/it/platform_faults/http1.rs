//! HTTP/1.1 connections over TLS.

use std::time::Duration;

use crate::support::{
    Authority, TestEnv,
    http2_front::{FrontOptions, Http2Front, Protocols},
    platform::{Call, success},
};

#[tokio::test]
async fn calls_that_begin_at_once_over_http1_open_no_more_connections_than_calls() {
    let quick = |call: &Call| success(call).after(Duration::from_millis(50));
    let mut env = TestEnv::builder().platform(quick).start().await;
    let authority = Authority::new();
    // The last connection is made long after the first call is answered.
    let options = FrontOptions { handshake: Duration::from_millis(20), ..FrontOptions::default() };
    let identity = authority.issue(&["localhost"]);
    let front = Http2Front::to(&env.platform.url, &identity, options).await;
    front.set_protocols(Protocols::Http1);
    env.set("IDV_URL", &front.url).set("CONCURRENCY", "32").trust(&authority);
    let _worker = env.start_worker().await;
    env.publish_requests(0..96).await;
    env.expect_all_ready(96).await;
    assert_eq!(env.platform.calls().len(), 192, "each call arrived once");
    // Besides one for each call in flight, a few that a busy machine delays.
    assert!(front.connections() <= 36, "{}", front.connections());
}
