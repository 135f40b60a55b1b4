//! The one-call flow: `HANDOFF_IDV_FLOW=deeplink`.

mod answers;
mod keys;
mod refusals;
mod traces;

use serde_json::json;

use crate::support::{
    Answer, TestEnv,
    platform::{API_KEY, Call, deeplink, success},
};

async fn start(script: impl Fn(&Call) -> Answer + Send + Sync + 'static) -> TestEnv {
    let mut env = TestEnv::builder().platform(script).start().await;
    env.set("IDV_FLOW", "deeplink");
    env
}

#[tokio::test]
async fn request_becomes_a_link_in_one_call() {
    let mut env = start(success).await;
    env.set("IDV_TOKEN_TTL", "90m");
    let worker = env.start_worker().await;
    let request = json!({
        "userId": "ann & bob", "workflowId": "w/1 ä", "locale": "de",
        "metadata": { "plan": "gold", "externalUserId": "eve" },
    });
    env.rabbitmq.publish_request("r-1", request).await;
    let event = env.rabbitmq.next_event().await;
    let data = event.data();
    assert_eq!(data["url"], deeplink(0), "byte for byte");
    assert_eq!(data["mobileUrl"], data["url"]);
    assert_eq!(data["sessionId"], "session-0");
    assert_eq!(data["reused"], false);

    let [call] = &env.platform.calls()[..] else { panic!("one call") };
    assert_eq!(call.path, "/api/v1/deeplink");
    assert_eq!(call.query.as_deref(), Some("workflowId=w%2F1%20%C3%A4"));
    assert_eq!(call.header("authorization"), API_KEY);
    assert_eq!(call.header("content-type"), "application/json");
    assert_eq!(call.header("idempotency-key").len(), 32);
    assert_eq!(
        call.body,
        json!({
            "metadata": { "plan": "gold", "externalUserId": "ann & bob" },
            "locale": "de",
            "ttl": 5_400,
        })
    );

    env.publish_request("r-2", "bob").await;
    env.rabbitmq.next_event().await;
    assert!(env.platform.deeplink_calls()[1].body.get("locale").is_none());
    env.publish_request("r-3", "bob").await;
    let reused = env.rabbitmq.next_event().await.data();
    assert_eq!((&reused["url"], &reused["reused"]), (&json!(deeplink(1)), &json!(true)));
    worker.wait_for_finished(3).await;
    let calls = "handoff_platform_calls_total{call=\"deeplink\",outcome=\"ok\"}";
    assert_eq!(worker.metric(calls).await, 2.0);
    let durations = "handoff_platform_call_duration_seconds_count{call=\"deeplink\"}";
    assert_eq!(worker.metric(durations).await, 2.0);
}

#[tokio::test]
async fn public_url_replaces_the_base_of_the_link() {
    let mut env = start(success).await;
    env.set("IDV_PUBLIC_URL", "https://idv.example.com/people/");
    let worker = env.start_worker().await;
    for _ in 0..2 {
        env.publish_request("r-1", "ann").await;
        let data = env.rabbitmq.next_event().await.data();
        let rest = deeplink(0).split_once("/eu/").unwrap().1.to_owned();
        assert_eq!(data["url"], format!("https://idv.example.com/people/{rest}"));
        assert_eq!(data["mobileUrl"], data["url"]);
    }
    worker.stop().await;
    // What the platform answered is kept, so that another base applies to links that are in Redis.
    env.set("IDV_PUBLIC_URL", "https://idv.example.org");
    let _worker = env.start_worker().await;
    env.publish_request("r-2", "ann").await;
    let data = env.rabbitmq.next_event().await.data();
    assert!(data["url"].as_str().unwrap().starts_with("https://idv.example.org/mobile?"));
    assert_eq!(data["reused"], true);
}

#[tokio::test]
async fn link_of_one_flow_is_not_handed_out_in_the_other() {
    let mut env = start(success).await;
    for (flow, reused) in
        [("deeplink", false), ("token", false), ("deeplink", true), ("token", true)]
    {
        env.set("IDV_FLOW", flow);
        let worker = env.start_worker().await;
        env.publish_request("r-1", "ann").await;
        let data = env.rabbitmq.next_event().await.data();
        assert_eq!(data["reused"], reused, "{flow}");
        assert_eq!(data["url"] == data["mobileUrl"], flow == "deeplink");
        worker.stop().await;
    }
    assert_eq!(env.platform.deeplink_calls().len(), 1);
    assert_eq!(env.platform.session_calls().len(), 1);
}

#[tokio::test]
async fn rate_limit_permits_one_call_for_each_link() {
    let mut env = start(success).await;
    // A bucket of two calls, and no third in this test's time.
    env.set("IDV_RATE_LIMIT", "4/1h");
    let _worker = env.start_worker().await;
    env.publish_requests(0..3).await;
    for _ in 0..2 {
        assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.ready");
    }
    assert_eq!(env.platform.calls().len(), 2);
}
