//! The sessions whose end has not been reported.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::Notify, time::sleep};

/// The sessions whose end has not been reported, by the time at which their lifetime is over.
///
/// A session is removed when it ends, so that its end is reported once, however it ends.
#[derive(Default)]
pub(in crate::sandbox) struct OpenSessions {
    by_end: BTreeSet<(Instant, Box<str>)>,
    /// The earliest end may have changed.
    changed: Arc<Notify>,
}

impl OpenSessions {
    pub(in crate::sandbox) fn add(&mut self, id: &str, ends_at: Instant) {
        self.by_end.insert((ends_at, id.into()));
        if self.by_end.first().is_some_and(|(_, first)| **first == *id) {
            self.changed.notify_one();
        }
    }

    /// Removes a session that has ended. Returns whether its end is to be reported.
    pub(in crate::sandbox) fn remove(&mut self, id: &str, ends_at: Instant) -> bool {
        self.by_end.remove(&(ends_at, id.into()))
    }

    /// Ends all sessions.
    pub(in crate::sandbox) fn end_all(&mut self, now: Instant) {
        let sessions = std::mem::take(&mut self.by_end);
        self.by_end = sessions.into_iter().map(|(at, id)| (at.min(now), id)).collect();
        self.changed.notify_one();
    }

    /// Removes the sessions whose lifetime is over, and returns their ids.
    pub(in crate::sandbox) fn take_ended(&mut self, now: Instant) -> Vec<Box<str>> {
        let mut ended = Vec::new();
        while self.by_end.first().is_some_and(|(at, _)| *at <= now) {
            ended.extend(self.by_end.pop_first().map(|(_, id)| id));
        }
        ended
    }

    /// Waits until a session's lifetime may be over. Does not borrow, since the sessions are behind a lock.
    pub(in crate::sandbox) fn until_next_end(&self) -> impl Future<Output = ()> + use<> {
        let next = self.by_end.first().map(|(at, _)| *at);
        let changed = Arc::clone(&self.changed);
        async move {
            // Without a session, until one is added.
            let wait =
                next.map_or(Duration::MAX, |at| at.saturating_duration_since(Instant::now()));
            tokio::select! {
                () = sleep(wait) => {}
                () = changed.notified() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ended: Vec<Box<str>>) -> String {
        ended.join(" ")
    }

    #[test]
    fn each_session_ends_once() {
        let start = Instant::now();
        let second = |s| start + Duration::from_secs(s);
        let mut open = OpenSessions::default();
        for (id, ends_at) in [("late", 30), ("early", 10), ("same", 10), ("finished", 10)] {
            open.add(id, second(ends_at));
        }
        assert!(open.remove("finished", second(10)));
        assert!(!open.remove("finished", second(10)) && !open.remove("unknown", second(10)));
        assert_eq!(ids(open.take_ended(second(9))), "");
        assert_eq!(ids(open.take_ended(second(10))), "early same");
        assert!(!open.remove("early", second(10)));
        open.end_all(second(11));
        assert_eq!(ids(open.take_ended(second(11))), "late");
        assert_eq!(ids(open.take_ended(second(99))), "");
    }

    #[tokio::test(start_paused = true)]
    async fn wait_ends_early_when_an_earlier_end_is_added() {
        let mut open = OpenSessions::default();
        let wait = open.until_next_end();
        open.add("a", Instant::now() + Duration::from_secs(60));
        wait.await;
        let wait = open.until_next_end();
        open.end_all(Instant::now());
        wait.await;
        assert_eq!(ids(open.take_ended(Instant::now())), "a");
    }
}
