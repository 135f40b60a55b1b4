//! Detects a request loop that is stuck.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use tokio::time::{Instant, timeout};

use super::systemd;
use crate::units::millis;

/// How often a waiting loop beats.
const BEAT_EVERY: Duration = Duration::from_secs(1);
/// How long the loop may go without a beat before a restart is the only remedy.
pub(super) const STUCK_AFTER: Duration = Duration::from_secs(60);
const WATCH_EVERY: Duration = Duration::from_secs(5);

/// The time of the request loop's last beat.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    start: Instant,
    /// Milliseconds since `start`.
    last_beat: AtomicU64,
}

impl Heartbeat {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), last_beat: AtomicU64::new(0) }
    }

    /// Records that the loop runs.
    pub(crate) fn beat(&self) {
        self.last_beat.store(millis(self.start.elapsed()), Ordering::Relaxed);
    }

    /// Beats until `wait` is done, which may take indefinitely, as on an empty queue.
    pub(crate) async fn while_waiting<T>(&self, wait: impl Future<Output = T>) -> T {
        let mut wait = std::pin::pin!(wait);
        loop {
            self.beat();
            if let Ok(done) = timeout(BEAT_EVERY, &mut wait).await {
                return done;
            }
        }
    }

    /// Returns the time since the last beat.
    pub(super) fn age(&self) -> Duration {
        let last_beat = Duration::from_millis(self.last_beat.load(Ordering::Relaxed));
        self.start.elapsed().saturating_sub(last_beat)
    }
}

/// Starts a thread that reports to systemd while the loop runs, and logs when it gets stuck and when it recovers.
///
/// A separate thread, because the runtime has only one: whatever blocks the loop blocks every other
/// task, the probes included. The thread ends when `age` returns `None`.
///
/// # Errors
/// The operating system refuses another thread.
pub(super) fn watch(age: impl Fn() -> Option<Duration> + Send + 'static) -> io::Result<()> {
    watch_with(age, STUCK_AFTER, WATCH_EVERY, systemd::alive, |stuck_for| match stuck_for {
        Some(age) => {
            tracing::error!(stuck_s = age.as_secs(), "request loop stuck: restart this worker");
        }
        None => tracing::warn!("request loop running again"),
    })
}

/// Calls `alive` whenever it finds the loop running, and `on_change` with the age of the last beat once the loop is
/// stuck, and with `None` once it runs again.
fn watch_with(
    age: impl Fn() -> Option<Duration> + Send + 'static,
    stuck_after: Duration,
    every: Duration,
    alive: impl Fn() + Send + 'static,
    on_change: impl Fn(Option<Duration>) + Send + 'static,
) -> io::Result<()> {
    let watching = move || {
        let mut was_stuck = false;
        while let Some(age) = age() {
            let stuck = age >= stuck_after;
            if !stuck {
                alive();
            }
            if std::mem::replace(&mut was_stuck, stuck) != stuck {
                on_change(stuck.then_some(age));
            }
            thread::sleep(every);
        }
    };
    thread::Builder::new().name("watchdog".to_owned()).spawn(watching).map(drop)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_waiting_loop_beats_however_long_it_waits() {
        let heartbeat = Heartbeat::new();
        let wait = tokio::time::sleep(Duration::from_secs(300));
        tokio::select! {
            () = heartbeat.while_waiting(wait) => {}
            () = async {
                loop {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    assert!(heartbeat.age() <= BEAT_EVERY, "{:?}", heartbeat.age());
                }
            } => {}
        }
        // A loop that waits without the heartbeat is stuck.
        tokio::time::sleep(STUCK_AFTER).await;
        assert!(heartbeat.age() >= STUCK_AFTER);
        heartbeat.beat();
        assert_eq!(heartbeat.age(), Duration::ZERO);
    }

    // In real time, since the watchdog is a thread.
    #[test]
    fn watchdog_reports_a_stuck_loop_once_and_its_recovery() {
        let heartbeat = Arc::new(Heartbeat::new());
        let (report, reports) = mpsc::channel();
        let (live, lives) = mpsc::channel();
        let watched = Arc::downgrade(&heartbeat);
        let age = move || Some(watched.upgrade()?.age());
        let ms = Duration::from_millis;
        let alive = move || live.send(()).unwrap();
        let on_change = move |stuck_for| report.send(stuck_for).unwrap();
        watch_with(age, ms(100), ms(5), alive, on_change).unwrap();
        lives.recv().unwrap();
        let first = reports.recv().unwrap();
        assert!(first.is_some_and(|age| age >= ms(100)), "{first:?}");
        while lives.try_recv().is_ok() {}
        assert!(reports.recv_timeout(ms(100)).is_err(), "reported twice");
        assert!(lives.try_recv().is_err(), "systemd must restart a stuck worker");
        heartbeat.beat();
        assert_eq!(reports.recv().unwrap(), None);
        lives.recv().unwrap();
        // The thread ends with the heartbeat.
        drop(heartbeat);
        assert!(reports.iter().all(|stuck_for| stuck_for.is_some()));
    }
}
