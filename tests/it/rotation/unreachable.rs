//! A changed file whose URL is valid, but leads to no RabbitMQ.

use serde_json::Value;
use tokio::net::TcpListener;

use super::Login;
use crate::support::{Proxy, TestEnv, log_text, tls::free_port, wait_until};

/// A list of two nodes, neither of which is RabbitMQ: one refuses connections, one accepts them and stays silent.
#[tokio::test]
async fn former_url_serves_while_the_changed_one_has_never_worked() {
    let mut env = TestEnv::start().await;
    let login = Login::new(&mut env).await;
    let former = Proxy::to(&login.node.url).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let refusing = free_port();
    let url = login.node.url_as(&login.user, "p4ss-0");
    login.write_url(&former.url(&url));
    let worker = env.start_worker().await;
    env.publish_requests(0..5).await;
    env.expect_all_ready(5).await;

    let at = |port: u16| {
        url.replace(&format!(":{}/", login.node.address().port()), &format!(":{port}/"))
    };
    login.write_url(&[refusing, silent.local_addr().unwrap().port()].map(at).join(","));
    let line = worker.wait_for_log(log_text::NOT_REPLACED).await;
    let error = line["error"].as_str().unwrap();
    assert!(error.contains("HANDOFF_AMQP_URL_FILE"), "{error}");
    assert!(error.contains(login.file.path()), "{error}");
    let (status, page) = worker.readiness().await;
    assert_eq!((status, &page["checks"]["broker"]), (200, &"degraded".into()));

    // Twice: the worker goes on with the former URL, and does not forget it.
    for times in [2, 3] {
        former.close_connections();
        worker.wait_for_logs(log_text::CONSUMING, times).await;
        let range = times * 5 - 5..times * 5;
        env.publish_requests(range).await;
        env.expect_all_ready(5).await;
        assert_eq!(worker.log_lines(log_text::FORMER_SETTINGS).len(), times - 1);
    }

    // RabbitMQ is there now. Once it has served, the worker does not go back.
    let current = Proxy::at(&format!("127.0.0.1:{refusing}"), &login.node.url).await;
    worker.wait_for_log(log_text::RABBITMQ_SETTINGS_CHANGED).await;
    env.publish_requests(15..20).await;
    env.expect_all_ready(5).await;
    let (status, page) = worker.readiness().await;
    assert_eq!((status, &page["login"]), (200, &Value::Null));
    former.take_sent();
    drop(current);
    let not_ready = async || worker.get("/readyz").await.0 == 503;
    wait_until("the worker is not ready", not_ready).await;
    let silent_node = async || silent.accept().await.is_ok();
    wait_until("two tries of the current nodes", silent_node).await;
    wait_until("two tries of the current nodes", silent_node).await;
    let _current = Proxy::at(&format!("127.0.0.1:{refusing}"), &login.node.url).await;
    worker.wait_for_logs(log_text::CONSUMING, 5).await;
    env.publish_requests(20..25).await;
    env.expect_all_ready(5).await;
    assert!(former.take_sent().is_empty(), "the worker went back to the former URL");
    assert_eq!(env.platform.session_calls().len(), 25, "one session for each person");
    worker.stop().await;
    login.delete().await;
}
