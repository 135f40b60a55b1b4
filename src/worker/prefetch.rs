//! The prefetch window: how many deliveries RabbitMQ may have in flight to this worker.
//!
//! A poison message kills its worker or breaks its connection. RabbitMQ then counts a redelivery for
//! every message that was in flight, and dead-letters each one past the delivery limit (20): behind a
//! wide window, one poison message takes its neighbours along. The window keeps suspects apart.
//!
//! - **Growing**: a new connection starts with a window of one. A message with few redeliveries, or an
//!   idle queue, opens it fully. Suspects let it double each time, once all earlier deliveries are
//!   settled: RabbitMQ up to 4.2 also counts messages that were merely returned, so most are harmless.
//! - **Full**: a suspect that arrives together with others is served alone.
//! - **One at a time**: after a delivery broke the connection. No more than a full window can have been
//!   in flight then, so the window opens after that many deliveries, or once the queue is idle.

use std::time::Duration;

use crate::broker::SUSPECT_REDELIVERIES;

/// After this long without a delivery, a growing window takes the queue for idle …
const IDLE: Duration = Duration::from_millis(200);
/// … and after this long one at a time does. Longer: the poison message may be on its way back.
const IDLE_AFTER_BREAK: Duration = Duration::from_secs(1);

/// How many deliveries may be in flight, and why.
#[derive(Debug)]
pub(super) struct PrefetchWindow {
    full: u16,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// `taken` deliveries have arrived since the window has this size.
    Growing { size: u16, taken: u16 },
    /// `trusted`: the window grew over suspects that did no harm, so further ones need not be alone.
    Full { trusted: bool },
    /// `taken` deliveries have arrived since the connection broke.
    OneAtATime { taken: u16 },
}

/// What the consumer does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Keep,
    /// Fetch up to `to` messages: now, or when all earlier deliveries are settled.
    Grow {
        to: u16,
        when_settled: bool,
    },
    /// Serve this delivery with nothing else in flight.
    ServeAlone,
}

impl PrefetchWindow {
    /// A window that grows from one to `full` deliveries.
    pub(super) fn new(full: u16) -> Self {
        Self { full, phase: Phase::growing(full) }
    }

    /// Prepares for a new connection. One at a time starts over, unless it was completed.
    pub(super) fn reconnected(&mut self) {
        if self.is_one_at_a_time() {
            self.suspect_poison();
        } else {
            self.phase = Phase::growing(self.full);
        }
    }

    /// A delivery broke the connection: the next connection serves one at a time.
    pub(super) fn suspect_poison(&mut self) {
        self.phase = Phase::OneAtATime { taken: 0 };
    }

    pub(super) fn is_one_at_a_time(&self) -> bool {
        matches!(self.phase, Phase::OneAtATime { .. })
    }

    /// How long the queue must be idle before [`Self::on_idle`]; `None`: idleness means nothing now.
    pub(super) fn idle_after(&self) -> Option<Duration> {
        match self.phase {
            Phase::Growing { size: 1, taken: 0 } => Some(IDLE),
            Phase::OneAtATime { .. } => Some(IDLE_AFTER_BREAK),
            _ => None,
        }
    }

    /// The queue is empty, so it holds no poison message.
    pub(super) fn on_idle(&mut self) -> Next {
        // One at a time, an idle queue can also mean that the one delivery is still in flight.
        let when_settled = self.is_one_at_a_time();
        self.phase = Phase::Full { trusted: false };
        if self.full == 1 { Next::Keep } else { Next::Grow { to: self.full, when_settled } }
    }

