//! Notices retry queues whose messages do not leave.

use std::time::Duration;

use tokio::time::Instant;

/// How long at least: in a shorter time, a queue through which few copies flow may look the same at each look,
/// and each copy may have gone to another worker.
const MIN_STILL: Duration = Duration::from_secs(120);

/// What the looks at one retry queue have shown.
///
/// A message leaves after the queue's delay. RabbitMQ can fail to expire it (rabbitmq-server#10718, open), or the
/// queue was created without its TTL. AMQP shows only the number of ready messages, so the queue counts as stuck
/// if that has never fallen for twice the delay and no copy came back to this worker.
#[derive(Debug, Default)]
pub(super) struct Progress {
    last: Option<Look>,
    /// Whether it was reported.
    stuck: bool,
}

#[derive(Debug)]
struct Look {
    messages: u32,
    returned: u64,
    /// Since when nothing has left.
    still_since: Instant,
}

/// What a look has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    None,
    Stuck { for_time: Duration },
    Moving,
}

impl Progress {
    /// Records a look: the ready messages, and the copies that this worker has received so far.
    pub(super) fn look(
        &mut self,
        delay: Duration,
        messages: u32,
        returned: u64,
        now: Instant,
    ) -> Change {
        let still_since = match &self.last {
            Some(last)
                if messages > 0 && messages >= last.messages && returned == last.returned =>
            {
                last.still_since
            }
            _ => now,
        };
        self.last = Some(Look { messages, returned, still_since });
        let still = now - still_since;
        let stuck = messages > 0 && still >= MIN_STILL.max(2 * delay);
        match (std::mem::replace(&mut self.stuck, stuck), stuck) {
            (false, true) => Change::Stuck { for_time: still },
            (true, false) => Change::Moving,
            _ => Change::None,
        }
    }

    pub(super) fn is_stuck(&self) -> bool {
        self.stuck
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELAY: Duration = Duration::from_secs(100);

    /// Looks every 10 s with these numbers of messages and returned copies. Returns the numbers of the looks
    /// that changed something.
    fn changes(looks: impl IntoIterator<Item = (u32, u64)>) -> Vec<(usize, bool)> {
        let start = Instant::now();
        let mut progress = Progress::default();
        let mut changes = Vec::new();
        for (number, (messages, returned)) in looks.into_iter().enumerate() {
            let now = start + Duration::from_secs(10) * u32::try_from(number).unwrap();
            match progress.look(DELAY, messages, returned, now) {
                Change::None => {}
                Change::Stuck { for_time } => {
                    assert!(for_time >= 2 * DELAY);
                    changes.push((number, true));
                }
                Change::Moving => changes.push((number, false)),
            }
        }
        changes
    }

    #[test]
    fn messages_that_do_not_leave_for_twice_the_delay_are_stuck() {
        assert_eq!(changes((0..40).map(|_| (3, 0))), [(20, true)]);
        // More arrive, and then all leave.
        let growing = (0..30).map(|number| (1 + number, 5)).chain([(0, 5), (4, 5)]);
        assert_eq!(changes(growing), [(20, true), (30, false)]);
    }

    #[test]
    fn an_empty_queue_and_one_that_moves_are_not_stuck() {
        assert!(changes((0..60).map(|_| (0, 0))).is_empty());
        // Falls at times.
        assert!(changes((0..60).map(|number| (5 + number % 15, 0))).is_empty());
        // Steady, and copies come back.
        assert!(changes((0..60_u32).map(|number| (5, u64::from(number) / 10))).is_empty());
    }

    #[test]
    fn a_short_delay_is_watched_for_two_minutes() {
        let start = Instant::now();
        let mut progress = Progress::default();
        for second in (0..120).step_by(10) {
            let now = start + Duration::from_secs(second);
            assert_eq!(progress.look(Duration::from_secs(1), 1, 0, now), Change::None);
        }
        let now = start + MIN_STILL;
        let stuck = Change::Stuck { for_time: MIN_STILL };
        assert_eq!(progress.look(Duration::from_secs(1), 1, 0, now), stuck);
    }
}
