//! A model of the platform, which records when each replica called.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use crate::{
    platform::{CallError, TransientCause},
    session::Call,
};

const LATENCY: Duration = Duration::from_millis(200);
/// How fast a platform that is down fails.
const FAILURE: Duration = Duration::from_millis(50);

pub(super) struct Platform {
    is_up: AtomicBool,
    makes_sessions: AtomicBool,
    began: Instant,
    sessions: AtomicU64,
    pub(super) calls: Mutex<Vec<Called>>,
    /// When good answers were given.
    pub(super) answers: Mutex<Vec<Duration>>,
}

#[derive(Clone, Copy)]
pub(super) struct Called {
    /// Since the start of the scenario.
    pub(super) at: Duration,
    pub(super) replica: usize,
}

impl Platform {
    pub(super) fn new() -> Self {
        Self {
            is_up: AtomicBool::new(true),
            makes_sessions: AtomicBool::new(true),
            began: Instant::now(),
            sessions: AtomicU64::new(0),
            calls: Mutex::default(),
            answers: Mutex::default(),
        }
    }

    pub(super) fn set_up(&self, is_up: bool) {
        self.is_up.store(is_up, Ordering::Relaxed);
    }

    /// While it makes none, it still answers token calls.
    pub(super) fn set_makes_sessions(&self, makes_sessions: bool) {
        self.makes_sessions.store(makes_sessions, Ordering::Relaxed);
    }

    pub(super) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// The sessions that were made.
    pub(super) fn sessions(&self) -> u64 {
        self.sessions.load(Ordering::Relaxed)
    }

    /// Makes a call. A session call returns the session.
    pub(super) async fn call(&self, replica: usize, call: Call) -> Result<u64, CallError> {
        self.calls.lock().push(Called { at: self.now(), replica });
        let is_made = call == Call::Token || self.makes_sessions.load(Ordering::Relaxed);
        if !self.is_up.load(Ordering::Relaxed) || !is_made {
            sleep(FAILURE).await;
            return Err(CallError::Transient { call, cause: TransientCause::Connection });
        }
        sleep(LATENCY).await;
        self.answers.lock().push(self.now());
        Ok(match call {
            Call::Token => 0,
            Call::Session | Call::Deeplink => self.sessions.fetch_add(1, Ordering::Relaxed) + 1,
        })
    }

    /// The number of calls in each second of the scenario.
    pub(super) fn calls_by_second(&self) -> Vec<u32> {
        let mut seconds = vec![0; usize::try_from(self.now().as_secs()).unwrap() + 1];
        for call in self.calls.lock().iter() {
            seconds[usize::try_from(call.at.as_secs()).unwrap()] += 1;
        }
        seconds
    }

    /// The calls of each replica within a range of time.
    pub(super) fn calls_by_replica(
        &self,
        replicas: usize,
        from: Duration,
        to: Duration,
    ) -> Vec<u32> {
        let mut by_replica = vec![0; replicas];
        for call in self.calls.lock().iter().filter(|call| (from..to).contains(&call.at)) {
            by_replica[call.replica] += 1;
        }
        by_replica
    }

    /// The most calls in any window of this length, within a range of time.
    pub(super) fn most_in(&self, window: Duration, from: Duration, to: Duration) -> usize {
        let calls = self.calls.lock();
        let times: Vec<_> =
            calls.iter().map(|call| call.at).filter(|at| (from..to).contains(at)).collect();
        let mut first = 0;
        let mut most = 0;
        for (last, at) in times.iter().enumerate() {
            while times[first] + window <= *at {
                first += 1;
            }
            most = most.max(last + 1 - first);
        }
        most
    }
}
