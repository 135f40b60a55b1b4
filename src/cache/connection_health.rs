//! What operations learn about the Redis connection, and what the keeper waits for.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use deadpool_redis::redis::{ErrorKind, RedisError, ServerErrorKind};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::error::describe;

/// Shared by the operations, which report their results, and the keeper, which replaces connections.
///
/// Connections are numbered, so that a late error of an earlier connection is not held against the
/// current one.
#[derive(Default)]
pub(super) struct ConnectionHealth {
    /// The latest connection that an operation reported as failed.
    failed: AtomicU64,
    failure: Notify,
    /// The last operation failed, on whichever connection.
    degraded: AtomicBool,
    recovery: Notify,
    /// The connection on which Redis itself said that it is unusable, and the code it gave: a
    /// read-only replica, for example.
    unusable: Mutex<Option<(u64, String)>>,
}

impl ConnectionHealth {
    pub(super) fn is_degraded(&self) -> bool {
        self.degraded.load(Ordering::Relaxed)
    }

    pub(super) fn record_success(&self) {
        if self.degraded.swap(false, Ordering::Relaxed) {
            self.recovery.notify_one();
        }
    }

    pub(super) fn record_error(&self, connection: u64, error: &RedisError) {
        self.degraded.store(true, Ordering::Relaxed);
        if concerns_connection(error) {
            if error.code().is_some() {
                *self.unusable.lock() = Some((connection, describe(error)));
            }
            self.record_failed_connection(connection);
        }
    }

    pub(super) fn record_timeout(&self, connection: u64) {
        self.degraded.store(true, Ordering::Relaxed);
        self.record_failed_connection(connection);
    }

    /// A new connection starts without the failures of the one before.
    pub(super) fn reset(&self) {
        self.degraded.store(false, Ordering::Relaxed);
    }

    /// Waits until an operation reports this connection, or a later one, as failed.
    pub(super) async fn failed(&self, connection: u64) {
        while self.failed.load(Ordering::Relaxed) < connection {
            self.failure.notified().await;
        }
    }

    /// Waits until an operation succeeds after one that failed.
    pub(super) async fn recovered(&self) {
        self.recovery.notified().await;
    }

    /// Takes the code with which Redis called this connection unusable, if it did.
    pub(super) fn take_unusable(&self, connection: u64) -> Option<String> {
        let (number, code) = self.unusable.lock().take()?;
        (number == connection).then_some(code)
    }

    fn record_failed_connection(&self, connection: u64) {
        self.failed.fetch_max(connection, Ordering::Relaxed);
        self.failure.notify_one();
    }
}

/// Whether another connection might do better, for example one to the new primary after a failover.
fn concerns_connection(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::Server(kind) => matches!(
            kind,
            ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown | ServerErrorKind::BusyLoading
        ),
        // The answer arrived whole, so the connection works.
        ErrorKind::UnexpectedReturnType | ErrorKind::Extension | ErrorKind::Client => false,
        _ => true,
    }
}
