//! The permissions in docs/security.md suffice.

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

/// The arguments of a command line in the guide, without their quotes.
fn arguments(line: &str) -> Vec<String> {
    line.split(' ').map(|argument| argument.trim_matches('\'').to_owned()).collect()
}

#[tokio::test]
async fn documented_permissions_suffice() {
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

    // Queues, exchanges and keys have their default names, as in the guide.
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
    // An empty queue holds no poison message, so the worker raises its prefetch to the maximum.
    wait_until("the prefetch is 64", async || {
        let consumers = rabbitmq.ctl(&["list_consumers", "queue_name", "prefetch_count"]).await;
        consumers.lines().any(|line| line == "verification.requested\t64")
    })
    .await;

    let listener =
        Connection::connect(&amqp("notifications"), ConnectionProperties::default()).await.unwrap();
    let consuming = listener.create_channel().await.unwrap();
    let none = FieldTable::default;
    consuming
        .queue_declare("notifications".into(), QueueDeclareOptions::durable(), none())
        .await
        .unwrap();
    let binding = QueueBindOptions::default();
    consuming
        .queue_bind("notifications".into(), "handoff".into(), "handoff.*".into(), binding, none())
        .await
        .unwrap();
    let mut events = consuming
        .basic_consume("notifications".into(), "".into(), BasicConsumeOptions::default(), none())
        .await
        .unwrap();

    let shop = Connection::connect(&amqp("shop"), ConnectionProperties::default()).await.unwrap();
    let publishing = shop.create_channel().await.unwrap();
    publishing.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    // One new link, one reused link, and one dead letter.
    for body in [json!({ "userId": "ann" }), json!({ "userId": "ann" }), json!({ "userId": 7 })] {
        let mandatory = BasicPublishOptions { mandatory: true, ..Default::default() };
        let exchange = "verification".into();
        let key = "verification.requested".into();
        let body = body.to_string();
        let confirm = publishing
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
    env.rabbitmq.wait_for_consumer("verification.requested.ended").await;
    // `handoff doctor` needs no further permission.
    settings.insert("HANDOFF_LOG".to_owned(), "warn".to_owned());
    let output = command(&["doctor", "--json"], &settings).output().await.unwrap();
    let report = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{report}");
    assert!(
        report.contains("all 9 exchanges and queues match")
            && report.contains("Redis refuses INFO"),
        "{report}"
    );
}
