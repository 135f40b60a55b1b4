//! `handoff schema`.

use std::path::{Path, PathBuf};

use lapin::BasicProperties;
use serde_json::{Value, json};

use crate::support::{
    Node, TempFile, TestEnv,
    worker::{Settings, run},
};

/// What `handoff schema` prints with these arguments.
async fn printed(arguments: &[&str], settings: &Settings) -> String {
    let output = run(&[&["schema"], arguments].concat(), settings).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn docs(file: impl AsRef<Path>) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(file)
}

#[tokio::test]
async fn docs_hold_what_the_command_prints() {
    let documented = std::fs::read_to_string(docs("asyncapi.yaml")).unwrap();
    let printed_now = printed(&[], &Settings::new()).await;
    assert!(printed_now == documented, "it differs: handoff schema > docs/asyncapi.yaml");
    for message in ["request", "request-event", "ending", "ending-event", "ready", "failed"] {
        let file = format!("schemas/{message}.json");
        let documented = std::fs::read_to_string(docs(&file)).unwrap_or_default();
        let arguments = ["--format", "json-schema", "--message", message];
        let remedy = format!("handoff schema {} > docs/{file}", arguments.join(" "));
        let printed_now = printed(&arguments, &Settings::new()).await;
        assert!(printed_now == documented, "it differs: {remedy}");
    }
}

#[tokio::test]
async fn asyncapi_document_describes_the_defaults_whatever_is_set() {
    let settings =
        [("HANDOFF_QUEUE", "mine"), ("HANDOFF_AMQP_URL", "no url"), ("HANDOFF_LOG", "?=?")];
    let settings: Settings =
        settings.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let printed = printed(&[], &settings).await;
    assert!(printed.contains("verification.requested.retry.15m"));
    assert!(!printed.contains("mine"));
}

#[tokio::test]
async fn json_schema_takes_each_message() {
    let schema: Value =
        serde_json::from_str(&printed(&["--format", "json-schema"], &Settings::new()).await)
            .unwrap();
    assert_eq!(schema["definitions"].as_object().unwrap().len(), 6);
    let validator = jsonschema::draft7::new(&schema).unwrap();
    assert!(validator.is_valid(&json!({ "userId": "ann" })));
    assert!(validator.is_valid(&json!({ "sessionId": 7 })));
    assert!(!validator.is_valid(&json!({ "userId": 7 })));
    let output = run(&["schema", "--message", "ready"], &Settings::new()).await;
    assert_eq!(output.status.code(), Some(2), "it is for json-schema alone");
}

/// RabbitMQ itself imports the definitions, and a worker that may not declare anything runs on them.
#[tokio::test]
async fn worker_runs_on_imported_definitions() {
    let mut env = TestEnv::start().await;
    let definitions = printed(&["--format", "definitions"], &env.settings).await;
    // From a file: rabbitmqctl on Erlang/OTP 28 fails if its input is a pipe.
    let file = TempFile::new(&definitions);
    let import = ["import_definitions", file.path(), "--format", "json"];
    Node::shared_rabbitmq().ctl(&import).await;

    env.set("DECLARE_TOPOLOGY", "false");
    let worker = env.start_worker().await;
    env.publish_requests(0..1).await;
    env.expect_all_ready(1).await;
    env.rabbitmq.publish_ending(json!({ "userId": "user-0" }), BasicProperties::default()).await;
    worker.wait_for_endings("forgotten", 1).await;
    worker.stop().await;

    // A worker that declares finds the arguments that it would have chosen.
    env.set("DECLARE_TOPOLOGY", "true");
    env.start_worker().await.stop().await;
}

#[tokio::test]
async fn operator_resources_name_each_object_once() {
    let settings = [("HANDOFF_QUEUE", "Tenant_a.requests"), ("HANDOFF_AMQP_URL", "amqp://h/a")];
    let settings: Settings =
        settings.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let printed = printed(&["--format", "operator", "--cluster", "mq"], &settings).await;
    let documents: Vec<_> = printed.split("---\n").collect();
    // Two exchanges, two bindings, and the queues for requests, endings, dead letters and four delays.
    assert_eq!(documents.len(), 11, "{printed}");
    let mut names: Vec<_> = printed.lines().filter(|line| line.starts_with("  name: ")).collect();
    names.sort_unstable();
    names.dedup();
    assert!(names.contains(&"  name: tenant-a.requests.retry.10s"), "{names:?}");
    for document in documents {
        assert!(document.starts_with("apiVersion: rabbitmq.com/v1beta1\nkind: "), "{document}");
        assert!(document.contains("vhost: a\n"), "{document}");
        assert!(document.contains("rabbitmqClusterReference:\n    name: mq\n"), "{document}");
        assert!(!document.contains("x-queue-type"), "{document}");
    }
}
