//! `handoff forget`: publishes the end of verifications, so that their links are not handed out again.

use clap::Args;
use serde_json::Value;
use uuid::Uuid;

use super::{
    errors::CliError,
    logging,
    output::{object, print_json},
};
use crate::{
    broker::PublishError,
    client::EndingClient,
    config::{BrokerFlags, BrokerSettings},
    message::decode_ending,
};

/// Ends verifications, so that workers forget their links
///
/// Publishes a `verification.ended` for each workflow, waits until RabbitMQ has confirmed it, and prints it on stdout,
/// one JSON object a line. The person's next request gets a new link. Links are stored per workflow: to erase
/// a person, name each workflow that was used.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    handoff forget --user ann --workflow onboarding --workflow age-check\n  \
    handoff forget --session 65f1c0ffee0ddba11ca7beef")]
pub(super) struct ForgetArgs {
    /// The user whose link to forget
    #[arg(long, value_name = "ID", required_unless_present = "session")]
    user: Option<String>,
    /// The workflow of the link; repeatable [default: HANDOFF_IDV_WORKFLOW_ID, or the worker's]
    #[arg(long, value_name = "ID", requires = "user")]
    workflow: Vec<String>,
    /// The session whose link to forget; with --user, only if it is that user's
    #[arg(long, value_name = "ID")]
    session: Option<String>,
    #[command(flatten)]
    settings: BrokerFlags,
}

pub(super) async fn run(args: ForgetArgs) -> Result<(), CliError> {
    let (config, log, default_workflow) = BrokerSettings::parse_with_workflow(&args.settings)?;
    let endings = endings(&args, default_workflow)?;
    logging::init(&log);
    let client = EndingClient::connect(&config).await.map_err(CliError::not_connected)?;
    let result = publish(&client, endings).await;
    client.close().await;
    result
}

/// The data objects to publish: one for each workflow.
fn endings(args: &ForgetArgs, default_workflow: Option<String>) -> Result<Vec<Value>, CliError> {
    let ending = |workflow: Option<&String>| {
        let text = |text: Option<&String>| text.map(|text| Value::from(text.as_str()));
        let data = object([
            ("userId", text(args.user.as_ref())),
            ("workflowId", text(workflow)),
            ("sessionId", text(args.session.as_ref())),
        ]);
        // Only the worker knows whether it has a default workflow, so this assumes one.
        let decoded = decode_ending(data.to_string().as_bytes(), usize::MAX, Some("default"));
        decoded.ending.map(|_| data).map_err(CliError::Usage)
    };
    if args.workflow.is_empty() {
        let workflow = default_workflow.filter(|_| args.user.is_some());
        return Ok(vec![ending(workflow.as_ref())?]);
    }
    args.workflow.iter().map(|workflow| ending(Some(workflow))).collect()
}

async fn publish(client: &EndingClient, endings: Vec<Value>) -> Result<(), CliError> {
    for mut ending in endings {
        let id = Uuid::new_v4().to_string();
        let published = client.publish(&id, ending.to_string().as_bytes()).await;
        published.map_err(|error| CliError::Failed(why_not_published(&error, client.queue())))?;
        // The worker's log has the ending under this id.
        ending["requestId"] = id.into();
        print_json(&ending.to_string())?;
    }
    Ok(())
}

fn why_not_published(error: &PublishError, queue: &str) -> String {
    match error {
        PublishError::Unroutable => format!(
            "nothing is forgotten: no queue takes endings; start a worker, which declares `{queue}` and binds \
             it, or see its log for why it could not"
        ),
        error => format!("cannot publish the ending: {error}"),
    }
}
