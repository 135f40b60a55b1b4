//! When a platform call was made, and whether it repeats another.

use std::time::SystemTime;

/// When a call was made. Passed by reference: a copy in each future on the way would add up.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    /// At the first try whose result the answer may be.
    pub(super) first_at: SystemTime,
    /// At the latest try.
    pub(super) last_at: SystemTime,
    /// The platform may be processing an earlier try already.
    pub(super) is_repeat: bool,
}

impl Asked {
    pub(super) fn never() -> Self {
        let never = SystemTime::UNIX_EPOCH;
        Self { first_at: never, last_at: never, is_repeat: false }
    }

    /// An earlier delivery may have made the call, at this time or later.
    pub(super) fn earlier(first_at: SystemTime) -> Self {
        Self { first_at, last_at: first_at, is_repeat: true }
    }

    pub(super) fn start(&mut self) {
        self.last_at = SystemTime::now();
        if !self.is_repeat {
            self.first_at = self.last_at;
        }
    }
}
