//! `handoff schema`: prints the AsyncAPI document.

use clap::Args;

use super::{errors::CliError, output::print_text};
use crate::schema;

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
    print_text(schema::asyncapi().map_err(CliError::failed)?)
}
