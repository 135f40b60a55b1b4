//! Files that hold a login that RabbitMQ refuses.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Login, redis_url, refused_by_redis};
use crate::support::{
    Node, TempFile, TestEnv, Worker, log_text, platform::hold_calls, redis, wait_until,
};

/// Asserts that a text names the file, and not what is in it.
fn assert_names_file(text: &Value, login: &Login) {
    let text = text.as_str().unwrap();
    assert!(text.contains("HANDOFF_AMQP_URL_FILE"), "{text}");
    assert!(text.contains(login.file.path()), "{text}");
    assert!(!text.contains("p4ss") && !text.contains(&login.user), "{text}");
}

#[tokio::test]
async fn changed_file_with_a_wrong_password_leaves_the_worker_ready() {
    let mut env = TestEnv::start().await;
    let login = Login::new(&mut env).await;
    let worker = env.start_worker().await;
    env.publish_requests(0..5).await;
    login.write("p4ss-wrong");
    let line = worker.wait_for_log(log_text::NOT_REPLACED).await;
    assert_names_file(&line["error"], &login);
    let (status, page) = worker.readiness().await;
    assert_eq!((status, &page["checks"]["broker"]), (200, &"degraded".into()));
    assert_names_file(&page["login"], &login);
    env.publish_requests(5..10).await;
    env.expect_all_ready(10).await;
    wait_until("another refused login", async || login.refused() >= 2).await;

    login.write("p4ss-0");
    worker.wait_for_log(log_text::RABBITMQ_SETTINGS_CHANGED).await;
    let (status, page) = worker.readiness().await;
    assert_eq!((status, &page["checks"]["broker"]), (200, &"ok".into()));
    assert_eq!(page["login"], Value::Null);
    env.publish_requests(10..15).await;
    env.expect_all_ready(5).await;
    assert_eq!(worker.log_lines(log_text::NOT_REPLACED).len(), 1, "one line");
    assert_eq!(worker.log_lines(log_text::NOT_CONSUMING).len(), 0);
    let refused = login.refused();
    assert!(refused < 5, "{refused} refused logins");
    worker.stop().await;
    login.delete().await;
}

#[tokio::test]
async fn refused_login_is_repeated_less_and_less_often_until_the_file_changes() {
    let mut env = TestEnv::start().await;
    let login = Login::new(&mut env).await;
    // Two nodes: the second must not be tried after a refused login.
    let wrong = login.node.url_as(&login.user, "p4ss-wrong");
    std::fs::write(login.file.path(), format!("{wrong},{wrong}")).unwrap();
    let began = Instant::now();
    let worker = Worker::start(&env.settings);
    let line = worker.wait_for_log(log_text::NOT_CONSUMING).await;
    assert_names_file(&line["error"], &login);
    let (status, page) = worker.readiness().await;
    assert_eq!((status, &page["checks"]["broker"]), (503, &"failing".into()));
    assert_names_file(&page["login"], &login);
    wait_until("a third refused login", async || login.refused() >= 3).await;
    // After one second, and two more.
    assert!(began.elapsed() >= Duration::from_secs(3), "{:?}", began.elapsed());
    login.write("p4ss-0");
    worker.wait_for_log(log_text::CONSUMING).await;
    // The next try is due after 4 s, and reads the file first.
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    assert_eq!(worker.readiness().await.0, 200);
    assert_eq!(worker.log_lines(log_text::NOT_CONSUMING).len(), 1, "one line");
    let refused = login.refused();
    assert!(refused < 5, "{refused} refused logins");
    worker.stop().await;
    login.delete().await;
}

/// The file changes before RabbitMQ does, while a suspected poison message is served alone. The connection
/// that follows then has to log in with the former password.
#[tokio::test]
async fn file_may_change_before_rabbitmq_while_a_suspect_is_served_alone() {
    let (latch, script) = hold_calls(|call| !call.is_token() && call.user_is("user-1"));
    let mut env = TestEnv::builder().platform(script).start().await;
    env.declare_topology().await;
    let login = Login::new(&mut env).await;
    env.publish_requests(1..2).await;
    let suspect = env.rabbitmq.hold_after_returns(12).await;
    // A harmless request opens the prefetch window.
    env.publish_requests(0..1).await;
    let worker = env.start_worker().await;
    env.expect_all_ready(1).await;
    worker.wait_for_log(log_text::WINDOW_GROWN).await;
    suspect.give_back().await;
    worker.wait_for_log(log_text::SERVING_ALONE).await;
    login.write("p4ss-1");
    // Five seconds later it goes on without the suspect.
    worker.wait_for_logs(log_text::CONSUMING, 2).await;
    assert_eq!(worker.readiness().await.0, 200);
    env.publish_requests(2..5).await;
    env.expect_all_ready(3).await;

    login.change_password("p4ss-1").await;
    worker.wait_for_log(log_text::RABBITMQ_SETTINGS_CHANGED).await;
    latch.open();
    env.publish_requests(5..8).await;
    env.expect_all_ready(4).await;
    assert_eq!(env.platform.session_calls().len(), 8, "one session for each person");
    let refused = login.refused();
    assert!(refused < 5, "{refused} refused logins");
    worker.stop().await;
    login.delete().await;
}

#[tokio::test]
async fn login_that_redis_refuses_waits_for_the_file() {
    let node = Node::redis().await;
    let mut admin = redis::connect(&node.url).await;
    redis::run(&mut admin, "ACL SETUSER rotated on >p4ss-0 ~* +@all").await;
    let file = TempFile::new(&redis_url(&node, "p4ss-0"));
    let mut env = TestEnv::builder().redis(&node).start().await;
    env.settings.remove("HANDOFF_REDIS_URL");
    env.set("REDIS_URL_FILE", file.path()).set("REDIS_PATIENCE", "500ms");
    let worker = env.start_worker().await;
    env.publish_requests(0..5).await;
    env.expect_all_ready(5).await;
    // Here Redis changes before the file does.
    redis::run(&mut admin, "ACL SETUSER rotated resetpass >p4ss-1").await;
    redis::run(&mut admin, "CLIENT KILL USER rotated").await;
    worker.wait_for_log_with(log_text::REDIS_UNAVAILABLE, |line| line["file"] == file.path()).await;
    env.publish_requests(5..8).await;
    env.expect_all_ready(3).await;
    let mut client = admin.clone();
    wait_until("a third refused login", async || refused_by_redis(&mut client).await >= 3).await;
    std::fs::write(file.path(), redis_url(&node, "p4ss-1")).unwrap();
    worker.wait_for_log(log_text::REDIS_RECONNECTED).await;
    env.request_again(0..5).await;
    env.expect_all_reused(5).await;
    let refused = refused_by_redis(&mut admin).await;
    assert!(refused < 5, "{refused} refused logins");
    worker.stop().await;
}
