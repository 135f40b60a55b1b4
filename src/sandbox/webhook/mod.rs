//! Calls a URL when a session ends, as the platform's webhook does.
//!
//! Each session's call is a task of its own, so that no page waits for the receiver.

mod endpoint;
mod open_sessions;

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::sleep,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::endpoint::Webhook;
use self::endpoint::WebhookError;
pub(super) use self::open_sessions::OpenSessions;
use super::{log, stats::CallCounts};
use crate::retry::Backoff;

/// How many calls may wait. Further ones are dropped, so that a receiver that is down costs bounded memory.
const MAX_WAITING: usize = 10_000;
/// How many calls are in flight at once.
const MAX_IN_FLIGHT: usize = 8;
/// How often the call for one session is tried. The delays add up to about half a minute.
const TRIES: u32 = 8;
const FIRST_DELAY: Duration = Duration::from_millis(500);
const MAX_DELAY: Duration = Duration::from_secs(10);

/// Calls a webhook for the sessions that end.
pub(super) struct Webhooks {
    caller: Arc<Caller>,
    waiting: Arc<Semaphore>,
    tasks: TaskTracker,
}

struct Caller {
    webhook: Webhook,
    in_flight: Semaphore,
    counts: Mutex<CallCounts>,
    stopping: CancellationToken,
}

impl Webhooks {
    pub(super) fn new(webhook: Webhook, tasks: TaskTracker, stopping: CancellationToken) -> Self {
        let caller = Caller {
            webhook,
            in_flight: Semaphore::new(MAX_IN_FLIGHT),
            counts: Mutex::default(),
            stopping,
        };
        Self { caller: Arc::new(caller), waiting: Arc::new(Semaphore::new(MAX_WAITING)), tasks }
    }

    /// Has the webhook called for a session that has ended. Never waits.
    pub(super) fn report(&self, session_id: &str) {
        match Arc::clone(&self.waiting).try_acquire_owned() {
            Ok(permit) => {
                self.tasks.spawn(Arc::clone(&self.caller).deliver(session_id.into(), permit));
            }
            Err(_) => log::webhook_dropped("too many calls are waiting"),
        }
    }

    /// All tries, by their answers.
    pub(super) fn counts(&self) -> CallCounts {
        self.caller.counts.lock().clone()
    }

    pub(super) fn reset_counts(&self) {
        *self.caller.counts.lock() = CallCounts::default();
    }
}

impl Caller {
    /// Calls the webhook for one session, again if the receiver does not take it. When the sandbox stops, only the
    /// call in flight goes on.
    async fn deliver(self: Arc<Self>, session_id: Box<str>, _waiting: OwnedSemaphorePermit) {
        let mut backoff = Backoff::between(FIRST_DELAY, MAX_DELAY);
        let mut attempt = 1;
        loop {
            let Some(called) = self.call(&session_id).await else { break };
            let error = match called {
                Ok(status) => return log::webhook_called(status, attempt),
                Err(error) if attempt == TRIES => return log::webhook_given_up(&error, attempt),
                Err(error) => error,
            };
            let delay = backoff.next_delay();
            log::webhook_failed(&error, attempt, delay);
            if self.stopping.run_until_cancelled(sleep(delay)).await.is_none() {
                break;
            }
            attempt += 1;
        }
        log::webhook_dropped("the sandbox is stopping");
    }

    /// Calls the webhook once, and counts the call. Waits while too many others are in flight; `None` if the sandbox
    /// stops meanwhile.
    async fn call(&self, session_id: &str) -> Option<Result<u16, WebhookError>> {
        let _in_flight = tokio::select! {
            biased;
            permit = self.in_flight.acquire() => permit,
            () = self.stopping.cancelled() => return None,
        };
        let called = self.webhook.call(session_id).await;
        let status = called.as_ref().map_or_else(WebhookError::status, |status| Some(*status));
        self.counts.lock().add(status);
        Some(called)
    }
}
