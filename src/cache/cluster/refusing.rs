//! Slots that their nodes do not serve, although the nodes are well.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

/// How long after the last refusal the next one counts as the first.
const FORGOTTEN: Duration = Duration::from_secs(10);

/// Since when slots are refused: because they are moving, or because their nodes redirect to each other.
///
/// Without this, each request for a slot that is stuck would wait for it anew.
#[derive(Default)]
pub(super) struct RefusingSlots {
    /// When a slot was refused first and last.
    slots: Mutex<HashMap<u16, (Instant, Instant)>>,
    /// Spares the lock while there are none.
    any: AtomicBool,
}

impl RefusingSlots {
    pub(super) fn refused(&self, slot: u16) {
        let now = Instant::now();
        let mut slots = self.slots.lock();
        let (first, last) = slots.entry(slot).or_insert((now, now));
        if now - *last > FORGOTTEN {
            *first = now;
        }
        *last = now;
        self.any.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.any.load(Ordering::Relaxed)
    }

    pub(super) fn served(&self, slot: u16) {
        let mut slots = self.slots.lock();
        slots.remove(&slot);
        self.any.store(!slots.is_empty(), Ordering::Relaxed);
    }

    /// Since when this slot is refused.
    pub(super) fn since(&self, slot: u16) -> Option<Instant> {
        self.slots.lock().get(&slot).map(|(first, _)| *first)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn first_refusal_counts_until_the_slot_is_served_or_long_not_refused() {
        let refusing = RefusingSlots::default();
        let first = Instant::now();
        refusing.refused(1);
        advance(Duration::from_secs(9)).await;
        refusing.refused(1);
        assert_eq!((refusing.since(1), refusing.since(2)), (Some(first), None));
        advance(Duration::from_secs(11)).await;
        refusing.refused(1);
        assert_eq!(refusing.since(1), Some(Instant::now()));
        refusing.served(2);
        assert!(refusing.since(1).is_some());
        refusing.served(1);
        assert_eq!(refusing.since(1), None);
        assert!(refusing.is_empty());
    }
}
