//! The signals that end a command that would otherwise run for ever.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::CliError;

/// What SIGTERM and SIGINT ask for.
pub(super) struct Signals {
    /// Cancelled by the first: come to an end in good order.
    pub(super) shutdown: CancellationToken,
    /// Cancelled by the second: end at once.
    at_once: CancellationToken,
}

/// Listens for signals from here on.
pub(super) fn listen() -> std::io::Result<Signals> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let signals = Signals { shutdown: CancellationToken::new(), at_once: CancellationToken::new() };
    let cancelled = [signals.shutdown.clone(), signals.at_once.clone()];
    tokio::spawn(async move {
        for token in cancelled {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            token.cancel();
        }
    });
    Ok(signals)
}

impl Signals {
    /// Does something that ends in good order after the first signal, and is left where it stands at
    /// the second.
    pub(super) async fn obey<T>(
        &self,
        command: impl Future<Output = Result<T, CliError>>,
    ) -> Result<T, CliError> {
        tokio::select! {
            done = command => done,
            () = self.at_once.cancelled() => Err(CliError::CutShort),
        }
    }
}
