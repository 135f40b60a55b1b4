//! `handoff schema`: prints the AsyncAPI document.

use clap::Args;

use super::{errors::CliError, output::print_text};
use crate::{config::BrokerSettings, schema};

/// Prints an AsyncAPI 3 document of requests, events and queues
///
/// It contains the JSON Schema of each message with examples, and the exchange or queue of each. Names
/// are the default ones.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    handoff schema > asyncapi.yaml\n  \
    npx @asyncapi/cli generate fromTemplate asyncapi.yaml @asyncapi/html-template")]
pub(super) struct SchemaArgs {}

pub(super) fn run(_: &SchemaArgs) -> Result<(), CliError> {
    let settings = BrokerSettings::defaults().map_err(CliError::failed)?;
    print_text(
        schema::asyncapi(&settings).map_err(|error| {
            CliError::Failed(format!("cannot write the document as YAML: {error}"))
        })?,
    )
}
