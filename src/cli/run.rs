//! `handoff run`: runs the worker.

use clap::Args;

use super::{errors::CliError, logging, signals};
use crate::{
    config::{RunFlags, Settings},
    health, worker,
};

/// Consumes requests, makes links, publishes events
///
/// Each setting is a flag and an environment variable; the flag wins. Secrets can be read from files,
/// with flags that end in -file and variables that end in _FILE. Durations are written 250ms, 10s, 5m
/// or 1h.
#[derive(Args)]
#[command(after_help = "Example:\n  \
    HANDOFF_IDV_API_KEY_FILE=/run/secrets/idv-key handoff run --idv-url https://idv.example.com")]
pub(super) struct RunArgs {
    #[command(flatten)]
    settings: RunFlags,
}

pub(super) async fn run(args: RunArgs) -> Result<(), CliError> {
    let settings = Settings::parse(&args.settings)?;
    logging::init(&settings.log);
    let signals = signals::listen()?;
    let listener = health::listen(settings.worker.http_addr).await.map_err(CliError::failed)?;
    let run = worker::run(settings, listener, signals.shutdown.clone());
    signals.cut_short(run).await?.map_err(CliError::failed)
}
