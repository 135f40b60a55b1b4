//! Credentials that are replaced while the worker runs.

use crate::support::{Node, TempFile, TestEnv, redis, wait_until};

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
    for n in 0..20 {
        env.publish_request(&format!("again-{n}"), &format!("user-{n}")).await;
    }
    let events = env.rabbitmq.next_events(20).await;
    assert!(events.iter().all(|event| event.data()["reused"] == true));
}
