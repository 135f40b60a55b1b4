//! `handoff schema`: prints descriptions of messages and queues for other tools.

use clap::{Args, ValueEnum};
use serde_json::Value;

use super::{errors::CliError, output::print_text};
use crate::{
    broker::Topology,
    config::{BrokerFlags, BrokerSettings},
    schema::{self, Message},
};

/// Prints descriptions of requests, events and queues for other tools
///
/// By default, it is an AsyncAPI 3 document, which contains the JSON Schema of each message with examples, and the
/// exchange or queue of each, by their default names. The formats `definitions` and `operator` contain the exchanges,
/// queues and bindings that a worker with these settings needs, for workers that may not declare them
/// (HANDOFF_DECLARE_TOPOLOGY=false).
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    handoff schema > asyncapi.yaml\n  \
    npx @asyncapi/cli generate fromTemplate asyncapi.yaml @asyncapi/html-template\n  \
    handoff schema --format json-schema --message ready > ready.json\n  \
    handoff schema --format definitions > handoff.json && rabbitmqctl import_definitions handoff.json\n  \
    handoff schema --format operator --cluster rabbitmq | kubectl apply --filename -")]
pub(super) struct SchemaArgs {
    /// What to print
    #[arg(long, value_enum, default_value_t = Format::Asyncapi)]
    format: Format,
    /// The only message to describe; for json-schema
    #[arg(long, value_enum, value_name = "MESSAGE")]
    message: Option<Message>,
    /// The RabbitmqCluster to refer to; for operator
    #[arg(long, value_name = "NAME", default_value = "rabbitmq")]
    cluster: String,
    #[command(flatten)]
    settings: BrokerFlags,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// An AsyncAPI 3 document, as YAML
    Asyncapi,
    /// The JSON Schemas of the messages (draft 7)
    JsonSchema,
    /// Definitions that RabbitMQ imports, as JSON
    Definitions,
    /// Resources of RabbitMQ's messaging topology operator, as YAML
    Operator,
}

pub(super) fn run(args: &SchemaArgs) -> Result<(), CliError> {
    if args.message.is_some() && args.format != Format::JsonSchema {
        return Err(CliError::Usage("--message is for --format json-schema alone".to_owned()));
    }
    print_text(match args.format {
        Format::Asyncapi => {
            let settings = BrokerSettings::defaults().map_err(CliError::failed)?;
            schema::asyncapi(&settings).map_err(not_written)?
        }
        Format::JsonSchema => json(&schema::json_schema(args.message))?,
        Format::Definitions => {
            let (topology, vhost) = topology(&args.settings)?;
            json(&schema::definitions(&topology, &vhost))?
        }
        Format::Operator => {
            let (topology, vhost) = topology(&args.settings)?;
            let resources = schema::operator_resources(&topology, &vhost, &args.cluster);
            let documents: Result<Vec<_>, _> = resources.iter().map(schema::yaml).collect();
            documents.map_err(not_written)?.join("---\n")
        }
    })
}

/// The topology of these settings, and its virtual host.
fn topology(flags: &BrokerFlags) -> Result<(Topology, String), CliError> {
    let (settings, _) = BrokerSettings::parse(flags)?;
    Ok((Topology::new(&settings), settings.nodes.current().vhost().to_owned()))
}

fn json(value: &Value) -> Result<String, CliError> {
    serde_json::to_string_pretty(value).map(|text| text + "\n").map_err(not_written)
}

fn not_written(error: impl std::fmt::Display) -> CliError {
    CliError::Failed(format!("cannot write the document: {error}"))
}
