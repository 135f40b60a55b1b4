//! SIGTERM and SIGINT, for commands that run until they are stopped.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::errors::CliError;

/// The two stages of stopping a command.
pub(super) struct Signals {
    /// Cancelled by the first signal: finish and exit.
    pub(super) shutdown: CancellationToken,
    /// Cancelled by the second signal: exit at once.
    exit: CancellationToken,
}

/// Listens for signals from now on.
pub(super) fn listen() -> Result<Signals, CliError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(CliError::failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(CliError::failed)?;
    let signals = Signals { shutdown: CancellationToken::new(), exit: CancellationToken::new() };
    let stages = [signals.shutdown.clone(), signals.exit.clone()];
    tokio::spawn(async move {
        for stage in stages {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            stage.cancel();
        }
    });
    Ok(signals)
}

impl Signals {
    /// Runs a command, and drops it at the second signal.
    pub(super) async fn cut_short<T>(
        &self,
        command: impl Future<Output = T>,
    ) -> Result<T, CliError> {
        self.exit.run_until_cancelled(command).await.ok_or(CliError::CutShort)
    }
}
