//! RabbitMQ's limits on connections, channels, queues and frames.

use crate::support::{Node, TestEnv, Worker, log_text, worker::run};

/// Has workers log in as a user of the test's own.
async fn as_own_user(env: &mut TestEnv, node: &Node) -> String {
    let user = format!("{}-user", env.name);
    let url = node.add_user(&user, "pw").await;
    env.set("AMQP_URL", &url);
    user
}

#[tokio::test]
async fn fewer_channels_are_used_once_the_users_limit_is_reached() {
    let node = Node::shared_rabbitmq();
    // Each event is unroutable, so that all requests become retry copies at once.
    let mut env = TestEnv::builder().without_event_queue().start().await;
    let user = as_own_user(&mut env, &node).await;
    // Two connections with a channel each that stays open, one for endings, and one for a look or a copy on each.
    node.ctl(&["set_user_limits", &user, r#"{"max-channels": 5}"#]).await;
    env.set("RETRY_DELAYS", "1s,2s,3s,4s,5s,6s,7s,8s");
    let worker = env.start_worker().await;
    env.publish_requests(0..60).await;
    let lost = worker.wait_for_log(log_text::RABBITMQ_LOST).await;
    let error = lost["error"].as_str().unwrap();
    assert!(error.contains("user's limit on channels is reached"), "{error}");
    assert!(error.contains("it is 5"), "{error}");
    worker.wait_for_finished(60).await;
    env.rabbitmq.consume_events().await;
    env.expect_all_ready(60).await;
    let lost = worker.log_lines(log_text::RABBITMQ_LOST).len();
    assert!(lost <= 2, "{lost}");
    assert_eq!(env.platform.session_calls().len(), 60);
    worker.stop().await;
    node.ctl(&["delete_user", &user]).await;
}

#[tokio::test]
async fn each_limit_on_connections_and_queues_is_named() {
    let node = Node::shared_rabbitmq();
    let mut env = TestEnv::start().await;
    let user = as_own_user(&mut env, &node).await;
    let vhost = &env.name.clone();
    let url = env.setting("AMQP_URL").to_owned();
    node.ctl(&["add_vhost", vhost]).await;
    node.ctl(&["set_permissions", "--vhost", vhost, &user, ".*", ".*", ".*"]).await;
    node.ctl(&["set_user_limits", &user, r#"{"max-connections": 1}"#]).await;
    let refused = async |env: &TestEnv, limit: &str| {
        let worker = Worker::start(&env.settings);
        let line = worker.wait_for_log(log_text::NOT_CONSUMING).await;
        assert!(line["error"].as_str().unwrap().contains(limit), "{line}");
        worker.kill().await;
    };
    refused(
        &env,
        "the user's limit on connections is reached (set_user_limits: max-connections); it is 1",
    )
    .await;
    node.ctl(&["clear_user_limits", &user, "all"]).await;

    env.set("AMQP_URL", &url.replace("%2f", vhost));
    node.ctl(&["set_vhost_limits", "-p", vhost, r#"{"max-queues": 2}"#]).await;
    refused(
        &env,
        "the virtual host's limit on queues is reached (set_vhost_limits: max-queues); it is 2",
    )
    .await;
    node.ctl(&["set_vhost_limits", "-p", vhost, r#"{"max-connections": 0}"#]).await;
    refused(
        &env,
        "the virtual host's limit on connections is reached (set_vhost_limits: max-connections); it is 0",
    )
    .await;
    // A command needs one connection.
    let listed = run(&["dead-letters", "list"], &env.settings).await;
    let stderr = String::from_utf8(listed.stderr).unwrap();
    assert!(stderr.contains("virtual host's limit on connections is reached"), "{stderr}");
    node.ctl(&["delete_user", &user]).await;
    node.ctl(&["delete_vhost", vhost]).await;
}

#[tokio::test]
async fn node_without_a_limit_on_frames_and_with_few_channels_is_served() {
    // lapin would allocate buffers for 64 frames of 4 GiB.
    let node = Node::rabbitmq_with(&["frame_max = 0", "channel_max = 3"]).await;
    let mut env = TestEnv::builder().rabbitmq(&node).without_event_queue().start().await;
    env.set("RETRY_DELAYS", "1s,2s,3s,4s,5s,6s,7s,8s");
    let worker = env.start_worker().await;
    env.publish_requests(0..60).await;
    worker.wait_for_finished(60).await;
    env.rabbitmq.consume_events().await;
    env.expect_all_ready(60).await;
    assert!(worker.log_lines(log_text::RABBITMQ_LOST).is_empty());
    assert!(worker.log_lines(log_text::COPY_NOT_TAKEN).is_empty());
    let peak = worker.peak_memory_mib();
    assert!(peak < 100, "{peak} MiB");
    worker.stop().await;
    let listed = run(&["dead-letters", "list"], &env.settings).await;
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
}
