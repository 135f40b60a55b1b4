//! The prefetch window: how many deliveries RabbitMQ may have in flight to this worker.
//!
//! A poison message kills its worker or breaks its connection. RabbitMQ then counts a redelivery for
//! every message that was in flight, and dead-letters each one past the queue's delivery limit (20).
//! Behind a wide window, one poison message gets its neighbours dead-lettered, too. The window therefore
//! isolates suspects: messages that RabbitMQ has redelivered ten times or more.
//!
//! - **Growing**: a connection starts with a window of one, unless it replaces one that still serves. A
//!   message with few redeliveries opens the window fully, and so does a queue that is idle from the start.
//!   A suspect only doubles it, once all earlier deliveries are settled. Most suspects are harmless:
//!   RabbitMQ up to 4.2 also counts messages that a worker merely returned.
//! - **Full**: a suspect is served alone, on a connection that then ends.
//! - **One at a time**: entered after a delivery broke the connection. The culprit is one of at most a
//!   full window of messages, so after that many deliveries the window grows again; earlier if the
//!   queue is idle, or if a delivery takes long, which a poison message does not.
//!
//! RabbitMQ sends a full window at once, and lapin keeps each message whole in memory. Hence one more phase:
//!
//! - **Narrow**: entered with a large message, with as many deliveries as have room at that size. It
//!   doubles as smaller ones arrive, and does not wait until they are settled.

use std::time::Duration;

use crate::broker::{MAX_WHEN_FETCHING, SUSPECT_REDELIVERIES};

/// A new connection takes the queue for idle after this long without a delivery.
const IDLE: Duration = Duration::from_millis(200);
/// The same after a break. Longer, because the poison message may still be on its way back to the queue.
const IDLE_AFTER_BREAK: Duration = Duration::from_secs(1);

/// How many deliveries may be in flight, and why.
#[derive(Debug)]
pub(super) struct PrefetchWindow {
    max: u16,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// `received` deliveries since the window reached this size.
    Growing { size: u16, received: u16 },
    /// `trusted`: the window grew over suspects that were harmless, so it isolates no more of them.
    Full { trusted: bool },
    /// `received` deliveries since the connection broke.
    OneAtATime { received: u16 },
    /// `received` small deliveries since the window reached this size, or since the last large one.
    Narrow { size: u16, received: u16 },
}

/// What the consumer does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Keep,
    /// Raise the prefetch to `to`: now, or once all earlier deliveries are settled.
    Grow {
        to: u16,
        when_settled: bool,
    },
    /// Stop fetching until there is room for more large messages, then go on with a prefetch of `to`.
    Narrow {
        to: u16,
    },
    /// Go on fetching, once there is room.
    Resume,
    /// Serve this delivery with nothing else in flight.
    ServeAlone,
}

impl PrefetchWindow {
    /// A window that grows from one to `max` deliveries.
    pub(super) fn new(max: u16) -> Self {
        Self { max, phase: Phase::initial(max) }
    }

    /// How many deliveries RabbitMQ may have in flight.
    pub(super) fn size(&self) -> u16 {
        match self.phase {
            Phase::Growing { size, .. } | Phase::Narrow { size, .. } => size,
            Phase::Full { .. } => self.max,
            Phase::OneAtATime { .. } => 1,
        }
    }

    /// A window that is open from the start and isolates no suspects: for messages that cannot be poison.
    pub(super) fn open(max: u16) -> Self {
        Self { max, phase: Phase::Full { trusted: true } }
    }

    /// Prepares for a new connection after a lost one. If it is still one at a time, that starts over.
    pub(super) fn on_reconnect(&mut self) {
        self.phase = match self.phase {
            Phase::OneAtATime { .. } => Phase::OneAtATime { received: 0 },
            Phase::Narrow { .. } => Phase::Narrow { size: 1, received: 0 },
            Phase::Growing { .. } | Phase::Full { .. } => Phase::initial(self.max),
        };
    }

