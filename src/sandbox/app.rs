//! The state that all handlers share.

use std::{
    hash::{BuildHasher, RandomState},
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

use parking_lot::{Mutex, MutexGuard};
use tokio_util::sync::CancellationToken;

use super::{
    backend::Backend,
    options::Options,
    record::{Fingerprint, Recorder},
    stats::Stats,
};
use crate::units::millis;

/// The state that all handlers share.
pub(super) struct App {
    pub(super) options: Options,
    pub(super) stopping: CancellationToken,
    started: Instant,
    /// The keys of fingerprints, random so that they mean nothing outside this run.
    fingerprint_keys: [RandomState; 2],
    in_flight: AtomicUsize,
    max_in_flight: AtomicUsize,
    backend: Mutex<Backend>,
}

impl App {
    pub(super) fn new(options: Options, stopping: CancellationToken) -> Self {
        Self {
            backend: Mutex::new(Backend::new(&options)),
            options,
            stopping,
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
            ..self.backend().recorder.stats()
        }
    }

    /// Forgets the recorded calls and the counts.
    pub(super) fn reset_records(&self) {
        self.backend().recorder = Recorder::default();
        self.max_in_flight.store(self.in_flight.load(Ordering::Relaxed), Ordering::Relaxed);
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
