//! `handoff doctor` finds queues of another name that receive the same requests.

use crate::{
    doctor::doctor,
    support::{Node, TestEnv, log_text, wait_until},
};

const NAME: &str = "other queues";

/// Two queue families that are bound to the same request exchange, the second with its own queues.
async fn two_families() -> (TestEnv, TestEnv) {
    let first = TestEnv::start().await;
    let mut second = TestEnv::builder().without_event_queue().start().await;
    for (name, value) in [
        ("REQUEST_EXCHANGE", &first.rabbitmq.request_exchange),
        ("EVENT_EXCHANGE", &first.rabbitmq.event_exchange),
    ] {
        second.set(name, value);
    }
    (first, second)
}

#[tokio::test]
async fn second_family_that_serves_each_request_again_is_reported() {
    let (mut first, second) = two_families().await;
    let former = first.rabbitmq.queue.clone();
    let (worker, _other) = (first.start_worker().await, second.start_worker().await);
    // What the finding claims: one request, two events, and two sessions.
    first.publish_request("r-1", "ann").await;
    let events = first.rabbitmq.next_events(2).await;
    assert_eq!(events[0].json()["id"], events[1].json()["id"]);
    assert_eq!(first.platform.session_calls().len() + second.platform.session_calls().len(), 2);

    // The worker subscribes again when it raises its prefetch: for a moment there is no consumer.
    worker.wait_for_log(log_text::WINDOW_GROWN).await;
    first.wait_for_consumer_of_endings().await;
    let report = doctor(&second, &["--former-queue", &former]).await;
    let served = format!("`{former}` (messages: 0, consumers: 1)");
    report.assert_finding("rabbitmq", NAME, &[&served, "served twice", "list_bindings"]);
    // Without the name, AMQP cannot show the family.
    assert!(doctor(&second, &[]).await.all("rabbitmq", NAME).is_empty());
}

#[tokio::test]
async fn former_queue_that_still_fills_up_is_reported() {
    let (first, second) = two_families().await;
    let former = first.rabbitmq.queue.clone();
    first.declare_topology().await;
    let _worker = second.start_worker().await;
    let flags = ["--former-queue", &former, "--former-queue", "handoff-no-such-queue"];
    let report = doctor(&second, &flags).await;
    assert_eq!(report.check("rabbitmq", NAME)["verdict"], "hint", "{:#?}", report.0);

    first.publish_request("r-1", "ann").await;
    wait_until("the former queue has a copy", async || first.rabbitmq.depth(&former).await == 1)
        .await;
    let report = doctor(&second, &flags).await;
    let fills = format!("`{former}` (messages: 1, consumers: 0)");
    let delete = format!("delete_queue '{former}'");
    report.assert_finding("rabbitmq", NAME, &[&fills, "no worker consumes it", &delete]);
}

#[tokio::test]
async fn default_queue_is_looked_for_after_a_rename() {
    let node = Node::shared_rabbitmq();
    let mut env = TestEnv::builder().without_event_queue().start().await;
    let vhost = env.name.clone();
    node.ctl(&["add_vhost", &vhost]).await;
    node.ctl(&["set_permissions", "--vhost", &vhost, "guest", ".*", ".*", ".*"]).await;
    let url = env.setting("AMQP_URL").replace("%2f", &vhost);
    let renamed = env.rabbitmq.queue.clone();
    env.set("AMQP_URL", &url).set("REQUEST_EXCHANGE", "verification");
    env.set("QUEUE", "verification.requested");
    let worker = env.start_worker().await;
    worker.stop().await;

    env.set("QUEUE", &renamed);
    let report = doctor(&env, &[]).await;
    let check = report.check("rabbitmq", NAME);
    assert_eq!(check["verdict"], "hint", "{check}");
    assert!(check["what"].as_str().unwrap().contains("`verification.requested`"), "{check}");

    // With a request exchange of its own, the deployment has nothing to do with the default queue.
    env.set("REQUEST_EXCHANGE", "another");
    assert!(doctor(&env, &[]).await.all("rabbitmq", NAME).is_empty());
    node.ctl(&["delete_vhost", &vhost]).await;
}
