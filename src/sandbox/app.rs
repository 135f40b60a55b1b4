//! The state that all handlers share.

use std::{
    hash::{BuildHasher, RandomState},
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

use parking_lot::{Mutex, MutexGuard};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    backend::Backend,
    options::Options,
    record::{Fingerprint, Recorder},
    stats::Stats,
    webhook::Webhooks,
};
use crate::units::millis;

/// The state that all handlers share.
pub(super) struct App {
    pub(super) options: Options,
    pub(super) stopping: CancellationToken,
    /// Everything that runs in the background.
    pub(super) tasks: TaskTracker,
    webhooks: Option<Webhooks>,
    started: Instant,
    /// The keys of fingerprints, random so that they mean nothing outside this run.
    fingerprint_keys: [RandomState; 2],
    in_flight: AtomicUsize,
    max_in_flight: AtomicUsize,
    backend: Mutex<Backend>,
}

impl App {
    pub(super) fn new(options: Options, stopping: CancellationToken) -> Self {
        let tasks = TaskTracker::new();
        Self {
            backend: Mutex::new(Backend::new(&options)),
            webhooks: options
                .webhook
                .clone()
                .map(|webhook| Webhooks::new(webhook, tasks.clone(), stopping.clone())),
            options,
            stopping,
            tasks,
            started: Instant::now(),
            fingerprint_keys: [RandomState::new(), RandomState::new()],
            in_flight: AtomicUsize::new(0),
            max_in_flight: AtomicUsize::new(0),
        }
    }

    /// Locks the backend. Never hold the lock across an `.await`.
    pub(super) fn backend(&self) -> MutexGuard<'_, Backend> {
        self.backend.lock()
    }

    pub(super) fn stats(&self) -> Stats {
        Stats {
            max_concurrent_calls: self.max_in_flight.load(Ordering::Relaxed),
            uptime_ms: self.millis_at(Instant::now()),
            webhook_calls: self.webhooks.as_ref().map(Webhooks::counts).unwrap_or_default(),
            ..self.backend().recorder.stats()
        }
    }

    /// Forgets the recorded calls and the counts.
    pub(super) fn reset_records(&self) {
        self.backend().recorder = Recorder::default();
        self.max_in_flight.store(self.in_flight.load(Ordering::Relaxed), Ordering::Relaxed);
        if let Some(webhooks) = &self.webhooks {
            webhooks.reset_counts();
        }
    }

    /// Has the webhook called, if there is one, for a session that has ended. Never waits.
    pub(super) fn report_end(&self, session_id: &str) {
        if let Some(webhooks) = &self.webhooks {
            webhooks.report(session_id);
        }
    }

    /// Reports the sessions whose lifetime is over, until the sandbox stops.
    pub(super) async fn report_timeouts(&self) {
        loop {
            let (ended, next_end) = {
                let Some(open) = &mut self.backend().open_sessions else { return };
                (open.take_ended(Instant::now()), open.until_next_end())
            };
            for session_id in ended {
                self.report_end(&session_id);
            }
            if self.stopping.run_until_cancelled(next_end).await.is_none() {
                return;
            }
        }
    }

    /// Milliseconds from the start of the sandbox to `at`.
    pub(super) fn millis_at(&self, at: Instant) -> u64 {
        millis(at.duration_since(self.started))
    }

    /// Identifies a secret without revealing it.
    pub(super) fn fingerprint(&self, secret: &[u8]) -> Fingerprint {
        Fingerprint(self.fingerprint_keys.each_ref().map(|key| key.hash_one(secret)))
    }

    /// Counts a call as in flight until the guard is dropped.
    pub(super) fn call_in_flight(&self) -> OpenCallGuard<'_> {
        let in_flight = self.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        self.max_in_flight.fetch_max(in_flight, Ordering::Relaxed);
        OpenCallGuard(&self.in_flight)
    }
}

pub(super) struct OpenCallGuard<'a>(&'a AtomicUsize);

impl Drop for OpenCallGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
