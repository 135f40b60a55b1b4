//! Credentials that are replaced while the worker runs.

use std::time::Duration;

use crate::support::{Node, TempFile, TestEnv, log_text, redis, wait_until};

/// Refused logins so far, according to RabbitMQ's log.
fn refused_logins(node: &Node) -> usize {
    let logs = std::fs::read_dir(node.path("log")).unwrap().flatten();
    let texts = logs.filter_map(|log| std::fs::read_to_string(log.path()).ok());
    texts.map(|text| text.matches("PLAIN login refused").count()).sum()
}

#[tokio::test]
async fn password_of_rabbitmq_is_rotated_twice_under_load() {
    let node = Node::rabbitmq().await;
    let url = node.add_user("rotated", "p4ss-0").await;
    let file = TempFile::new(&url);
    let mut env = TestEnv::builder().rabbitmq(&node).start().await;
    env.settings.remove("HANDOFF_AMQP_URL");
    env.set("AMQP_URL_FILE", file.path());
    let worker = env.start_worker().await;
    let mut published = 0;
    for rotation in 1..=2 {
        let password = format!("p4ss-{rotation}");
        node.ctl(&["change_password", "rotated", &password]).await;
        std::fs::write(file.path(), node.url_as("rotated", &password)).unwrap();
        while worker.log_lines(log_text::RABBITMQ_SETTINGS_CHANGED).len() < rotation {
            env.publish_requests(published..published + 1).await;
            published += 1;
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert!(published < 2_000, "the file was not read again:\n{}", worker.output());
        }
        env.publish_requests(published..published + 20).await;
        published += 20;
    }
    worker.wait_for_logs(log_text::CONSUMING, 3).await;
    env.expect_all_ready(published).await;
    assert_eq!(env.platform.session_calls().len(), published, "one session for each person");
    assert_eq!(worker.log_lines(log_text::RABBITMQ_LOST).len(), 0);
    assert_eq!(worker.get("/readyz").await.0, 200);
    let refused = refused_logins(&node);
    println!("{published} requests, {refused} refused logins");
    assert!(refused < 5, "{refused} refused logins");
}

#[tokio::test]
async fn password_of_redis_is_rotated_under_load() {
    let node = Node::redis().await;
    let mut admin = redis::connect(&node.url).await;
    let url =
        |password: &str| node.url.replace("redis://", &format!("redis://rotated:{password}@"));
    redis::run(&mut admin, "ACL SETUSER rotated on >p4ss-0 ~* +@all").await;
    let file = TempFile::new(&url("p4ss-0"));
    let mut env = TestEnv::builder().redis(&node).start().await;
    env.settings.remove("HANDOFF_REDIS_URL");
    env.set("REDIS_URL_FILE", file.path());
    let _worker = env.start_worker().await;
    env.publish_requests(0..20).await;
    env.expect_all_ready(20).await;
    std::fs::write(file.path(), url("p4ss-1")).unwrap();
    redis::run(&mut admin, "ACL SETUSER rotated resetpass >p4ss-1").await;
    env.publish_requests(20..40).await;
    redis::run(&mut admin, "CLIENT KILL USER rotated").await;
    env.publish_requests(40..60).await;
    env.expect_all_ready(40).await;
    wait_until("the worker has logged in again", async || {
        let mut client = admin.clone();
        let clients: String =
            redis::cmd("CLIENT").arg("LIST").query_async(&mut client).await.unwrap();
        clients.contains("user=rotated")
    })
    .await;
    // The new connection has logged in with the new password: the links are found again.
    env.request_again(0..20).await;
    env.expect_all_reused(20).await;
}
