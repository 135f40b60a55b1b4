//! The topology on RabbitMQ, and the permissions to use it.

use lapin::{
    options::{ExchangeDeclareOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};

use crate::support::{
    Node, TestEnv, Worker, log_text,
    platform::hold_calls,
    rabbitmq::{field_table, long_string},
};

#[tokio::test]
async fn topology_is_declared_as_documented() {
    // An event queue would be bound to an exchange that the test itself declares.
    let env = TestEnv::builder().without_event_queue().start().await;
    let _worker = env.start_worker().await;
    env.wait_for_consumer_of_endings().await;
    let queue = &env.rabbitmq.queue;
    let dead = format!("{queue}.dead");
    let dead_lettering = |to: &str| {
        vec![
            ("x-queue-type", long_string("quorum")),
            ("x-dead-letter-exchange", long_string("")),
            ("x-dead-letter-routing-key", long_string(to)),
            ("x-dead-letter-strategy", long_string("at-least-once")),
            ("x-overflow", long_string("reject-publish")),
        ]
    };
    let mut expected = vec![(dead.clone(), vec![("x-queue-type", long_string("quorum"))])];
    for queue in [queue.clone(), env.ended_queue()] {
        let limit = vec![("x-delivery-limit", AMQPValue::LongInt(20))];
        expected.push((queue, [dead_lettering(&dead), limit].concat()));
    }
    for (delay, ttl) in [("10s", 10_000), ("1m", 60_000), ("5m", 300_000), ("15m", 900_000)] {
        let ttl = vec![("x-message-ttl", AMQPValue::LongInt(ttl))];
        expected.push((format!("{queue}.retry.{delay}"), [dead_lettering(queue), ttl].concat()));
    }
    // A passive declaration fails if the object is missing, an active one if an argument differs.
    let channel = env.rabbitmq.open_channel().await;
    for (name, entries) in expected {
        env.rabbitmq.depth(&name).await;
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        channel.queue_declare(name.into(), options, field_table(&entries)).await.unwrap();
    }
    for exchange in [&env.rabbitmq.request_exchange, &env.rabbitmq.event_exchange] {
        let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
        env.rabbitmq.assert_exchange_exists(exchange).await;
        let kind = lapin::ExchangeKind::Topic;
        let name = exchange.as_str().into();
        channel.exchange_declare(name, kind, options, FieldTable::default()).await.unwrap();
    }
}

#[tokio::test]
async fn queue_with_different_arguments_is_named_with_the_remedy() {
    let mut env = TestEnv::start().await;
    let channel = env.rabbitmq.open_channel().await;
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    let name = format!("{}.retry.1m", env.rabbitmq.queue);
    channel.queue_declare(name.as_str().into(), options, FieldTable::default()).await.unwrap();
    let worker = Worker::start(&env.settings);
    let line = worker.wait_for_log(log_text::NOT_CONSUMING).await;
    let error = line["error"].as_str().unwrap();
    for part in [name.as_str(), "delete it", "HANDOFF_QUEUE", "HANDOFF_DECLARE_TOPOLOGY=false"] {
        assert!(error.contains(part), "{error}");
    }
    let (status, page) = worker.get("/readyz").await;
    assert!(status == 503 && page.contains(r#""failing":["broker"]"#), "{page}");
    assert_eq!(worker.get("/livez").await.0, 200);
    // Once the queue is deleted, the worker consumes without a restart.
    env.rabbitmq.delete_queue(&name).await;
    worker.wait_for_log(log_text::CONSUMING).await;
    assert_eq!(worker.get("/readyz").await.0, 200);
    env.publish_request("r-1", "ann").await;
    env.rabbitmq.next_event().await;
}

#[tokio::test]
async fn topology_that_the_worker_may_not_declare_is_only_checked() {
    let mut env = TestEnv::start().await;
    env.set("DECLARE_TOPOLOGY", "false");
    let worker = Worker::start(&env.settings);
    let line = worker.wait_for_log(log_text::NOT_CONSUMING).await;
    let error = line["error"].as_str().unwrap();
    assert!(error.contains(&env.rabbitmq.request_exchange), "{error}");
    assert!(error.contains("does not exist"), "{error}");
    worker.stop().await;

    env.set("DECLARE_TOPOLOGY", "true");
    env.declare_topology().await;
    // It accepts existing queues, also with different arguments.
    let dead = env.dead_queue();
    env.rabbitmq.delete_queue(&dead).await;
    let channel = env.rabbitmq.open_channel().await;
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(dead.as_str().into(), options, FieldTable::default()).await.unwrap();
    env.set("DECLARE_TOPOLOGY", "false");
    let _worker = env.start_worker().await;
    env.rabbitmq.publish("not a request", Default::default()).await;
    env.rabbitmq.next_event().await;
    env.rabbitmq.take_dead_letter().await;
}

#[tokio::test]
async fn missing_permission_to_publish_events_spends_attempts_and_keeps_the_connection() {
    let node = Node::shared_rabbitmq();
    let mut env = TestEnv::start().await;
    env.set("RETRY_DELAYS", "1s,3s,9s");
    let user = env.name.clone();
    let url = node.add_user(&user, "secret").await;
    // Everything except writing to the event exchange.
    let write = format!("^(amq.default|{}.*)$", env.rabbitmq.queue);
    node.ctl(&["set_permissions", &user, ".*", &write, ".*"]).await;
    env.set("AMQP_URL", &url);
    let worker = env.start_worker().await;
    env.publish_requests(0..10).await;
    worker.wait_for_logs(log_text::REQUEST_FINISHED, 10).await;
    assert_eq!(worker.log_lines(log_text::CONSUMING).len(), 1, "{}", worker.output());
    assert!(
        worker
            .log_lines(log_text::REQUEST_FINISHED)
            .iter()
            .all(|line| line["outcome"] == "retried")
    );
    node.ctl(&["set_permissions", &user, ".*", ".*", ".*"]).await;
    let events = env.rabbitmq.next_events(10).await;
    assert!(events.iter().all(|event| event.data()["reused"] == true));
    worker.stop().await;
    node.ctl(&["delete_user", &user]).await;
}

#[tokio::test]
async fn idle_and_saturated_workers_stay_alive() {
    let idle = TestEnv::start().await;
    let idle = idle.start_worker().await;
    let (_never, script) = hold_calls(|_| true);
    let mut busy = TestEnv::builder().platform(script).start().await;
    busy.set("CONCURRENCY", "1");
    let worker = busy.start_worker().await;
    busy.publish_requests(0..2).await;
    busy.platform.wait_for_calls(1).await;
    // `/livez` fails a worker whose loop has not turned for 5 s.
    tokio::time::sleep(std::time::Duration::from_secs(6)).await;
    idle.assert_alive().await;
    worker.assert_alive().await;
    assert_eq!(busy.platform.calls().len(), 1);
}