    /// A delivery arrived that RabbitMQ has redelivered this often.
    pub(super) fn on_delivery(&mut self, redeliveries: u32) -> Next {
        let suspect = redeliveries >= SUSPECT_REDELIVERIES;
        match self.phase {
            Phase::OneAtATime { taken } => {
                let taken = taken + 1;
                self.phase = if taken < self.full {
                    Phase::OneAtATime { taken }
                } else {
                    Phase::growing(self.full)
                };
                Next::Keep
            }
            Phase::Full { trusted: false } if suspect && self.full > 1 => Next::ServeAlone,
            Phase::Full { .. } => Next::Keep,
            Phase::Growing { size, taken } if suspect && taken + 1 < size => {
                self.phase = Phase::Growing { size, taken: taken + 1 };
                Next::Keep
            }
            Phase::Growing { size, .. } => {
                let to = if suspect { size.saturating_mul(2).min(self.full) } else { self.full };
                self.phase = if to < self.full {
                    Phase::Growing { size: to, taken: 0 }
                } else {
                    Phase::Full { trusted: suspect }
                };
                Next::Grow { to, when_settled: suspect }
            }
        }
    }
}

impl Phase {
    fn growing(full: u16) -> Self {
        if full > 1 { Self::Growing { size: 1, taken: 0 } } else { Self::Full { trusted: false } }
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
        assert_eq!(window.on_delivery(0), grow(64, false));
        assert_eq!(window.on_delivery(SUSPECT - 1), Next::Keep);
        assert_eq!(window.on_delivery(SUSPECT), Next::ServeAlone);
        assert_eq!(PrefetchWindow::new(1).on_delivery(0), Next::Keep);
        assert_eq!(PrefetchWindow::new(1).on_delivery(SUSPECT), Next::Keep);
    }

    #[test]
    fn idle_queue_opens_the_window() {
        let mut window = PrefetchWindow::new(64);
        assert_eq!(window.idle_after(), Some(IDLE));
        assert_eq!(window.on_idle(), grow(64, false));
        assert_eq!(window.idle_after(), None);
        assert_eq!(window.on_delivery(0), Next::Keep);
        assert_eq!(window.on_delivery(SUSPECT), Next::ServeAlone);
        assert_eq!(PrefetchWindow::new(1).idle_after(), None);
    }

    #[test]
    fn suspects_double_the_window_as_they_are_settled() {
        let mut window = PrefetchWindow::new(5);
        assert_eq!(window.on_delivery(SUSPECT), grow(2, true));
        assert_eq!(window.on_delivery(SUSPECT), Next::Keep);
        assert_eq!(window.on_delivery(SUSPECT), grow(4, true));
        assert_eq!(window.on_delivery(0), grow(5, false));
        assert_eq!(window.on_delivery(SUSPECT), Next::ServeAlone);
    }

    #[test]
    fn window_grown_over_harmless_suspects_trusts_the_next() {
        let mut window = PrefetchWindow::new(2);
        assert_eq!(window.on_delivery(SUSPECT), grow(2, true));
        assert_eq!(window.on_delivery(SUSPECT), Next::Keep);
    }

    #[test]
    fn one_at_a_time_ends_after_a_full_window_of_deliveries() {
        let mut window = PrefetchWindow::new(3);
        window.suspect_poison();
        for _ in 0..3 {
            assert!(window.is_one_at_a_time());
            assert_eq!(window.on_delivery(SUSPECT), Next::Keep);
        }
        assert!(!window.is_one_at_a_time());
        assert_eq!(window.on_delivery(0), grow(3, false));
    }

    #[test]
    fn one_at_a_time_ends_on_an_idle_queue_once_all_is_settled() {
        let mut window = PrefetchWindow::new(3);
        window.suspect_poison();
        assert_eq!(window.on_delivery(0), Next::Keep);
        assert_eq!(window.idle_after(), Some(IDLE_AFTER_BREAK));
        assert_eq!(window.on_idle(), grow(3, true));
        assert!(!window.is_one_at_a_time());
    }

    #[test]
    fn reconnect_repeats_one_at_a_time_until_it_is_complete() {
        let mut window = PrefetchWindow::new(2);
        window.suspect_poison();
        window.on_delivery(0);
        window.reconnected();
        window.on_delivery(0);
        assert!(window.is_one_at_a_time());
        window.on_delivery(0);
        window.reconnected();
        assert!(!window.is_one_at_a_time());
        assert_eq!(window.on_delivery(0), grow(2, false));
    }
}
