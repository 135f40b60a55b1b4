//! What the gate remembers of each caller, in bounded memory.

use std::collections::HashMap;

use tokio::time::Instant;

use super::decision::Caller;

/// Limit of remembered callers.
const MAX_CALLERS: usize = 4_096;

pub(super) struct CallerMemory<T>(HashMap<u64, Remembered<T>>);

struct Remembered<T> {
    value: T,
    /// The last moment at which it matters.
    until: Instant,
}

impl<T> Default for CallerMemory<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T> CallerMemory<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns what is known of a caller, even if it no longer matters.
    pub(super) fn get(&self, caller: Caller) -> Option<&T> {
        self.0.get(&caller.id).map(|known| &known.value)
    }

    /// Returns what is known of a caller, if it still matters.
    pub(super) fn recall(&self, caller: Caller, now: Instant) -> Option<&T> {
        self.0.get(&caller.id).filter(|known| now <= known.until).map(|known| &known.value)
    }

    /// Remembers `value` until then. If there are too many callers, forgets those that no longer matter, or
    /// else all.
    pub(super) fn insert(&mut self, caller: Caller, value: T, until: Instant, now: Instant) {
        if self.0.len() >= MAX_CALLERS && !self.0.contains_key(&caller.id) {
            self.0.retain(|_, known| now <= known.until);
            if self.0.len() >= MAX_CALLERS {
                self.0.clear();
            }
        }
        self.0.insert(caller.id, Remembered { value, until });
    }

    pub(super) fn remove(&mut self, caller: Caller) {
        // Most of the time, there is none, and this is on the path of every request.
        if !self.0.is_empty() {
            self.0.remove(&caller.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn callers_that_no_longer_matter_are_forgotten_first() {
        let caller = |id| Caller { id, workflow: 1 };
        let now = Instant::now();
        let soon = now + Duration::from_secs(1);
        let later = now + Duration::from_secs(60);
        let mut memory = CallerMemory::default();
        for id in 0..4_096 {
            memory.insert(caller(id), id, if id < 10 { later } else { soon }, now);
        }
        let then = now + Duration::from_secs(2);
        assert_eq!((memory.get(caller(10)), memory.recall(caller(10), then)), (Some(&10), None));
        memory.insert(caller(5_000), 5_000, later, then);
        assert_eq!((memory.get(caller(9)), memory.get(caller(10))), (Some(&9), None));
        memory.remove(caller(9));
        assert_eq!(memory.get(caller(9)), None);
        for id in 10_000..14_096 {
            memory.insert(caller(id), id, later, then);
        }
        assert_eq!(memory.get(caller(5_000)), None, "too many that matter");
    }
}
