//! Passwords of RabbitMQ and Redis, rotated while requests flow.

use std::time::Duration;

use super::{Login, redis_url, refused_by_redis};
use crate::support::{Node, TempFile, TestEnv, log_text, redis};

/// Publishes a hundred requests a second or more, until `done` with this many.
async fn publish_until(env: &TestEnv, published: &mut usize, done: impl Fn(usize) -> bool) {
    let mut ticks = tokio::time::interval(Duration::from_millis(50));
    while !done(*published) {
        ticks.tick().await;
        env.publish_requests(*published..*published + 6).await;
        *published += 6;
        assert!(*published < 6_000, "the file was not read again");
    }
}

#[tokio::test]
async fn passwords_of_rabbitmq_and_redis_are_rotated_under_load() {
    let redis_node = Node::redis().await;
    let mut admin = redis::connect(&redis_node.url).await;
    redis::run(&mut admin, "ACL SETUSER rotated on >p4ss-0 ~* +@all").await;
    let redis_file = TempFile::new(&redis_url(&redis_node, "p4ss-0"));
    let mut env = TestEnv::builder().redis(&redis_node).start().await;
    env.settings.remove("HANDOFF_REDIS_URL");
    env.set("REDIS_URL_FILE", redis_file.path());
    let login = Login::new(&mut env).await;
    let worker = env.start_worker().await;
    let mut published = 0;
    let changes = || worker.log_lines(log_text::RABBITMQ_SETTINGS_CHANGED).len();

    login.change_password("p4ss-1").await;
    login.write("p4ss-1");
    // Redis takes both passwords until the file has the new one.
    redis::run(&mut admin, "ACL SETUSER rotated >p4ss-1").await;
    std::fs::write(redis_file.path(), redis_url(&redis_node, "p4ss-1")).unwrap();
    publish_until(&env, &mut published, |_| changes() == 1).await;
    redis::run(&mut admin, "ACL SETUSER rotated <p4ss-0").await;
    redis::run(&mut admin, "CLIENT KILL USER rotated").await;

    // The second time, RabbitMQ also closes the connections, and the file changes later.
    login.change_password("p4ss-2").await;
    login.close_connections().await;
    publish_until(&env, &mut published, |_| login.refused() >= 2).await;
    login.write("p4ss-2");
    let consuming = || worker.log_lines(log_text::CONSUMING).len();
    publish_until(&env, &mut published, |_| consuming() == 3).await;
    let goal = published + 60;
    publish_until(&env, &mut published, |published| published >= goal).await;

    env.expect_all_ready(published).await;
    assert_eq!(env.platform.session_calls().len(), published, "one session for each person");
    assert_eq!(worker.log_lines(log_text::RABBITMQ_LOST).len(), 1);
    assert_eq!(worker.log_lines(log_text::NOT_CONSUMING).len(), 1);
    assert_eq!(worker.get("/readyz").await.0, 200);
    env.request_again(0..20).await;
    env.expect_all_reused(20).await;
    let refused_by_redis = refused_by_redis(&mut admin).await;
    let refused = login.refused();
    println!("{published} requests, refused logins: {refused} and {refused_by_redis}");
    assert!(refused + refused_by_redis < 5, "{refused} and {refused_by_redis}");
    worker.stop().await;
    login.delete().await;
}
