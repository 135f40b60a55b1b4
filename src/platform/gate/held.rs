//! The requests that wait at the gate, and how likely each is to succeed as a probe.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use super::{
    breaker::{OpenBreaker, Rank},
    decision::Caller,
};

#[derive(Default)]
pub(super) struct HeldRequests {
    /// By the caller's id. With the time when the request arrived.
    waiting: HashMap<u64, (Caller, Instant)>,
    /// The number of waiting callers of each rank, in an open breaker's order.
    ranks: [usize; 3],
    /// When a request was last seen to wait or to call during a pause.
    last_seen: Option<Instant>,
}

impl HeldRequests {
    pub(super) fn start_waiting(
        &mut self,
        caller: Caller,
        arrived: Instant,
        breaker: Option<&OpenBreaker>,
        now: Instant,
    ) {
        self.last_seen = Some(now);
        if self.waiting.insert(caller.id, (caller, arrived)).is_none()
            && let Some(breaker) = breaker
        {
            self.ranks[breaker.rank(caller) as usize] += 1;
        }
    }

    pub(super) fn end_waiting(
        &mut self,
        caller: Caller,
        breaker: Option<&OpenBreaker>,
        now: Instant,
    ) {
        self.last_seen = Some(now);
        if self.waiting.remove(&caller.id).is_some()
            && let Some(breaker) = breaker
        {
            let count = &mut self.ranks[breaker.rank(caller) as usize];
            *count = count.saturating_sub(1);
        }
    }

    /// Records that a request is held, although it may not wait at this moment.
    pub(super) fn record_seen(&mut self, now: Instant) {
        self.last_seen = Some(now);
    }

    /// Counts anew: ranks have changed.
    pub(super) fn recount(&mut self, breaker: Option<&OpenBreaker>) {
        self.ranks = [0; 3];
        if let Some(breaker) = breaker {
            for (caller, _) in self.waiting.values() {
                self.ranks[breaker.rank(*caller) as usize] += 1;
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn all(&self, predicate: impl Fn(Caller) -> bool) -> bool {
        self.waiting.values().all(|(caller, _)| predicate(*caller))
    }

    pub(super) fn is_ranked(&self, rank: Rank) -> bool {
        self.ranks[rank as usize] > 0
    }

    pub(super) fn is_better_ranked(&self, rank: Rank) -> bool {
        self.ranks[..rank as usize].iter().any(|count| *count > 0)
    }

    /// Returns whether no request that waits arrived before this caller's.
    pub(super) fn is_oldest(&self, caller: Caller) -> bool {
        let oldest = self.waiting.values().min_by_key(|(_, arrived)| *arrived);
        oldest.is_some_and(|(oldest, _)| *oldest == caller)
    }

    /// Returns whether no request that waits arrived after this caller's.
    pub(super) fn is_newest(&self, caller: Caller) -> bool {
        let newest = self.waiting.values().max_by_key(|(_, arrived)| *arrived);
        newest.is_some_and(|(newest, _)| *newest == caller)
    }

    /// Returns when no request will have been held for `duration`, if that is later than now.
    pub(super) fn attended_until(&self, duration: Duration, now: Instant) -> Option<Instant> {
        let seen = if self.is_empty() { self.last_seen? } else { now };
        Some(seen + duration).filter(|until| *until > now)
    }
}
