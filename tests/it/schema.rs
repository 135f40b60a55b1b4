//! `handoff schema`.

use crate::support::{
    within_timeout,
    worker::{Settings, command},
};

#[tokio::test]
async fn docs_hold_what_the_command_prints() {
    let output =
        within_timeout("its exit", command(&["schema"], &Settings::new()).output()).await.unwrap();
    assert!(output.status.success());
    let printed = String::from_utf8(output.stdout).unwrap();
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/asyncapi.yaml");
    let documented = std::fs::read_to_string(file).unwrap();
    assert!(printed == documented, "it differs: handoff schema > docs/asyncapi.yaml");
}

#[tokio::test]
async fn schema_describes_the_defaults_whatever_is_set() {
    let settings =
        [("HANDOFF_QUEUE", "mine"), ("HANDOFF_AMQP_URL", "no url"), ("HANDOFF_LOG", "?=?")];
    let settings: Settings =
        settings.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let output =
        within_timeout("its exit", command(&["schema"], &settings).output()).await.unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && printed.contains("verification.requested.retry.15m"));
    assert!(!printed.contains("mine"));
}
