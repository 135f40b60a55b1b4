//! Troubles that come again and again are told a few times, and then counted.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    time::{Instant, sleep_until},
};

/// What was not told is told as a number after this long.
const WINDOW: Duration = Duration::from_secs(60);

/// How often one kind of trouble is told within a minute. What comes beyond that is counted, and told
/// in one line at the minute's end.
#[derive(Debug)]
pub(crate) struct LogLimit {
    what: &'static str,
    most: u32,
    window: Mutex<Window>,
}

#[derive(Debug)]
struct Window {
    ends: Option<Instant>,
    told: u32,
    untold: u64,
}

impl LogLimit {
    /// So many a minute of what goes by this name.
    pub(crate) const fn new(what: &'static str, most: u32) -> Self {
        Self { what, most, window: Mutex::new(Window { ends: None, told: 0, untold: 0 }) }
    }

    /// It has happened again. Whether to tell it.
    pub(crate) fn permit(&'static self) -> bool {
        let (told, ends) = self.window().one_more(self.most, Instant::now());
        // Outside of the runtime, where nothing can be told later, the count waits for the next time.
        if let (Some(ends), Ok(runtime)) = (ends, Handle::try_current()) {
            runtime.spawn(async move {
                sleep_until(ends).await;
                self.sum_up();
            });
        }
        told
    }

    /// It goes on. Whether to tell it by now.
    fn permit_late(&'static self) -> bool {
        let free = self.window().is_free(self.most, Instant::now());
        free && self.permit()
    }

    fn sum_up(&self) {
        let times = std::mem::take(&mut self.window().untold);
        if times > 0 {
            let (what, seconds) = (self.what, WINDOW.as_secs());
            tracing::warn!(what, times, seconds, "told before, and not each time since");
        }
    }

    /// The window is whole after every step, so a panic elsewhere does not spoil it.
    fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Window {
    /// Whether to tell it, and until when to count if this is the first that is counted.
    fn one_more(&mut self, most: u32, now: Instant) -> (bool, Option<Instant>) {
        if self.ends.is_none_or(|ends| ends <= now) {
            self.ends = Some(now + WINDOW);
            self.told = 0;
        }
        if self.told < most {
            self.told += 1;
            return (true, None);
        }
        self.untold += 1;
        (false, self.ends.filter(|_| self.untold == 1))
    }

    fn is_free(&self, most: u32, now: Instant) -> bool {
        self.told < most || self.ends.is_none_or(|ends| ends <= now)
    }
}

/// Something that is well or is not. Its end is told if its beginning was, and a beginning that was not
/// told at once is told later if it lasts.
#[derive(Debug)]
pub(crate) struct Outage {
    limit: &'static LogLimit,
    begun: bool,
    told: bool,
}

impl Outage {
    /// All is well.
    pub(crate) const fn new(limit: &'static LogLimit) -> Self {
        Self { limit, begun: false, told: false }
    }

    /// It is not well: now, or still. Whether to tell it.
    pub(crate) fn report_down(&mut self) -> bool {
        let begun = std::mem::replace(&mut self.begun, true);
        let tell = match (begun, self.told) {
            (false, _) => self.limit.permit(),
            (true, false) => self.limit.permit_late(),
            (true, true) => false,
        };
        self.told |= tell;
        tell
    }

    /// It is well. Whether to tell it.
    pub(crate) fn report_up(&mut self) -> bool {
        self.begun = false;
        std::mem::take(&mut self.told)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_not_told_is_counted_and_summed_up() {
        static LIMIT: LogLimit = LogLimit::new("it went wrong", 2);
        let untold = || LIMIT.window().untold;
        let told = || (0..10_000).filter(|_| LIMIT.permit()).count();
        assert_eq!(told(), 2);
        advance(WINDOW / 2).await;
        assert_eq!((told(), untold()), (0, 19_998));
        tokio::time::sleep(WINDOW).await;
        assert_eq!(untold(), 0, "summed up");
        assert_eq!(told(), 2, "a minute later");
    }

    #[tokio::test(start_paused = true)]
    async fn what_flaps_is_told_now_and_then_and_what_lasts_is_told_once() {
        static LIMIT: LogLimit = LogLimit::new("it is away", 3);
        let mut outage = Outage::new(&LIMIT);
        let mut told = Vec::new();
        for _ in 0..120 {
            told.push((
                outage.report_down(),
                outage.report_down(),
                outage.report_up(),
                outage.report_up(),
            ));
            advance(Duration::from_secs(1)).await;
        }
        let lines = told.iter().filter(|told| **told == (true, false, true, false)).count();
        let silent = told.iter().filter(|told| **told == (false, false, false, false)).count();
        assert_eq!((lines, silent), (6, 114));

        let told = (0..3).filter(|_| LIMIT.permit()).count();
        assert_eq!((told, outage.report_down()), (3, false), "too much was told before");
        advance(WINDOW).await;
        assert!(outage.report_down() && !outage.report_down() && outage.report_up());
    }
}