    /// A delivery broke the connection: the next connection fetches one message at a time.
    pub(super) fn on_poison(&mut self) {
        self.phase = Phase::OneAtATime { received: 0 };
    }

    pub(super) fn is_one_at_a_time(&self) -> bool {
        matches!(self.phase, Phase::OneAtATime { .. })
    }

    /// How long the queue must bring nothing, although it could, before [`Self::on_idle`]. `None`: idle time
    /// is ignored in this phase.
    pub(super) fn idle_after(&self) -> Option<Duration> {
        match self.phase {
            Phase::Growing { size: 1, received: 0 } => Some(IDLE),
            Phase::OneAtATime { .. } => Some(IDLE_AFTER_BREAK),
            _ => None,
        }
    }

    /// The queue is empty, so it holds no poison message.
    pub(super) fn on_idle(&mut self) -> Next {
        self.phase = Phase::Full { trusted: false };
        if self.max == 1 { Next::Keep } else { Next::Grow { to: self.max, when_settled: false } }
    }

    /// One at a time, a delivery is still in flight after several seconds: it waits for the platform, and
    /// must not hold up the others. The window starts over, and does not count that delivery.
    pub(super) fn on_slow_delivery(&mut self) -> Next {
        self.phase = Phase::initial(self.max);
        Next::Grow { to: 1, when_settled: false }
    }

    /// Large messages did not fit into memory: they are fetched again, one by one.
    pub(super) fn on_no_room(&mut self) -> Next {
        if !self.is_one_at_a_time() {
            self.phase = Phase::Narrow { size: 1, received: 0 };
        }
        Next::Narrow { to: 1 }
    }

    /// A delivery arrived that was fetched before the window was narrowed: it does not grow the window.
    pub(super) fn on_delivery_while_paused(&self, redeliveries: u32) -> Next {
        match self.phase {
            Phase::Narrow { .. } if redeliveries >= SUSPECT_REDELIVERIES => Next::ServeAlone,
            _ => Next::Keep,
        }
    }

    /// A delivery arrived; RabbitMQ has redelivered it `redeliveries` times, and it takes `large_bytes` of
    /// memory if it is large.
    pub(super) fn on_delivery(&mut self, redeliveries: u32, large_bytes: Option<usize>) -> Next {
        let suspect = redeliveries >= SUSPECT_REDELIVERIES;
        if let Some(bytes) = large_bytes
            && !self.is_one_at_a_time()
            && !(suspect && self.isolates_suspects())
        {
            return self.on_large(bytes);
        }
        match self.phase {
            Phase::OneAtATime { received } => {
                let received = received + 1;
                self.phase = if received < self.max {
                    Phase::OneAtATime { received }
                } else {
                    Phase::initial(self.max)
                };
                Next::Keep
            }
            _ if suspect && self.isolates_suspects() => Next::ServeAlone,
            Phase::Full { .. } => Next::Keep,
            Phase::Narrow { size, received } if received + 1 < size => {
                self.phase = Phase::Narrow { size, received: received + 1 };
                Next::Keep
            }
            Phase::Narrow { size, .. } => {
                let to = size.saturating_mul(2).min(self.max);
                self.phase = if to < self.max {
                    Phase::Narrow { size: to, received: 0 }
                } else {
                    Phase::Full { trusted: false }
                };
                if to == size { Next::Keep } else { Next::Grow { to, when_settled: false } }
            }
            Phase::Growing { size, received } if suspect && received + 1 < size => {
                self.phase = Phase::Growing { size, received: received + 1 };
                Next::Keep
            }
            Phase::Growing { size, .. } => {
                let to = if suspect { size.saturating_mul(2).min(self.max) } else { self.max };
                self.phase = if to < self.max {
                    Phase::Growing { size: to, received: 0 }
                } else {
                    // The last step was a suspect: the window has grown over harmless ones alone.
                    Phase::Full { trusted: suspect }
                };
                Next::Grow { to, when_settled: suspect }
            }
        }
    }

