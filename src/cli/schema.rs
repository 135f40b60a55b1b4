//! `handoff schema`: what is on RabbitMQ, for machines.

use std::io::{Write, stdout};

use clap::Args;

use super::CliError;
use crate::schema;

/// Prints an AsyncAPI 3 document of requests, events and queues
///
/// It holds the JSON Schema of each message, with examples, and where on RabbitMQ each of them goes.
/// Names are those that hold by default.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    handoff schema > asyncapi.yaml\n  \
    npx @asyncapi/cli generate fromTemplate asyncapi.yaml @asyncapi/html-template")]
pub(super) struct SchemaArgs {}

pub(super) fn run(_: &SchemaArgs) -> Result<(), CliError> {
    let document = schema::asyncapi().map_err(CliError::failed)?;
    stdout().write_all(document.as_bytes()).map_err(CliError::failed)
}
