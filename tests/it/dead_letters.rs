//! `handoff dead-letters`.

use std::{collections::HashSet, process::Output, time::Duration};

use lapin::{
    BasicProperties,
    types::{AMQPValue, ShortString},
};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::support::{
    Message, Node, TestEnv, log_text,
    rabbitmq::{field_table, long_string},
    wait_until, within_timeout,
    worker::{Settings, command},
};

/// The settings that `handoff dead-letters` reads.
fn settings(env: &TestEnv) -> Settings {
    env.only(&["AMQP_URL", "QUEUE", "REQUEST_EXCHANGE", "EVENT_EXCHANGE", "RETRY_DELAYS"])
}

async fn run(env: &TestEnv, arguments: &[&str]) -> Output {
    let arguments = [&["dead-letters"], arguments].concat();
    command(&arguments, &settings(env)).output().await.unwrap()
}

fn rows(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout.clone()).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn ids(rows: &[Value]) -> Vec<&str> {
    let mut ids: Vec<_> = rows.iter().map(|row| row["requestId"].as_str().unwrap()).collect();
    ids.sort_unstable();
    ids
}

/// A dead letter as a worker publishes it.
fn letter(id: &str, reason: &str, failed_at: &str) -> Message {
    let headers = field_table(&[
        ("mine", long_string("kept")),
        ("x-handoff-request-id", long_string(id)),
        ("x-handoff-attempt", AMQPValue::LongLongInt(5)),
        ("x-handoff-reason", long_string(reason)),
        ("x-handoff-detail", long_string("why it failed")),
        ("x-handoff-failed-at", long_string(failed_at)),
    ]);
    let properties = BasicProperties::default()
        .with_message_id(ShortString::from(id))
        .with_delivery_mode(2)
        .with_headers(headers);
    let body = json!({ "userId": format!("user of {id}") }).to_string().into_bytes();
    Message { routing_key: String::new(), properties, body }
}

/// An environment with a declared topology and these dead letters.
async fn env_with(letters: &[(&str, &str, &str)]) -> TestEnv {
    let env = TestEnv::start().await;
    env.declare_topology().await;
    for (id, reason, failed_at) in letters {
        env.rabbitmq.publish_to_queue(&env.dead_queue(), &letter(id, reason, failed_at)).await;
    }
    env
}

/// RabbitMQ requeues what a killed command held after the command has exited.
async fn wait_for_dead_letters(env: &TestEnv, count: u32) {
    let what = format!("dead letters: {count}");
    wait_until(&what, async || env.dead_letters().await == count).await;
}

#[tokio::test]
async fn dead_letters_are_listed_shown_and_filtered() {
    let recent = handoff::message::format_date_time(std::time::SystemTime::now());
    let env = env_with(&[
        ("a", "retries_exhausted", "2020-01-31T12:00:00Z"),
        ("b", "platform_rejected", "2020-01-31T12:00:00Z"),
        ("c", "platform_rejected", &recent),
    ])
    .await;
    let all = rows(&run(&env, &["list"]).await);
    assert_eq!(ids(&all), ["a", "b", "c"]);
    wait_for_dead_letters(&env, 3).await;
    let first = all.iter().find(|row| row["requestId"] == "a").unwrap();
    assert_eq!(first["reason"], "retries_exhausted");
    assert_eq!(first["attempts"], 5);
    assert_eq!(first["failedAt"], "2020-01-31T12:00:00Z");
    assert_eq!(first["detail"], "why it failed");
    assert!(first["ageSeconds"].as_u64().unwrap() > 5 * 365 * 86_400);
    assert!(!first.to_string().contains("user of"), "a list holds no personal data");
    for (arguments, chosen) in [
        (&["--reason", "platform_rejected"][..], &["b", "c"][..]),
        (&["--older-than", "1h"], &["a", "b"]),
        (&["--older-than", "1h", "--reason", "platform_rejected"], &["b"]),
        (&["a", "c"], &["a", "c"]),
        (&["--all"], &["a", "b", "c"]),
    ] {
        let rows = rows(&run(&env, &[&["list"], arguments].concat()).await);
        assert_eq!(ids(&rows), chosen, "{arguments:?}");
        wait_for_dead_letters(&env, 3).await;
    }
    let shown = &rows(&run(&env, &["show", "b"]).await)[0];
    wait_for_dead_letters(&env, 3).await;
    assert_eq!(shown["body"], json!({ "userId": "user of b" }));
    assert_eq!(shown["headers"]["mine"], "kept");
    assert_eq!(shown["properties"]["messageId"], "b");
    let missing = run(&env, &["show", "b", "x"]).await;
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("not in the dead queue: x"));
    // Neither listing nor showing removes a letter.
    wait_for_dead_letters(&env, 3).await;
}

