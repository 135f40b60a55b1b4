//! Texts of servers quote users, virtual hosts and keys, so none is logged, printed or published.

use serde_json::json;

use crate::{
    secrets::{
        PASSWORD, USER, assert_dead_letter_leaks_nothing, assert_no_secret,
        assert_worker_leaks_nothing, verbose_env,
    },
    support::{Node, TestEnv, Worker, log_text, redis, within_timeout, worker::command},
};

/// Runs a command, and checks what it prints.
async fn assert_command_leaks_nothing(env: &TestEnv, arguments: &[&str]) {
    let run = command(arguments, &env.settings).output();
    let output = within_timeout("its exit", run).await.unwrap();
    for printed in [output.stdout, output.stderr] {
        assert_no_secret(arguments[0], &String::from_utf8_lossy(&printed));
    }
}

#[tokio::test]
async fn url_taken_for_a_virtual_host_is_not_quoted() {
    let mut env = verbose_env(false).await;
    let amqp = env.setting("AMQP_URL").to_owned();
    let base = amqp.strip_suffix("/%2f").unwrap();
    // RabbitMQ reports that the virtual host does not exist, and quotes it.
    let urls = [
        format!("{base}/%2f%2camqp:%2f%2f{USER}:{PASSWORD}%40elsewhere"),
        format!("{base}/{PASSWORD}%40elsewhere"),
    ];
    for url in urls {
        env.set("AMQP_URL", &url);
        let worker = Worker::start(&env.settings);
        worker.wait_for_log(log_text::NOT_CONSUMING).await;
        assert_worker_leaks_nothing(worker).await;
        assert_command_leaks_nothing(&env, &["doctor"]).await;
        assert_command_leaks_nothing(&env, &["dead-letters", "list"]).await;
        assert_command_leaks_nothing(&env, &["request", "--user", "ann"]).await;
    }
}

#[tokio::test]
async fn user_without_permissions_is_not_quoted() {
    let node = Node::rabbitmq().await;
    let mut env = verbose_env(false).await;
    let url = node.add_user(USER, PASSWORD).await;
    env.set("AMQP_URL", &url);
    // No permission in the virtual host, and then none to declare the objects.
    node.ctl(&["clear_permissions", USER]).await;
    for (step, code) in ["NOT_ALLOWED", "ACCESS_REFUSED"].into_iter().enumerate() {
        if step > 0 {
            node.ctl(&["set_permissions", USER, "^$", ".*", ".*"]).await;
        }
        let worker = Worker::start(&env.settings);
        let line = worker.wait_for_log(log_text::NOT_CONSUMING).await;
        assert!(line["error"].as_str().unwrap().contains(code), "{line}");
        assert_worker_leaks_nothing(worker).await;
        assert_command_leaks_nothing(&env, &["doctor"]).await;
        assert_command_leaks_nothing(&env, &["request", "--user", "ann"]).await;
    }
}

#[tokio::test]
async fn refused_publish_and_refused_command_are_not_quoted() {
    let node = Node::shared_rabbitmq();
    let mut env = verbose_env(false).await;
    let user = format!("{}-{USER}", env.name);
    let url = node.add_user(&user, PASSWORD).await;
    // No permission to publish events, nor to write to Redis.
    let all_but_events = format!("^(?!{}$).*", env.rabbitmq.event_exchange);
    node.ctl(&["set_permissions", &user, ".*", &all_but_events, ".*"]).await;
    let redis_url = env.setting("REDIS_URL").to_owned();
    let mut admin = redis::connect(&redis_url).await;
    redis::run(&mut admin, &format!("ACL SETUSER {user} on >{PASSWORD} ~* +@all -set")).await;
    env.set("AMQP_URL", &url);
    env.set("REDIS_URL", &redis_url.replace("://", &format!("://{user}:{PASSWORD}@")));
    let worker = env.start_worker().await;
    env.rabbitmq.publish_request("r-1", json!({ "userId": USER })).await;
    let letter = env.rabbitmq.take_dead_letter().await;
    assert!(letter.text_header("x-handoff-detail").contains("ACCESS_REFUSED"), "{letter:?}");
    assert_dead_letter_leaks_nothing(&letter);
    let warning = worker.wait_for_log(log_text::REDIS_REFUSES).await;
    assert!(warning["error"].as_str().unwrap().starts_with("NOPERM: "), "{warning}");
    assert_worker_leaks_nothing(worker).await;
    redis::run(&mut admin, &format!("ACL DELUSER {user}")).await;
    node.ctl(&["delete_user", &user]).await;
}
