//! Limits how often one message is logged, and counts the rest.
//!
//! A failing dependency fails every request, and a line for each would bury all others.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::{
    runtime::Handle,
    time::{Instant, sleep_until},
};

const WINDOW: Duration = Duration::from_secs(60);

/// Permits a message a few times a minute, and logs the number it suppressed.
#[derive(Debug)]
pub(crate) struct LogLimit {
    message: &'static str,
    per_window: u32,
    window: Mutex<Window>,
}

#[derive(Debug)]
struct Window {
    end: Option<Instant>,
    logged: u32,
    suppressed: u64,
    summary_scheduled: bool,
}

impl LogLimit {
    /// Permits `message` `per_window` times a minute.
    pub(crate) const fn new(message: &'static str, per_window: u32) -> Self {
        let window = Window { end: None, logged: 0, suppressed: 0, summary_scheduled: false };
        Self { message, per_window, window: Mutex::new(window) }
    }

    /// Returns whether to log the message now; counts it as suppressed otherwise.
    pub(crate) fn permit(&'static self) -> bool {
        if self.try_permit() {
            return true;
        }
        let mut window = self.window.lock();
        window.suppressed += 1;
        // Outside a runtime, as in a panic on the watchdog's thread, the next call schedules it.
        if !window.summary_scheduled
            && let (Some(end), Ok(runtime)) = (window.end, Handle::try_current())
        {
            window.summary_scheduled = true;
            // If `spawn` panics, the panic hook asks a limit, too.
            drop(window);
            runtime.spawn(async move {
                sleep_until(end).await;
                self.log_summary();
            });
        }
        false
    }

    /// Returns whether to log the message now, and counts nothing.
    fn try_permit(&self) -> bool {
        let now = Instant::now();
        let mut window = self.window.lock();
        if window.end.is_none_or(|end| end <= now) {
            window.end = Some(now + WINDOW);
            window.logged = 0;
            window.summary_scheduled = false;
        }
        let permitted = window.logged < self.per_window;
        window.logged += u32::from(permitted);
        permitted
    }

    fn log_summary(&self) {
        let count = std::mem::take(&mut self.window.lock().suppressed);
        if count > 0 {
            // Not `message`: that is the name of the line's own text.
            let repeated = self.message;
            let window_s = WINDOW.as_secs();
            tracing::warn!(repeated, count, window_s, "repeated messages suppressed");
        }
    }
}

/// A dependency that is up or down, and whether the log says so.
///
/// A recovery is logged only if its outage was. An outage that was suppressed at first is logged later
/// if it lasts.
#[derive(Debug)]
pub(crate) struct Outage {
    limit: &'static LogLimit,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Up,
    DownSuppressed,
    DownLogged,
}

impl Outage {
    pub(crate) const fn new(limit: &'static LogLimit) -> Self {
        Self { limit, state: State::Up }
    }

    /// Records that the dependency is down, and returns whether to log it.
    pub(crate) fn report_down(&mut self) -> bool {
        let permitted = match self.state {
            State::Up => self.limit.permit(),
            State::DownSuppressed => self.limit.try_permit(),
            State::DownLogged => return false,
        };
        self.state = if permitted { State::DownLogged } else { State::DownSuppressed };
        permitted
    }

    /// Records that the dependency is up, and returns whether to log the recovery.
    pub(crate) fn report_up(&mut self) -> bool {
        std::mem::replace(&mut self.state, State::Up) == State::DownLogged
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn suppressed_messages_are_counted_and_summed_up() {
        static LIMIT: LogLimit = LogLimit::new("it failed", 2);
        let suppressed = || LIMIT.window.lock().suppressed;
        let permitted = || (0..10_000).filter(|_| LIMIT.permit()).count();
        assert_eq!(permitted(), 2);
        advance(WINDOW / 2).await;
        assert_eq!((permitted(), suppressed()), (0, 19_998));
        tokio::time::sleep(WINDOW).await;
        assert_eq!(suppressed(), 0, "summed up");
        assert_eq!(permitted(), 2, "a minute later");
        tokio::time::sleep(2 * WINDOW).await;
        assert_eq!(suppressed(), 0, "the second window is summed up, too");
    }

    #[test]
    fn a_message_suppressed_outside_a_runtime_is_summed_up_later() {
        static LIMIT: LogLimit = LogLimit::new("it failed", 1);
        assert!(LIMIT.permit() && !LIMIT.permit());
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_time().start_paused(true).build().unwrap().block_on(async {
            assert!(!LIMIT.permit());
            tokio::time::sleep(2 * WINDOW).await;
            assert_eq!(LIMIT.window.lock().suppressed, 0);
        });
    }

    #[tokio::test(start_paused = true)]
    async fn a_flapping_dependency_is_logged_now_and_then() {
        static LIMIT: LogLimit = LogLimit::new("it is down", 3);
        let mut outage = Outage::new(&LIMIT);
        let mut reports = Vec::new();
        for _ in 0..120 {
            reports.push([
                outage.report_down(),
                outage.report_down(),
                outage.report_up(),
                outage.report_up(),
            ]);
            advance(Duration::from_secs(1)).await;
        }
        let logged = reports.iter().filter(|report| **report == [true, false, true, false]);
        let suppressed = reports.iter().filter(|report| **report == [false; 4]);
        assert_eq!((logged.count(), suppressed.count()), (6, 114));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lasting_outage_is_logged_once_even_if_its_first_line_was_suppressed() {
        static LIMIT: LogLimit = LogLimit::new("it is down", 3);
        let mut outage = Outage::new(&LIMIT);
        assert_eq!((0..9).filter(|_| LIMIT.permit()).count(), 3);
        assert!(!outage.report_down(), "all lines of the window are used");
        advance(WINDOW).await;
        assert!(outage.report_down() && !outage.report_down() && outage.report_up());
    }
}
