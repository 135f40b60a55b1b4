//! SIGTERM and SIGINT: finish or hand back, and exit with 0.

use serde_json::json;

use crate::support::{
    Answer, Bench, Flow, Opening, Platform, Proxy, Worker,
    platform::{Call, held, well},
};

#[tokio::test]
async fn an_idle_worker_ends_at_once() {
    for signal in ["TERM", "INT"] {
        let bench = Bench::new().await;
        let mut worker = bench.worker().await;
        worker.signal(signal);
        assert_eq!(worker.ended().await, Some(0), "{signal}");
    }
}

#[tokio::test]
async fn a_worker_that_never_reached_rabbitmq_ends_at_once() {
    let mut bench = Bench::new().await;
    bench.set("AMQP_URL", "amqp://guest:guest@127.0.0.1:1/%2f");
    let mut worker = Worker::start(&bench.settings);
    worker.logged("not consuming; trying again until it works").await;
    worker.signal("TERM");
    assert_eq!(worker.ended().await, Some(0));
}

#[tokio::test]
async fn what_is_in_flight_is_finished() {
    let (opening, script) = held(|_| true);
    let mut bench = Bench::with(Platform::scripted(script).await).await;
    let mut worker = bench.worker().await;
    for n in 0..20 {
        bench.rabbit.request(&format!("r-{n}"), json!({ "userId": format!("user-{n}") })).await;
    }
    bench.platform.called(20).await;
    worker.signal("TERM");
    worker.logged("shutting down").await;
    // Nothing is taken any more.
    bench.rabbit.request("late", json!({ "userId": "late" })).await;
    opening.open();
    let mut served: Vec<_> = bench
        .rabbit
        .events(20)
        .await
        .iter()
        .map(|event| event.data()["requestId"].to_string())
        .collect();
    served.sort();
    served.dedup();
    assert_eq!(served.len(), 20);
    assert_eq!(worker.ended().await, Some(0));
    bench.rabbit.holds(1).await;
    assert_eq!(bench.platform.session_calls().len(), 20);
}

#[tokio::test]
async fn what_waits_to_be_tried_again_is_handed_back_at_once() {
    let script = |call: &Call| match call.is_token() {
        true => well(call),
        false => Answer::status(503).header("retry-after", "60"),
    };
    let mut bench = Bench::with(Platform::scripted(script).await).await;
    bench.set("RETRY_BUDGET", "5m").set("SHUTDOWN_GRACE", "2m");
    let mut worker = bench.worker().await;
    bench.rabbit.request("r-1", json!({ "userId": "ann" })).await;
    bench.platform.called(2).await;
    worker.signal("TERM");
    assert_eq!(worker.ended().await, Some(0));
    bench.rabbit.holds(1).await;

    // The next worker finds it as it was, token included.
    bench.platform.now(well);
    let _worker = bench.worker().await;
    let event = bench.rabbit.event().await;
    assert_eq!(event.data()["requestId"], "r-1");
    assert_eq!(bench.platform.token_calls().len(), 1);
}

#[tokio::test]
async fn what_does_not_finish_within_the_grace_is_handed_back() {
    let (_never, script) = held(|_| true);
    let mut bench = Bench::with(Platform::scripted(script).await).await;
    bench.set("SHUTDOWN_GRACE", "1s");
    let mut worker = bench.worker().await;
    bench.rabbit.request("r-1", json!({ "userId": "ann" })).await;
    bench.platform.called(1).await;
    worker.signal("TERM");
    assert_eq!(worker.ended().await, Some(0));
    bench.rabbit.holds(1).await;
    bench.platform.now(well);
    let _worker = bench.worker().await;
    assert_eq!(bench.rabbit.event().await.data()["requestId"], "r-1");
}

#[tokio::test]
async fn a_silent_rabbitmq_does_not_stretch_the_grace() {
    let mut bench = Bench::new().await;
    let proxy = Proxy::to(&bench.settings["HANDOFF_AMQP_URL"]).await;
    let url = proxy.url(&bench.settings["HANDOFF_AMQP_URL"]);
    bench.set("AMQP_URL", &url).set("SHUTDOWN_GRACE", "2s");
    let mut worker = bench.worker().await;
    proxy.both(Flow::Waits);
    let asked = std::time::Instant::now();
    worker.signal("TERM");
    assert_eq!(worker.ended().await, Some(0));
    assert!(asked.elapsed() < std::time::Duration::from_secs(4), "{:?}", asked.elapsed());
}

#[tokio::test]
async fn those_who_wait_for_a_failing_call_begin_none_of_their_own() {
    let opening = Opening::closed();
    let script = {
        let opening = opening.clone();
        move |_: &Call| Answer::status(503).once(&opening)
    };
    let bench = Bench::with(Platform::scripted(script).await).await;
    let mut worker = bench.worker().await;
    for n in 0..20 {
        bench.rabbit.request(&format!("r-{n}"), json!({ "userId": "ann" })).await;
    }
    bench.platform.called(1).await;
    crate::support::until("all are in flight", async || {
        worker.metric("handoff_in_flight").await == 20.0
    })
    .await;
    worker.signal("TERM");
    worker.logged("shutting down").await;
    opening.open();
    assert_eq!(worker.ended().await, Some(0));
    assert_eq!(bench.platform.calls().len(), 1);
    bench.rabbit.holds(20).await;
}