#[tokio::test]
async fn letters_are_back_in_their_queue_when_the_command_has_exited() {
    let env = env_with(&[]).await;
    for n in 0..100 {
        let mut letter = letter(&format!("r-{n}"), "invalid_request", "2026-01-01T00:00:00Z");
        letter.body.resize(128 * 1024, b' ');
        env.rabbitmq.publish_to_queue(&env.dead_queue(), &letter).await;
    }
    for _ in 0..8 {
        assert_eq!(rows(&run(&env, &["list"]).await).len(), 100);
        assert_eq!(env.dead_letters().await, 100);
    }
}

#[tokio::test]
async fn body_is_shown_with_every_digit_and_key() {
    let env = env_with(&[]).await;
    let body = r#"{"userId":"u","metadata":{"n":123456789012345678901234567890},"userId":"v"}"#;
    let properties = BasicProperties::default().with_content_encoding("utf-8".into());
    let message = Message { routing_key: String::new(), properties, body: body.into() };
    env.rabbitmq.publish_to_queue(&env.dead_queue(), &message).await;
    let shown = String::from_utf8(run(&env, &["show"]).await.stdout).unwrap();
    assert!(shown.contains(&format!("\"body\":{body}")), "{shown}");
    assert!(shown.contains(r#""properties":{"contentEncoding":"utf-8"}"#), "{shown}");
    assert_eq!(shown.lines().count(), 1);
}

#[tokio::test]
async fn replay_and_drop_need_a_filter() {
    let env = env_with(&[]).await;
    for action in ["replay", "drop"] {
        let output = run(&env, &[action]).await;
        assert_eq!(output.status.code(), Some(2), "{action}");
        let output = run(&env, &[action, "--all", "--reason", "x"]).await;
        assert_eq!(output.status.code(), Some(2), "{action}");
    }
    // A missing queue is an error, and is not declared.
    let mut env = env;
    env.set("QUEUE", "nowhere");
    let output = run(&env, &["list"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("nowhere.dead"));
}

#[tokio::test]
async fn replayed_request_starts_with_its_first_attempt() {
    let mut env = env_with(&[
        ("a", "retries_exhausted", "2020-01-31T12:00:00Z"),
        ("b", "platform_rejected", "2020-01-31T12:00:00Z"),
    ])
    .await;
    let worker = env.start_worker().await;
    let dry = run(&env, &["replay", "--reason", "retries_exhausted", "--dry-run"]).await;
    assert_eq!(ids(&rows(&dry)), ["a"]);
    wait_for_dead_letters(&env, 2).await;
    let output = run(&env, &["replay", "a"]).await;
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "1 dead letter sent to the request queue\n"
    );
    let event = env.rabbitmq.next_event().await;
    assert_eq!(event.data()["requestId"], "a");
    assert_eq!(event.routing_key, "handoff.ready");
    assert_eq!(worker.wait_for_log(log_text::REQUEST_FINISHED).await["attempt"], 1);
    assert_eq!(ids(&rows(&run(&env, &["list"]).await)), ["b"]);
}

#[tokio::test]
async fn dropped_dead_letter_is_deleted() {
    let env = env_with(&[
        ("a", "retries_exhausted", "2020-01-31T12:00:00Z"),
        ("b", "platform_rejected", "2020-01-31T12:00:00Z"),
    ])
    .await;
    // Without a terminal there is no confirmation.
    let output = run(&env, &["drop", "--reason", "platform_rejected"]).await;
    assert_eq!(String::from_utf8_lossy(&output.stderr), "1 dead letter dropped\n");
    wait_for_dead_letters(&env, 1).await;
    assert_eq!(ids(&rows(&run(&env, &["list"]).await)), ["a"]);
    assert_eq!(env.rabbitmq.depth(&env.rabbitmq.queue.clone()).await, 0);
}

#[tokio::test]
async fn reason_of_a_message_dead_lettered_by_rabbitmq_is_shown() {
    let env = env_with(&[]).await;
    let body = json!({ "specversion": "1.0", "id": "event-1", "source": "/s", "type": "verification.requested",
        "data": { "userId": "ann" } });
    let expiring = BasicProperties::default().with_expiration("1".into());
    env.rabbitmq.publish(body.to_string(), expiring).await;
    wait_for_dead_letters(&env, 1).await;
    let row = &rows(&run(&env, &["list"]).await)[0];
    assert_eq!(row["requestId"], "event-1");
    assert_eq!(row["reason"], "expired");
    assert!(row["ageSeconds"].as_u64().unwrap() < 60, "{row}");
}

#[tokio::test]
async fn listing_15_times_keeps_delivery_counts_low() {
    let env = env_with(&[("a", "retries_exhausted", "2020-01-31T12:00:00Z")]).await;
    for _ in 0..15 {
        assert_eq!(ids(&rows(&run(&env, &["list"]).await)), ["a"]);
        wait_for_dead_letters(&env, 1).await;
    }
    let letter = env.rabbitmq.take(&env.dead_queue()).await;
    assert_eq!(letter.text_header("mine"), "kept");
    assert_eq!(letter.text_header("x-handoff-reason"), "retries_exhausted");
    let count = letter.header("x-delivery-count").cloned();
    assert!(matches!(count, Some(AMQPValue::LongLongInt(..=11)) | None), "{count:?}");
}

#[tokio::test]
async fn killed_replay_loses_and_doubles_no_dead_letter() {
    let mut env = env_with(&[]).await;
    let all: Vec<_> = (0..1_000).map(|n| format!("r-{n}")).collect();
    for (n, id) in all.iter().enumerate() {
        let reason = if n % 2 == 0 { "retries_exhausted" } else { "platform_rejected" };
        env.rabbitmq
            .publish_to_queue(&env.dead_queue(), &letter(id, reason, "2020-01-31T12:00:00Z"))
            .await;
    }
    let _worker = env.start_worker().await;
    let arguments = ["dead-letters", "replay", "--reason", "retries_exhausted", "--rate", "200/s"];
    let mut replay = command(&arguments, &settings(&env)).spawn().unwrap();
    let mut served: HashSet<_> = HashSet::new();
    for event in env.rabbitmq.next_events(100).await {
        served.insert(event.data()["requestId"].as_str().unwrap().to_owned());
    }
    replay.kill().await.unwrap();
    let queue = env.dead_queue();
    let node = Node::shared_rabbitmq();
    wait_until("RabbitMQ has requeued what it held", async || node.unsettled_in(&queue).await == 0)
        .await;
    let output = run(&env, &arguments[1..4]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // A letter confirmed but not acked at the kill is replayed twice, with the same event.
    while served.len() < 500 {
        let event = env.rabbitmq.next_event().await;
        assert_eq!(event.routing_key, "handoff.ready");
        served.insert(event.data()["requestId"].as_str().unwrap().to_owned());
    }
    let left = rows(&run(&env, &["list"]).await);
    assert!(left.iter().all(|row| row["reason"] == "platform_rejected"));
    let mut left = ids(&left);
    assert_eq!(left.len(), 500);
    left.dedup();
    assert_eq!(left.len(), 500, "no letter is doubled");
    assert!(left.iter().all(|id| !served.contains(*id)));
}

#[tokio::test]
async fn replay_keeps_its_rate_and_stops_at_an_interrupt() {
    let env = env_with(&[]).await;
    for n in 0..20 {
        let letter = letter(&format!("r-{n}"), "retries_exhausted", "2020-01-31T12:00:00Z");
        env.rabbitmq.publish_to_queue(&env.dead_queue(), &letter).await;
    }
    let arguments = ["dead-letters", "replay", "--all", "--rate", "1/h"];
    let mut command = command(&arguments, &settings(&env));
    let replay = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
    wait_until("one is sent", async || env.rabbitmq.depth(&env.rabbitmq.queue.clone()).await == 1)
        .await;
    crate::support::worker::signal(&replay, "INT");
    let output = tokio::time::timeout(Duration::from_secs(10), replay.wait_with_output()).await;
    let output = output.unwrap().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("interrupted; 1 dead letter sent to the request queue"), "{stderr}");
    wait_for_dead_letters(&env, 19).await;
}

#[tokio::test]
async fn replay_outlasts_the_consumer_timeout() {
    let node = Node::rabbitmq().await;
    // RabbitMQ reads both when a channel opens. By default it looks once a minute.
    let settings = ["consumer_timeout, 12000", "channel_tick_interval, 500"];
    let set = settings.map(|setting| format!("application:set_env(rabbit, {setting})"));
    node.ctl(&["eval", &format!("{}.", set.join(", "))]).await;
    let env = TestEnv::builder().rabbitmq(&node).start().await;
    env.declare_topology().await;
    let dead = env.dead_queue();
    for (id, reason) in [("kept-1", "other"), ("a", "mine"), ("b", "mine"), ("kept-2", "other")] {
        env.rabbitmq.publish_to_queue(&dead, &letter(id, reason, "2020-01-31T12:00:00Z")).await;
    }
    let output = run(&env, &["replay", "--reason", "mine", "--rate", "1/14s"]).await;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(stderr, "2 dead letters sent to the request queue\n");
    assert!(output.status.success());
    wait_for_dead_letters(&env, 2).await;
    let mut left = [env.rabbitmq.take(&dead).await, env.rabbitmq.take(&dead).await];
    left.sort_by_key(|message| message.text_header("x-handoff-request-id"));
    for (message, id) in left.iter().zip(["kept-1", "kept-2"]) {
        // The one that was held for long is a copy, and like the original.
        let original = letter(id, "other", "2020-01-31T12:00:00Z");
        assert_eq!(message.body, original.body);
        for name in ["mine", "x-handoff-request-id", "x-handoff-reason", "x-handoff-failed-at"] {
            assert_eq!(message.header(name), original.header(name), "{name}");
        }
    }
    assert_eq!(env.rabbitmq.depth(&env.rabbitmq.queue.clone()).await, 2);
}

#[tokio::test]
async fn drop_on_a_terminal_asks_for_confirmation() {
    let env = env_with(&[("a", "retries_exhausted", "2020-01-31T12:00:00Z")]).await;
    // `script` gives the command a terminal, and forwards its standard input.
    let typed = async |answer: &str| {
        let line = format!("{} dead-letters drop --all", env!("CARGO_BIN_EXE_handoff"));
        let mut command = tokio::process::Command::new("script");
        command.args(["-qec", &line, "/dev/null"]).envs(settings(&env)).kill_on_drop(true);
        let piped = std::process::Stdio::piped;
        let mut child = command.stdin(piped()).stdout(piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
        let output = within_timeout("its exit", child.wait_with_output()).await.unwrap();
        drop(stdin);
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (status, output) = typed("n").await;
    assert!(
        output.contains("Drop 1 for good?") && output.contains("nothing was dropped"),
        "{output}"
    );
    assert_eq!(status, Some(1));
    wait_for_dead_letters(&env, 1).await;
    let (status, output) = typed("y").await;
    assert!(output.contains("1 dead letter dropped"), "{output}");
    assert_eq!(status, Some(0));
    wait_for_dead_letters(&env, 0).await;
}
