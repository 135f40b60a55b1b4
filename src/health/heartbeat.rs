//! Whether the worker's loop still turns.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use tokio::time::{Instant, timeout};

/// How often a loop that waits shows that it could do something.
const BEAT: Duration = Duration::from_secs(1);
/// A loop that has not turned for so long will not by itself.
pub(super) const STUCK_AFTER: Duration = Duration::from_secs(60);
/// How often the watchdog looks.
const WATCH_EVERY: Duration = Duration::from_secs(5);

/// When the loop turned last.
#[derive(Debug)]
pub struct Heartbeat {
    start: Instant,
    /// In milliseconds since the start.
    last: AtomicU64,
}

impl Heartbeat {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), last: AtomicU64::new(0) }
    }

    /// The loop turns.
    pub fn beat(&self) {
        let since = self.start.elapsed().as_millis();
        self.last.store(u64::try_from(since).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Waits for what may be long in coming, be it for ever: an empty queue, say. The loop is not stuck
    /// in there.
    pub async fn while_waiting<T>(&self, wait: impl Future<Output = T>) -> T {
        let mut wait = std::pin::pin!(wait);
        loop {
            self.beat();
            if let Ok(done) = timeout(BEAT, &mut wait).await {
                return done;
            }
        }
    }

    /// How long ago the loop turned last.
    pub fn age(&self) -> Duration {
        self.start
            .elapsed()
            .saturating_sub(Duration::from_millis(self.last.load(Ordering::Relaxed)))
    }
}

/// Watches from a thread of its own for as long as there is a heartbeat: where the one thread that does
/// everything is blocked, nothing on it can tell, the probes neither.
///
/// # Errors
/// When the system has no thread left.
pub(super) fn watch(age: impl Fn() -> Option<Duration> + Send + 'static) -> std::io::Result<()> {
    watch_with(age, STUCK_AFTER, WATCH_EVERY, |stuck, age| match stuck {
        true => tracing::error!(seconds = age.as_secs(), "the loop is stuck: restart the worker"),
        false => tracing::warn!("the loop turns again"),
    })
}

fn watch_with(
    age: impl Fn() -> Option<Duration> + Send + 'static,
    limit: Duration,
    every: Duration,
    tell: impl Fn(bool, Duration) + Send + 'static,
) -> std::io::Result<()> {
    let watching = move || {
        let mut told = false;
        while let Some(age) = age() {
            let stuck = age >= limit;
            if std::mem::replace(&mut told, stuck) != stuck {
                tell(stuck, age);
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
    async fn waiting_is_turning_however_long_it_takes() {
        let heartbeat = Heartbeat::new();
        let wait = tokio::time::sleep(Duration::from_secs(300));
        tokio::select! {
            () = heartbeat.while_waiting(wait) => {}
            () = async {
                loop {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    assert!(heartbeat.age() <= BEAT, "{:?}", heartbeat.age());
                }
            } => {}
        }
        // Whoever waits without it is stuck.
        tokio::time::sleep(STUCK_AFTER).await;
        assert!(heartbeat.age() >= STUCK_AFTER);
        heartbeat.beat();
        assert_eq!(heartbeat.age(), Duration::ZERO);
    }

    /// In real time, since it is about a thread that is blocked.
    #[test]
    fn the_watchdog_tells_of_a_blocked_thread_once_and_of_its_return() {
        let heartbeat = Arc::new(Heartbeat::new());
        let (tell, told) = mpsc::channel();
        let watched = Arc::downgrade(&heartbeat);
        let age = move || Some(watched.upgrade()?.age());
        let ms = Duration::from_millis;
        watch_with(age, ms(100), ms(5), move |stuck, age| tell.send((stuck, age)).unwrap())
            .unwrap();
        let (stuck, age) = told.recv().unwrap();
        assert!(stuck && age >= ms(100), "{age:?}");
        assert!(told.recv_timeout(ms(100)).is_err(), "told twice");
        heartbeat.beat();
        assert!(!told.recv().unwrap().0);
        // It ends with what it watches.
        drop(heartbeat);
        assert!(told.iter().all(|(stuck, _)| stuck));
    }
}
