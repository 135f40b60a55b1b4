//! `handoff run`: the worker.

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::CliError;
use crate::{
    config::{RunSettings, Settings},
    telemetry::logs,
    worker,
};

/// Consumes requests, makes links, publishes events
///
/// Each setting is a flag and an environment variable. Variables marked as secrets may be given as
/// files. Durations are written 250ms, 10s, 5m, 1h.
#[derive(Args)]
#[command(after_help = "Example:\n  \
    HANDOFF_IDV_API_KEY_FILE=/run/secrets/idv-key handoff run --idv-url https://idv.example.com")]
pub(super) struct RunArgs {
    #[command(flatten)]
    settings: RunSettings,
}

pub(super) async fn run(args: RunArgs) -> Result<(), CliError> {
    let settings = Settings::read(&args.settings)?;
    logs::init(&settings.log);
    let shutdown = shutdown_signal().map_err(CliError::failed)?;
    worker::run(settings, shutdown).await.map_err(CliError::failed)
}

/// A token that SIGTERM and SIGINT cancel.
fn shutdown_signal() -> std::io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let shutdown = CancellationToken::new();
    let cancelled = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        cancelled.cancel();
    });
    Ok(shutdown)
}
