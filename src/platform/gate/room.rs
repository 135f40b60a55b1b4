//! When a request that the gate holds leaves its slot to others.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::{decision::Caller, shared::Gate};

/// How often a waiting request checks whether it must make room for others.
const ROOM_CHECK: Duration = Duration::from_secs(1);

/// Turns that a request which fails in an outage may stay while there are free slots.
/// Then it leaves, too: another replica may know that the platform works.
const TURNS_WITH_FREE_SLOTS: u32 = 3;
/// The shortest stay with free slots. Without it, a request with a short budget would be copied every second.
const MIN_STAY_WITH_FREE_SLOTS: Duration = Duration::from_secs(3);

/// A request's place at the gate while it waits there.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(super) gate: &'a Gate,
    pub(super) caller: Caller,
    pub(super) arrived: Instant,
}

/// Why a request makes room for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// The platform wants no calls for this request for this long.
    Deferred(Duration),
    /// It has failed in an outage, as have all others in flight.
    Failed,
}

impl Place<'_> {
    /// Returns for how long the platform wants no calls for this caller.
    pub(crate) fn deferred_for(self) -> Option<Duration> {
        self.gate.state.lock().deferred_for(self.caller, Instant::now())
    }

    /// Waits until the request should make room for those in the queue, `min_stay` at least. In an outage, it
    /// may stay for `turn` after it arrived, and longer while the worker's slots are not all taken (`is_full`).
    pub(crate) async fn until_room_is_needed(
        self,
        is_full: impl Fn() -> bool,
        min_stay: Duration,
        turn: Duration,
    ) -> Room {
        sleep(min_stay).await;
        let mut changed = self.gate.changed.subscribe();
        loop {
            if let Some(room) = self.make_room(is_full(), turn) {
                return room;
            }
            // `changed` does not report that a slot is taken, or that time passes.
            let _ = timeout(ROOM_CHECK, changed.changed()).await;
        }
    }

    /// Returns whether a request that failed makes room instead of another call, because its `turn` is over.
    ///
    /// If probes last as long as all slots take to send one each, no request ever waits at the gate, so that
    /// none would make room there.
    pub(crate) fn makes_room_before_next_call(self, is_full: bool, turn: Duration) -> bool {
        is_full
            && self.arrived.elapsed() >= turn
            && self.gate.state.lock().make_room(self.caller, true)
    }

    fn make_room(self, is_full: bool, turn: Duration) -> Option<Room> {
        let now = Instant::now();
        let stayed = now - self.arrived;
        let least = turn.saturating_mul(TURNS_WITH_FREE_SLOTS).max(MIN_STAY_WITH_FREE_SLOTS);
        if !is_full && stayed < least {
            return None;
        }
        let mut state = self.gate.state.lock();
        if is_full && let Some(until) = state.make_room_while_deferred(self.caller, now) {
            return Some(Room::Deferred(until - now));
        }
        state.make_room(self.caller, stayed >= turn).then_some(Room::Failed)
    }
}
