//! `Retry-After`: pauses that the platform asks for, of all calls or of one caller's.
//!
//! The first one is honoured by all calls of this worker. If a caller receives another although others were
//! served since its last one, the platform limits that caller alone, and only that caller waits.

use std::time::Duration;

use tokio::time::Instant;

use super::{caller_memory::CallerMemory, decision::Caller};

/// A deferred caller lets the others call first, for a tenth of the time it was asked to wait and at least
/// for this long: their answers show whether the platform limits this caller alone.
const MIN_YIELD: Duration = Duration::from_secs(1);
/// How long a caller is remembered after its wait.
const MEMORY: Duration = Duration::from_secs(600);

#[derive(Default)]
pub(super) struct Deferrals {
    /// No call before this time.
    all_until: Option<Instant>,
    callers: CallerMemory<Deferral>,
    /// When a call of a caller that is not deferred last began.
    others_began: Option<Instant>,
    /// All calls wait, and no request has made room for one that is not deferred.
    is_room_to_make: bool,
}

struct Deferral {
    received: Instant,
    until: Instant,
    /// How long the caller then lets others go first.
    yields_for: Duration,
    /// Whether others may call meanwhile.
    is_alone: bool,
}

impl Deferrals {
    /// Returns whether all calls wait.
    pub(super) fn is_running(&self, now: Instant) -> bool {
        self.all_until.is_some_and(|until| until > now)
    }

    pub(super) fn all_until(&self) -> Option<Instant> {
        self.all_until
    }

    /// Returns when the caller may call, if that is later than now. `served_since` says whether another
    /// caller was served since a time, `others_wait` whether one that is not deferred wants to call.
    pub(super) fn wait_until(
        &self,
        caller: Caller,
        served_since: impl Fn(Instant) -> bool,
        others_wait: impl Fn() -> bool,
        now: Instant,
    ) -> Option<Instant> {
        let own = self.callers.get(caller).map(|own| {
            // The others can call only once their own pause is over, too.
            let free_at = own.until.max(self.all_until.unwrap_or(own.until));
            let yield_until = free_at + own.yields_for;
            let others_called = || self.others_began.is_some_and(|began| began >= free_at);
            let yields = (free_at..yield_until).contains(&now)
                && !served_since(own.received)
                && (others_called() || others_wait());
            if yields { yield_until } else { own.until }
        });
        self.all_until.max(own).filter(|until| *until > now)
    }

    /// Returns until when the caller waits, if its request leaves its slot to others meanwhile.
    ///
    /// While all calls wait, one request does, `is_last` of those held and all deferred: only one that is not
    /// deferred can show whether the platform limits everyone.
    pub(super) fn make_room(
        &mut self,
        caller: Caller,
        is_last: impl Fn() -> bool,
        now: Instant,
    ) -> Option<Instant> {
        let own = self.callers.get(caller).filter(|own| own.until > now)?;
        let makes_room = own.is_alone
            || (self.is_room_to_make && is_last() && std::mem::take(&mut self.is_room_to_make));
        makes_room.then_some(own.until)
    }

    /// Returns for how long the platform wants no calls for this caller.
    pub(super) fn deferred_for(&self, caller: Caller, now: Instant) -> Option<Duration> {
        let own = self.callers.get(caller)?;
        own.until.checked_duration_since(now).filter(|wait| !wait.is_zero())
    }

    pub(super) fn is_deferred(&self, caller: Caller) -> bool {
        self.callers.get(caller).is_some()
    }

    pub(super) fn record_call(&mut self, caller: Caller, now: Instant) {
        if !self.callers.is_empty() && !self.is_deferred(caller) {
            self.others_began = Some(now);
        }
    }

    /// Records a `Retry-After`. Returns whether it is honoured for this caller alone.
    pub(super) fn record(
        &mut self,
        caller: Caller,
        wait: Duration,
        served_since: impl Fn(Instant) -> bool,
        now: Instant,
    ) -> bool {
        let until = now + wait;
        let yields_for = (wait / 10).max(MIN_YIELD);
        let former = self.callers.recall(caller, now);
        let is_alone = former.is_some_and(|former| served_since(former.received));
        let deferral = Deferral { received: now, until, yields_for, is_alone };
        self.callers.insert(caller, deferral, until + MEMORY, now);
        if !is_alone {
            self.all_until = self.all_until.max(Some(until));
            self.is_room_to_make = true;
        }
        is_alone
    }

    /// Records that the caller was served.
    pub(super) fn record_served(&mut self, caller: Caller) {
        self.callers.remove(caller);
    }
}
