//! Reports the worker's state to systemd, for `Type=notify` with `WatchdogSec`.
//!
//! Elsewhere there is no `NOTIFY_SOCKET`, and each call does nothing.

use sd_notify::{NotifyState, notify};

/// Reports that the worker has started. It is ready in the sense of systemd: it waits for RabbitMQ and Redis by
/// itself, and other units need not.
pub(super) fn started() {
    let state = [NotifyState::Ready, NotifyState::Status(status(false))];
    if let Err(error) = notify(&state) {
        // systemd ends a service that never reports its start.
        tracing::warn!(%error, "cannot report to systemd (NOTIFY_SOCKET)");
    }
}

/// Reports that the request loop runs. systemd restarts the worker after `WatchdogSec` without a report.
pub(super) fn alive() {
    let _ = notify(&[NotifyState::Watchdog]);
}

/// Sets what `systemctl status` shows.
pub(super) fn consuming(consuming: bool) {
    let _ = notify(&[NotifyState::Status(status(consuming))]);
}

/// Reports that the worker shuts down.
pub(super) fn stopping() {
    let _ = notify(&[NotifyState::Stopping, NotifyState::Status("finishing requests in flight")]);
}

fn status(consuming: bool) -> &'static str {
    if consuming { "consuming requests" } else { "not connected to RabbitMQ" }
}