    /// Narrows the window so that a full one of messages of this size has room.
    fn on_large(&mut self, bytes: usize) -> Next {
        let fitting = u16::try_from(MAX_WHEN_FETCHING / bytes.max(1)).unwrap_or(u16::MAX);
        let to = fitting.clamp(1, self.max);
        let size = self.size();
        if matches!(self.phase, Phase::Full { .. }) && to == self.max {
            return Next::Keep;
        }
        self.phase = Phase::Narrow { size: size.min(to), received: 0 };
        if to < size { Next::Narrow { to } } else { Next::Keep }
    }

    fn isolates_suspects(&self) -> bool {
        match self.phase {
            Phase::Full { trusted } => !trusted && self.max > 1,
            Phase::Narrow { .. } => self.max > 1,
            Phase::Growing { .. } | Phase::OneAtATime { .. } => false,
        }
    }
}

impl Phase {
    fn initial(max: u16) -> Self {
        if max > 1 { Self::Growing { size: 1, received: 0 } } else { Self::Full { trusted: false } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUSPECT: u32 = SUSPECT_REDELIVERIES;

    fn grow(to: u16, when_settled: bool) -> Next {
        Next::Grow { to, when_settled }
    }

    #[test]
    fn harmless_message_opens_the_window() {
        let mut window = PrefetchWindow::new(64);
        assert_eq!(window.on_delivery(0, None), grow(64, false));
        assert_eq!(window.on_delivery(SUSPECT - 1, None), Next::Keep);
        assert_eq!(window.on_delivery(SUSPECT, None), Next::ServeAlone);
        assert_eq!(PrefetchWindow::new(1).on_delivery(0, None), Next::Keep);
        assert_eq!(PrefetchWindow::new(1).on_delivery(SUSPECT, None), Next::Keep);
    }

    #[test]
    fn idle_queue_opens_the_window() {
        let mut window = PrefetchWindow::new(64);
        assert_eq!(window.idle_after(), Some(IDLE));
        assert_eq!(window.on_idle(), grow(64, false));
        assert_eq!(window.idle_after(), None);
        assert_eq!(window.on_delivery(0, None), Next::Keep);
        assert_eq!(window.on_delivery(SUSPECT, None), Next::ServeAlone);
        assert_eq!(PrefetchWindow::new(1).idle_after(), None);
    }

    #[test]
    fn suspects_double_the_window_as_they_are_settled() {
        let mut window = PrefetchWindow::new(5);
        assert_eq!(window.on_delivery(SUSPECT, None), grow(2, true));
        assert_eq!(window.on_delivery(SUSPECT, None), Next::Keep);
        assert_eq!(window.on_delivery(SUSPECT, None), grow(4, true));
        assert_eq!(window.on_delivery(0, None), grow(5, false));
        assert_eq!(window.on_delivery(SUSPECT, None), Next::ServeAlone);
    }

    #[test]
    fn window_grown_over_harmless_suspects_trusts_the_next() {
        let mut window = PrefetchWindow::new(2);
        assert_eq!(window.on_delivery(SUSPECT, None), grow(2, true));
        assert_eq!(window.on_delivery(SUSPECT, None), Next::Keep);
    }

    #[test]
    fn one_at_a_time_ends_after_a_full_window_of_deliveries() {
        let mut window = PrefetchWindow::new(3);
        window.on_poison();
        for _ in 0..3 {
            assert!(window.is_one_at_a_time());
            assert_eq!(window.on_delivery(SUSPECT, None), Next::Keep);
        }
        assert!(!window.is_one_at_a_time());
        assert_eq!(window.on_delivery(0, None), grow(3, false));
    }

    #[test]
    fn one_at_a_time_ends_on_an_idle_queue() {
        let mut window = PrefetchWindow::new(3);
        window.on_poison();
        assert_eq!(window.on_delivery(0, None), Next::Keep);
        assert_eq!(window.idle_after(), Some(IDLE_AFTER_BREAK));
        assert_eq!(window.on_idle(), grow(3, false));
        assert!(!window.is_one_at_a_time());
    }

    #[test]
    fn slow_delivery_lets_one_more_in_at_a_time() {
        let mut window = PrefetchWindow::new(64);
        window.on_poison();
        assert_eq!(window.on_delivery(0, None), Next::Keep);
        assert_eq!(window.on_slow_delivery(), grow(1, false));
        assert!(!window.is_one_at_a_time());
        assert_eq!(window.on_delivery(SUSPECT, None), grow(2, true));
    }

    #[test]
    fn reconnect_repeats_one_at_a_time_until_it_is_complete() {
        let mut window = PrefetchWindow::new(2);
        window.on_poison();
        window.on_delivery(0, None);
        window.on_reconnect();
        window.on_delivery(0, None);
        assert!(window.is_one_at_a_time());
        window.on_delivery(0, None);
        window.on_reconnect();
        assert!(!window.is_one_at_a_time());
        assert_eq!(window.on_delivery(0, None), grow(2, false));
    }

    const MIB: usize = 1024 * 1024;

    fn narrow(to: u16) -> Next {
        Next::Narrow { to }
    }

    #[test]
    fn large_message_narrows_the_window() {
        let mut window = PrefetchWindow::new(64);
        window.on_idle();
        assert_eq!(window.on_delivery(0, Some(MIB)), narrow(16));
        assert_eq!(window.on_delivery(0, Some(MIB)), Next::Keep);
        assert_eq!(window.on_delivery(0, Some(15 * MIB)), narrow(1));
        assert_eq!(window.on_delivery(0, Some(100 * MIB)), Next::Keep);
        assert_eq!(window.on_no_room(), narrow(1));
    }

    #[test]
    fn narrow_window_doubles_with_smaller_messages() {
        let mut window = PrefetchWindow::new(5);
        window.on_idle();
        assert_eq!(window.on_delivery(0, Some(15 * MIB)), narrow(1));
        assert_eq!(window.on_delivery(0, None), grow(2, false));
        assert_eq!(window.on_delivery(0, None), Next::Keep);
        assert_eq!(window.on_delivery(0, None), grow(4, false));
        assert_eq!(window.on_delivery(0, Some(15 * MIB)), narrow(1));
        for _ in 0..3 {
            window.on_delivery(0, None);
        }
        for _ in 0..3 {
            assert_eq!(window.on_delivery(0, None), Next::Keep);
        }
        assert_eq!(window.on_delivery(0, None), grow(5, false));
        assert_eq!(window.on_delivery(0, None), Next::Keep);
    }

    #[test]
    fn first_message_is_large_and_the_window_stays_at_one() {
        let mut window = PrefetchWindow::new(64);
        assert_eq!(window.on_delivery(0, Some(15 * MIB)), Next::Keep);
        assert_eq!(window.on_delivery(0, Some(15 * MIB)), Next::Keep);
        assert_eq!(window.on_delivery(0, None), grow(2, false));
        window.on_reconnect();
        assert_eq!(window.on_delivery(0, None), grow(2, false));
    }

    #[test]
    fn large_suspect_is_served_alone() {
        let mut window = PrefetchWindow::new(64);
        window.on_idle();
        assert_eq!(window.on_delivery(SUSPECT, Some(15 * MIB)), Next::ServeAlone);
        assert_eq!(window.on_delivery(0, Some(15 * MIB)), narrow(1));
        assert_eq!(window.on_delivery_while_paused(0), Next::Keep);
        assert_eq!(window.on_delivery_while_paused(SUSPECT), Next::ServeAlone);
        let mut one = PrefetchWindow::new(1);
        assert_eq!(one.on_delivery(SUSPECT, Some(15 * MIB)), Next::Keep);
    }
}
