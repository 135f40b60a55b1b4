//! The rights that docs/security.md gives to each are enough for each.

use futures_util::StreamExt;
use lapin::{
    BasicProperties, Confirmation, Connection, ConnectionProperties, options::*, types::FieldTable,
};
use serde_json::{Value, json};

use crate::support::{
    Node, TestEnv, redis, wait_until, within_timeout,
    worker::{Settings, Worker, command},
};

const GUIDE: &str = include_str!("../../docs/security.md");

/// The arguments of a line in the guide's shell blocks, without their quotes.
fn arguments(line: &str) -> Vec<String> {
    line.split(' ').map(|argument| argument.trim_matches('\'').to_owned()).collect()
}

#[tokio::test]
async fn the_least_rights_suffice() {
    let (rabbitmq, redis_node) = tokio::join!(Node::rabbitmq(), Node::redis());
    let grants: Vec<_> = GUIDE
        .lines()
        .filter_map(|line| line.strip_prefix("rabbitmqctl "))
        .filter(|line| line.starts_with("set_permissions"))
        .map(arguments)
        .collect();
    assert_eq!(grants.len(), 3);
    for grant in &grants {
        rabbitmq.ctl(&["add_user", &grant[1], "secret"]).await;
        rabbitmq.ctl(&grant.iter().map(String::as_str).collect::<Vec<_>>()).await;
    }
    let acl = GUIDE.lines().find(|line| line.starts_with("ACL SETUSER")).unwrap();
    let mut grant = redis::cmd("ACL");
    for argument in &arguments(acl)[1..] {
        grant.arg(argument);
    }
    let mut admin = redis::connect(&redis_node.url).await;
    grant.query_async::<()>(&mut admin).await.unwrap();

    // Everything by its default name.
    let env = TestEnv::builder().rabbitmq(&rabbitmq).start().await;
    let amqp = |user: &str| rabbitmq.url.replace("guest:guest", &format!("{user}:secret"));
    let named = ["QUEUE", "REQUEST_EXCHANGE", "EVENT_EXCHANGE", "KEY_PREFIX"];
    let named = named.map(|name| format!("HANDOFF_{name}"));
    let mut settings: Settings = env.settings.clone();
    settings.retain(|name, _| !named.contains(name));
    settings.insert("HANDOFF_AMQP_URL".to_owned(), amqp("handoff"));
    let redis_url = redis_node.url.replace("redis://", "redis://handoff:password@");
    settings.insert("HANDOFF_REDIS_URL".to_owned(), redis_url);
    settings.insert("HANDOFF_IDV_RATE_LIMIT".to_owned(), "1000/1s".to_owned());
    let worker = Worker::start_consuming(&settings).await;
    // The queue is empty, so nothing in it kills workers: the prefetch is what it is set to.
    wait_until("the prefetch is 64", async || {
        let consumers = rabbitmq.ctl(&["list_consumers", "queue_name", "prefetch_count"]).await;
        consumers.lines().any(|line| line == "verification.requested\t64")
    })
    .await;

    let listener =
        Connection::connect(&amqp("notifications"), ConnectionProperties::default()).await.unwrap();
    let hears = listener.create_channel().await.unwrap();
    let none = FieldTable::default;
    hears
        .queue_declare("notifications".into(), QueueDeclareOptions::durable(), none())
        .await
        .unwrap();
    let binding = QueueBindOptions::default();
    hears
        .queue_bind("notifications".into(), "handoff".into(), "handoff.*".into(), binding, none())
        .await
        .unwrap();
    let mut events = hears
        .basic_consume("notifications".into(), "".into(), BasicConsumeOptions::default(), none())
        .await
        .unwrap();

    let shop = Connection::connect(&amqp("shop"), ConnectionProperties::default()).await.unwrap();
    let asks = shop.create_channel().await.unwrap();
    asks.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    // A good one, one that is reused, and one that goes to the dead queue.
    for body in [json!({ "userId": "ann" }), json!({ "userId": "ann" }), json!({ "userId": 7 })] {
        let mandatory = BasicPublishOptions { mandatory: true, ..Default::default() };
        let (exchange, key) = ("verification".into(), "verification.requested".into());
        let body = body.to_string();
        let confirm = asks
            .basic_publish(exchange, key, mandatory, body.as_bytes(), BasicProperties::default())
            .await
            .unwrap();
        assert!(matches!(confirm.await.unwrap(), Confirmation::Ack(None)));
    }
    let mut kinds = Vec::new();
    for _ in 0..3 {
        let event = within_timeout("an event", events.next()).await.unwrap().unwrap();
        let event: Value = serde_json::from_slice(&event.data).unwrap();
        kinds.push(event["type"].as_str().unwrap().to_owned());
    }
    kinds.sort_unstable();
    assert_eq!(kinds, ["handoff.failed", "handoff.ready", "handoff.ready"]);
    worker.wait_for_finished(3).await;
    assert_eq!(worker.metric("handoff_cache_errors_total").await, 0.0);
    assert_eq!(env.platform.session_calls().len(), 1);
    let (_, ready) = worker.get("/readyz").await;
    assert!(ready.contains(r#""redis":"ok""#), "{ready}");
    // Who has no more than that can still look for what is wrong.
    settings.insert("HANDOFF_LOG".to_owned(), "warn".to_owned());
    let output = command(&["doctor", "--json"], &settings).output().await.unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{told}");
    assert!(
        told.contains("all 8 exchanges and queues fit") && told.contains("INFO is refused"),
        "{told}"
    );
}
