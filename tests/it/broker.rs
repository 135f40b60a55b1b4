//! RabbitMQ: the topology, what the worker may do there, and what is no fault at all.

use lapin::{
    options::{ExchangeDeclareOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use serde_json::json;

use crate::support::{
    Bench, Node, Platform, Worker, log_text,
    platform::hold_calls,
    rabbit::{table, text},
};

#[tokio::test]
async fn the_topology_is_declared_as_documented() {
    let bench = Bench::new().await;
    let _worker = bench.worker().await;
    let queue = &bench.rabbit.queue;
    let dead = format!("{queue}.dead");
    let dead_lettering = |to: &str| {
        vec![
            ("x-queue-type", text("quorum")),
            ("x-dead-letter-exchange", text("")),
            ("x-dead-letter-routing-key", text(to)),
            ("x-dead-letter-strategy", text("at-least-once")),
            ("x-overflow", text("reject-publish")),
        ]
    };
    let mut expected = vec![
        (
            queue.clone(),
            [dead_lettering(&dead), vec![("x-delivery-limit", AMQPValue::LongInt(20))]].concat(),
        ),
        (dead.clone(), vec![("x-queue-type", text("quorum"))]),
    ];
    for (delay, ttl) in [("10s", 10_000), ("1m", 60_000), ("5m", 300_000), ("15m", 900_000)] {
        let ttl = vec![("x-message-ttl", AMQPValue::LongInt(ttl))];
        expected.push((format!("{queue}.retry.{delay}"), [dead_lettering(queue), ttl].concat()));
    }
    // Declaring them once more succeeds only where every argument is the same.
    let channel = bench.rabbit.channel().await;
    for (name, entries) in expected {
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        channel.queue_declare(name.into(), options, table(&entries)).await.unwrap();
    }
    for exchange in [&bench.rabbit.request_exchange, &bench.rabbit.event_exchange] {
        let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
        let kind = lapin::ExchangeKind::Topic;
        let name = exchange.as_str().into();
        channel.exchange_declare(name, kind, options, FieldTable::default()).await.unwrap();
    }
}

#[tokio::test]
async fn a_queue_with_other_arguments_is_named_with_the_remedy() {
    let mut bench = Bench::new().await;
    let channel = bench.rabbit.channel().await;
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    let name = format!("{}.retry.1m", bench.rabbit.queue);
    channel.queue_declare(name.as_str().into(), options, FieldTable::default()).await.unwrap();
    let worker = Worker::start(&bench.settings);
    let line = worker.logged(log_text::NOT_CONSUMING).await;
    let error = line["error"].as_str().unwrap();
    for part in [name.as_str(), "delete it", "HANDOFF_QUEUE", "HANDOFF_DECLARE_TOPOLOGY=false"] {
        assert!(error.contains(part), "{error}");
    }
    let (status, page) = worker.page("/readyz").await;
    assert!(status == 503 && page.contains(r#""failing":["broker"]"#), "{page}");
    assert_eq!(worker.page("/livez").await.0, 200);
    // Once it is mended, the worker goes to work without being told.
    bench.rabbit.delete_queue(&name).await;
    worker.logged(log_text::CONSUMING).await;
    assert_eq!(worker.page("/readyz").await.0, 200);
    bench.rabbit.request("r-1", json!({ "userId": "ann" })).await;
    bench.rabbit.event().await;
}

#[tokio::test]
async fn without_declaring_the_topology_is_only_checked() {
    let mut bench = Bench::new().await;
    bench.set("DECLARE_TOPOLOGY", "false");
    let worker = Worker::start(&bench.settings);
    let line = worker.logged(log_text::NOT_CONSUMING).await;
    let error = line["error"].as_str().unwrap();
    assert!(error.contains(&bench.rabbit.request_exchange), "{error}");
    assert!(error.contains("does not exist"), "{error}");
    worker.stop().await;

    bench.set("DECLARE_TOPOLOGY", "true");
    bench.worker().await.stop().await;
    // It takes queues as they are, with other arguments too.
    let dead = format!("{}.dead", bench.rabbit.queue);
    bench.rabbit.delete_queue(&dead).await;
    let channel = bench.rabbit.channel().await;
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(dead.as_str().into(), options, FieldTable::default()).await.unwrap();
    bench.set("DECLARE_TOPOLOGY", "false");
    let _worker = bench.worker().await;
    bench.rabbit.publish("not a request", Default::default()).await;
    bench.rabbit.event().await;
    bench.rabbit.dead_letter().await;
}

#[tokio::test]
async fn a_user_who_may_not_publish_events_spends_attempts_and_breaks_no_connection() {
    let node = Node::rabbitmq().await;
    let mut bench = Bench::on_own_rabbitmq(Platform::healthy().await, &node).await;
    bench.set("RETRY_DELAYS", "1s,3s,9s");
    // Everything but writing to the exchange of events.
    node.ctl(&["add_user", "limited", "secret"]).await;
    let write = format!("^(amq.default|{}.*)$", bench.rabbit.queue);
    node.ctl(&["set_permissions", "limited", ".*", &write, ".*"]).await;
    let url = node.url.replace("guest:guest", "limited:secret");
    bench.set("AMQP_URL", &url);
    let worker = bench.worker().await;
    for n in 0..10 {
        bench.rabbit.request(&format!("r-{n}"), json!({ "userId": format!("user-{n}") })).await;
    }
    worker.logged_times(log_text::REQUEST_FINISHED, 10).await;
    assert_eq!(worker.lines(log_text::CONSUMING).len(), 1, "{}", worker.log());
    assert!(
        worker.lines(log_text::REQUEST_FINISHED).iter().all(|line| line["outcome"] == "retried")
    );
    node.ctl(&["set_permissions", "limited", ".*", ".*", ".*"]).await;
    let events = bench.rabbit.events(10).await;
    assert!(events.iter().all(|event| event.data()["reused"] == true));
}

#[tokio::test]
async fn neither_an_empty_queue_nor_full_hands_are_a_reason_to_restart() {
    let idle = Bench::new().await;
    let idle = idle.worker().await;
    let (_never, script) = hold_calls(|_| true);
    let mut busy = Bench::with(Platform::scripted(script).await).await;
    busy.set("CONCURRENCY", "1");
    let worker = busy.worker().await;
    busy.requests(0..2).await;
    busy.platform.wait_for_calls(1).await;
    // Longer than a loop that does not turn may seem alive.
    tokio::time::sleep(std::time::Duration::from_secs(6)).await;
    idle.is_alive().await;
    worker.is_alive().await;
    assert_eq!(busy.platform.calls().len(), 1);
}
