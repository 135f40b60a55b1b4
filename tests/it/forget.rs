//! `handoff forget`, as a person runs it.

use std::{process::Output, time::SystemTime};

use serde_json::{Value, json};

use crate::support::{
    TestEnv, Worker,
    worker::{Settings, run},
};

async fn forget(arguments: &[&str], settings: &Settings) -> Output {
    let arguments: Vec<_> = ["forget"].iter().chain(arguments).copied().collect();
    run(&arguments, settings).await
}

/// The settings that the command reads.
fn settings(env: &TestEnv) -> Settings {
    env.only(&["AMQP_URL", "QUEUE", "REQUEST_EXCHANGE", "EVENT_EXCHANGE", "IDV_WORKFLOW_ID"])
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// What it printed, without the ids.
fn published(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{}", stderr(output));
    let lines = std::str::from_utf8(&output.stdout).unwrap().lines();
    lines
        .map(|line| {
            let mut ending: Value = serde_json::from_str(line).unwrap();
            let id = ending.as_object_mut().unwrap().remove("requestId").unwrap();
            assert_eq!(id.as_str().unwrap().len(), 36);
            ending
        })
        .collect()
}

async fn request(env: &mut TestEnv, id: &str, workflow: &str) -> Value {
    let request = json!({ "userId": "ann", "workflowId": workflow });
    let properties = lapin::BasicProperties::default().with_message_id(id.into());
    env.rabbitmq.publish(request.to_string(), properties).await;
    env.rabbitmq.next_event().await.data()
}

/// Starts a worker, and waits until it consumes endings.
async fn start_worker(env: &TestEnv) -> Worker {
    let worker = env.start_worker().await;
    env.wait_for_consumer_of_endings().await;
    worker
}

#[tokio::test]
async fn forgotten_link_is_replaced_by_another() {
    let mut env = TestEnv::start().await;
    let worker = start_worker(&env).await;
    let settings = settings(&env);
    let default = settings["HANDOFF_IDV_WORKFLOW_ID"].clone();
    let mut first = Vec::new();
    for workflow in ["w-1", "w-2", &default] {
        first.push(request(&mut env, &format!("first-{workflow}"), workflow).await);
    }

    let both = ["--user", "ann", "--workflow", "w-1", "--workflow", "w-2"];
    let endings = published(&forget(&both, &settings).await);
    assert_eq!(
        endings,
        [
            json!({ "userId": "ann", "workflowId": "w-1" }),
            json!({ "userId": "ann", "workflowId": "w-2" })
        ]
    );
    worker.wait_for_endings("forgotten", 2).await;
    let kept = request(&mut env, "kept", &default).await;
    assert_eq!(kept["sessionId"], first[2]["sessionId"], "of a workflow that was not named");

    let endings = published(&forget(&["--user", "ann"], &settings).await);
    assert_eq!(endings, [json!({ "userId": "ann", "workflowId": default })]);
    worker.wait_for_endings("forgotten", 3).await;
    for (workflow, first) in ["w-1", "w-2", &default].into_iter().zip(&first) {
        let second = request(&mut env, &format!("second-{workflow}"), workflow).await;
        assert_eq!(second["reused"], false, "{workflow}");
        assert_ne!(second["sessionId"], first["sessionId"], "{workflow}");
    }
}

#[tokio::test]
async fn link_is_forgotten_by_session_and_by_user_without_a_known_workflow() {
    let mut env = TestEnv::start().await;
    let worker = start_worker(&env).await;
    let mut settings = settings(&env);
    let default = settings.remove("HANDOFF_IDV_WORKFLOW_ID").unwrap();
    let first = request(&mut env, "r-1", &default).await;
    worker.wait_for_finished(1).await;
    let session = first["sessionId"].as_str().unwrap();
    let endings = published(&forget(&["--session", session], &settings).await);
    assert_eq!(endings, [json!({ "sessionId": session })]);
    worker.wait_for_endings("forgotten", 1).await;

    let second = request(&mut env, "r-2", &default).await;
    assert_ne!(second["sessionId"], first["sessionId"]);
    let session = second["sessionId"].as_str().unwrap();
    let endings = published(&forget(&["--user", "ann", "--session", session], &settings).await);
    assert_eq!(endings, [json!({ "userId": "ann", "sessionId": session })]);
    worker.wait_for_endings("forgotten", 2).await;

    assert_eq!(request(&mut env, "r-3", &default).await["reused"], false);
    // The worker knows its default workflow.
    let endings = published(&forget(&["--user", "ann"], &settings).await);
    assert_eq!(endings, [json!({ "userId": "ann" })]);
    worker.wait_for_endings("forgotten", 3).await;
    assert_eq!(request(&mut env, "r-4", &default).await["reused"], false);
}

#[tokio::test]
async fn ending_that_no_queue_takes_fails_with_what_to_do() {
    let env = TestEnv::start().await;
    let output = forget(&["--user", "ann", "--workflow", "w"], &settings(&env)).await;
    assert_eq!(output.status.code(), Some(1));
    let error = stderr(&output);
    assert!(error.contains("start a worker") && error.contains(&env.ended_queue()), "{error}");
    assert_eq!(output.stdout, b"");
}

#[tokio::test]
async fn ending_is_persistent_with_an_id_and_the_time() {
    let env = TestEnv::start().await;
    start_worker(&env).await.stop().await;
    let queue = env.ended_queue();
    let seconds = || SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let before = seconds();
    let output = forget(&["--session", "s"], &settings(&env)).await;
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    let ending = env.rabbitmq.take(&queue).await;
    let properties = &ending.properties;
    assert_eq!(ending.json(), json!({ "sessionId": "s" }));
    assert_eq!(*properties.delivery_mode(), Some(2));
    let id = properties.message_id().as_ref().map(|id| id.as_str());
    assert_eq!(id, printed["requestId"].as_str());
    assert!((before..=seconds()).contains(&properties.timestamp().unwrap()));
}

#[tokio::test]
async fn bad_usage_is_refused_before_connecting() {
    let url = "amqp://guest:guest@127.0.0.1:1/%2f".to_owned();
    let nowhere = Settings::from([("HANDOFF_AMQP_URL".to_owned(), url)]);
    let long = "x".repeat(1_025);
    for (arguments, word) in [
        (vec![], "--user"),
        (vec!["--workflow", "w"], "--user"),
        (vec!["--session", "s", "--workflow", "w"], "--user"),
        (vec!["--user", ""], "userId"),
        (vec!["--user", "ann", "--workflow", ""], "workflowId"),
        (vec!["--session", &long], "sessionId"),
    ] {
        let output = forget(&arguments, &nowhere).await;
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(word), "{arguments:?}: {}", stderr(&output));
    }
    let output = forget(&["--user", "ann"], &nowhere).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("cannot connect to RabbitMQ"), "{}", stderr(&output));
}
